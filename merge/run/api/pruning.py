"""The Python API of pruning: fewer heads, neurons or tokens, by the same code as `edit-layers prune-heads` and its kin."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.disk.workspace import Workspace
from merge.layers.pruning.prune import Choice, prune_units
from merge.layers.pruning.write import PruneReport, prune_facts, report_text
from merge.run.api.inputs import open_models, text_path
from merge.run.results import WrittenModel
from merge.text.source import TextSource

if TYPE_CHECKING:
    from merge.checkpoints.live import ModelLike
    from merge.text.memory import TextLike

Units = Mapping[int, Sequence[int]] | str


@dataclass(frozen=True)
class PrunedModel(WrittenModel):
    """A model with fewer heads, neurons or tokens.

    Attributes:
        report: what was removed, and the proof.
    """

    report: PruneReport

    @property
    def notes(self) -> tuple[str, ...]:
        return self.report.notes

    @property
    def removed(self) -> dict[int, tuple[int, ...]]:
        """Layer -> the heads or neurons that were removed; empty for tokens."""
        return {int(layer): tuple(units) for layer, units in self.report.pruned.facts.get("removed", {}).items()}

    def to_json(self) -> dict[str, Any]:
        return prune_facts(self.report)

    def __str__(self) -> str:
        return report_text(self.report)

    def _rows(self) -> Sequence[tuple[str, str]]:
        pruned = self.report.pruned
        proof = f"{self.report.proof} differ by at most {self.report.error:.2g} standard deviations"
        return (("pruned model", pruned.checkpoint.source), ("removed", pruned.lines[0]), ("proof", proof))


def prune_heads(
    model: ModelLike,
    heads: Units | None = None,
    *,
    score: str | None = None,
    count: int | None = None,
    share: float | None = None,
    per_layer: bool = False,
    protect: Sequence[int] = (),
    shrink: bool = False,
    text: TextLike | None = None,
    text_column: Sequence[str] | None = None,
    samples: int = 128,
    seed: int = 0,
    loss: str = "own",
    label_column: str | None = None,
    stack: str = "",
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> PrunedModel:
    """Remove attention heads of one model, listed or with the lowest score: `edit-layers prune-heads`.

    Args:
        heads: layer -> heads, counted from 0, or the same as text: "0:1,3 2:5".
        score: gate-gradient, lesion, activation or weight-norm, with `count` or `share`.
        per_layer: count or share is of each layer, not of all together.
        protect: layers that keep all their heads.
        shrink: cut the heads out where the config of the family can say it; else what they add is zeroed.
        text: what the score is measured on; `text_column`, `samples` and `seed` say how it is drawn.
        loss, label_column: of gate-gradient: own (no labels), masked, or labels with their column.
        stack: text or vision, where a model has both.
        output, force: as in `merge.merge`.
    Returns:
        The pruned model: `.model` (loaded), `.removed`, `.report`, `.save(folder)`.
    Raises:
        UsageError: the heads do not exist, none would be left in a layer, or the family cannot do what is asked.
    Source: Michel et al. 2019, arXiv:1905.10650 (gate gradients).

    Example:
        >>> pruned = merge.prune_heads("a/", {0: [1, 3]})
        >>> pruned.report.error
        0.0
        >>> pruned.model.bert.encoder.layer[0].attention.output.dense.weight[:, 6:12].abs().max().item()
        0.0
    """
    choice = _choice(
        heads, None, score, count, share, per_layer, protect, (text_column, samples, seed), loss, label_column
    )
    return _pruned(model, "heads", choice, text, shrink, stack, output, force)


def prune_neurons(
    model: ModelLike,
    neurons: Units | None = None,
    *,
    redundant: bool = False,
    tolerance: float = 1e-6,
    score: str | None = None,
    count: int | None = None,
    share: float | None = None,
    per_layer: bool = False,
    protect: Sequence[int] = (),
    shrink: bool = False,
    text: TextLike | None = None,
    text_column: Sequence[str] | None = None,
    samples: int = 128,
    seed: int = 0,
    loss: str = "own",
    label_column: str | None = None,
    stack: str = "",
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> PrunedModel:
    """Remove feed-forward neurons of one model: listed, redundant or with the lowest score: `edit-layers prune-neurons`.

    Args:
        neurons: layer -> neurons, counted from 0, or the same as text: "0:1,3 2:0-99".
        redundant: those that nothing reads, and those with the input weights of another one, which takes over their
            outgoing weights; the same means within `tolerance` of the largest.
        shrink: cut the neurons out; layers that keep more than others decide the width.
        score and all others: as in `merge.prune_heads`.
    Returns:
        The pruned model: `.model` (loaded), `.removed`, `.report`, `.save(folder)`.
    Raises:
        UsageError: the neurons do not exist, none would be left in a layer, or there are no redundant ones.

    Example:
        >>> narrower = merge.prune_neurons("a/", score="weight-norm", share=0.25, per_layer=True, shrink=True)
        >>> narrower.model.config.intermediate_size
        30
    """
    limit = tolerance if redundant else None
    choice = _choice(
        neurons, limit, score, count, share, per_layer, protect, (text_column, samples, seed), loss, label_column
    )
    return _pruned(model, "neurons", choice, text, shrink, stack, output, force)


def prune_embeddings(
    model: ModelLike,
    text: TextLike,
    *,
    text_column: Sequence[str] | None = None,
    allow_unknown: bool = False,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> PrunedModel:
    """Trim the vocabulary of one model to the tokens of a text: `edit-layers prune-embeddings`.

    Special tokens and tokens of one character or byte stay too. Outputs on the text are what they were.

    Args:
        text: a file, a Hub data set id, sentences or pairs of sentences; read whole.
        text_column: one column (text) or two (a pair).
        allow_unknown: drop tokens even if a character of theirs has no token of its own, so that other texts may become
            unknown.
        output, force: as in `merge.merge`.
    Returns:
        The pruned model: `.model` (loaded), `.report`, `.save(folder)`.
    Raises:
        UsageError: the model has no vocabulary, or nothing can be trimmed.
        CheckpointError: its tokenizer cannot be trimmed.

    Example:
        >>> fewer = merge.prune_embeddings("a/", ["the doctor saw a lawyer ."], allow_unknown=True)
        >>> fewer.model.config.vocab_size
        12
    """
    workspace = Workspace()
    checkpoint = open_models([model], workspace.folder)[0]
    target = workspace.folder / "pruned" if output is None else Path(output).expanduser()
    source = TextSource(text_path(text, workspace.folder / "text"), None if text_column is None else tuple(text_column))
    from merge.layers.pruning.embeddings import prune_embeddings as prune

    return PrunedModel(target, workspace, prune(checkpoint, source, target, allow_unknown, force))


def _choice(
    units: Units | None,
    redundant: float | None,
    score: str | None,
    count: int | None,
    share: float | None,
    per_layer: bool,
    protect: Sequence[int],
    drawn: tuple[Sequence[str] | None, int, int],
    loss: str,
    label_column: str | None,
) -> Choice:
    from merge.layers.pruning.selection import parse_units

    if isinstance(units, str):
        units = parse_units([units], "units")
    listed = None if units is None else {layer: tuple(sorted(chosen)) for layer, chosen in sorted(units.items())}
    column, samples, seed = drawn
    source = TextSource(None, None if column is None else tuple(column), samples, seed)
    return Choice(listed, redundant, score, count, share, per_layer, tuple(protect), source, loss, label_column)


def _pruned(
    model: ModelLike,
    kind: str,
    choice: Choice,
    text: TextLike | None,
    shrink: bool,
    stack: str,
    output: str | os.PathLike[str] | None,
    force: bool,
) -> PrunedModel:
    workspace = Workspace()
    checkpoint = open_models([model], workspace.folder)[0]
    target = workspace.folder / "pruned" if output is None else Path(output).expanduser()
    if text is not None:
        source = replace(choice.source, source=text_path(text, workspace.folder / "text"))
        choice = replace(choice, source=source)
    return PrunedModel(target, workspace, prune_units(checkpoint, kind, choice, target, shrink, stack, force))
