"""KL divergence from the endpoints' ensemble to a model between them, on text without labels.

At lam, b's part, it is the mean of KL(p || q): p = (1 - lam) p_a + lam p_b is the ensemble of the predictions of the
two endpoints a and b, q the prediction of the model with weights (1 - lam) a + lam b. For masked language models, the
mean is over masked words (`merge.alignment.masking`). Models without a task head are measured by 1 - cosine between the
last hidden states of the model between and the same mean of the endpoints'. Smaller is better.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor

from merge.alignment.divergence import Divergence, divergence_by_text, outputs_of, scored_tokens
from merge.alignment.pair import MAX_KEPT_BYTES, Alignment, Outputs, Pair, as_transform, in_dtype
from merge.checkpoints.transformers_model import runs_beside_others, twin
from merge.machine import MAX_WORKERS, in_parallel
from merge.progress import begin_phase, track
from merge.symmetry.permutation import Permutation, identity
from merge.symmetry.spec import parse
from merge.symmetry.transform import Transform, apply_transform_axes, map_axes, moved_when_read

SCORES = {
    "kl": "KL from ensemble to midpoint",
    "mse": "squared error to the endpoints' mean",
    "cosine": "1 - cosine to the endpoints' mean",
}

FILLED_AT_ONCE = 32  # tensors of the model between

# b's share in the models between the endpoints where a line is measured.
ALONG = (0.25, 0.5, 0.75)

# With fewer texts, or if the ensemble gives one class to more than this share of them, the user is told that the scores
# are uncertain.
MIN_TEXTS, MAX_CLASS_SHARE = 256, 0.9
# So too where the share of a class in the text is less by this than the mean probability that the models give it.
MAX_PRIOR_DIFFERENCE = 0.15


class EndpointOutputs:
    """The outputs of both models of a pair on its batches: computed once, and again only if too large to keep."""

    def __init__(self, pair: Pair, kept: Outputs | None = None) -> None:
        """Args:
        kept: the outputs on every batch, where the models have been run.
        """
        self.pair = pair
        self._kept: dict[int, tuple[Mapping[str, Tensor], Mapping[str, Tensor]]] = {}
        self._bytes = 0
        # Number of a batch -> the mean of both models' probabilities of the classes of each text.
        self._shares: dict[int, Tensor] = {}
        for k, (a, b) in enumerate(kept or ()):
            self.keep(k, a, b)

    @cached_property
    def models(self) -> tuple[Any, Any]:
        """Both models; built when an output is first asked for."""
        return self.pair.model(self.pair.a, copied=False), self.pair.model(self.pair.b, copied=False)

    def __call__(self, k: int) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Return the outputs of a and of b for batch k."""
        if k in self._kept:
            return self._kept[k]
        batch, inference = in_dtype(self.pair.batches[k], torch.float32), torch.is_inference_mode_enabled()

        def run(model: Any) -> dict[str, Tensor]:
            with torch.inference_mode(inference), torch.no_grad():  # as the caller's thread
                return outputs_of(self.pair, model(**batch))

        a, b = in_parallel(run, self.models) if runs_beside_others(self.models[0]) else map(run, self.models)
        self.keep(k, a, b)
        return a, b

    def keep(self, k: int, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
        """Keep the outputs for batch k, where there is room."""
        if list(a) == ["logits"] and a["logits"].ndim == 2 and a["logits"].shape[1] > 1:
            self._shares[k] = (a["logits"].softmax(-1) + b["logits"].softmax(-1)) / 2
        self._bytes += sum(out.nbytes for outputs in (a, b) for out in outputs.values())
        if self._bytes <= MAX_KEPT_BYTES:
            self._kept[k] = a, b

    def kept(self, k: int) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None:
        """Return the outputs for batch k that are computed and kept; None without."""
        return self._kept.get(k)

    def add_shares(self, parts: Sequence[EndpointOutputs]) -> None:
        """Let the notes go by outputs on parts of the text, where none on the whole are computed."""
        if not self._shares:
            shares = [share for part in parts for share in part._shares.values()]
            self._shares = dict(enumerate(shares))

    def notes(self, texts: int) -> tuple[str, ...]:
        """Return notes for the user on the texts, once all outputs are computed: too few, nearly all of one class, or with the
        classes in other shares than the models expect.

        Args:
            texts: how many the user gave; the outputs may be those of a part.
        """
        notes = []
        if texts < MIN_TEXTS:
            notes.append(
                f"the choice of axes rests on {texts} texts only; with {MIN_TEXTS} or more it is surer (--text)"
            )
        if self._shares:
            ensemble = torch.cat([self._shares[k] for k in sorted(self._shares)])
            counts = ensemble.argmax(-1).bincount()
            share, label = float(counts.max() / counts.sum()), int(counts.argmax())
            if share > MAX_CLASS_SHARE:
                notes.append(
                    f"the calibration text is one-sided: both models together call {share:.0%} of it {self._name(label)!r}, so "
                    "that the choice of axes may not hold elsewhere. Give a random sample of all classes (--text)"
                )
            notes += self._prior_note(ensemble.mean(0).tolist())
        return tuple(notes)

    def _name(self, label: int) -> str:
        return str((self.pair.config.get("id2label") or {}).get(str(label), f"LABEL_{label}"))

    def _prior_note(self, expected: Sequence[float]) -> list[str]:
        """Return a note where the text has the classes in other shares than the models expect; none without its labels."""
        names = [self._name(label) for label in range(len(expected))]
        class_of = {name.casefold(): k for k, name in enumerate(names)} | {str(k): k for k in range(len(names))}
        actual = [0.0] * len(names)
        for value, share in self.pair.text.class_shares.items():
            if (k := class_of.get(value.casefold())) is None:
                return []  # the text names its classes otherwise
            actual[k] += share
        differences = [mean - share for mean, share in zip(expected, actual, strict=True)]
        most = max(range(len(names)), key=lambda k: differences[k])
        if not any(actual) or differences[most] <= MAX_PRIOR_DIFFERENCE:
            return []
        return [
            f"both models together expect {expected[most]:.0%} {names[most]!r}, and the labels of the calibration text say "
            f"{actual[most]:.0%}: on such text a merge that is as sure as they are may have a higher loss than one that is not "
            "aligned, and be more often right. Go by the accuracy and by the calibrated barrier (evaluate-models barrier)"
        ]


# The divergence of a batch, and its kind.
Compared = tuple[Divergence, str]


def score(
    moves: Sequence[Permutation | Transform | Alignment],
    pair: Pair,
    ends: EndpointOutputs | None = None,
    lam: float = 0.5,
) -> tuple[list[float], str]:
    """Return the mean divergence at lam for each candidate alignment of b, and its kind (a key of SCORES); see `divergences`."""
    measured, kind = divergences(moves, pair, ends, lam)
    return [divergence.mean for divergence in measured], kind


def divergences(
    moves: Sequence[Permutation | Transform | Alignment],
    pair: Pair,
    ends: EndpointOutputs | None = None,
    lam: float = 0.5,
) -> tuple[list[Divergence], str]:
    """Return the divergence at lam for each candidate alignment of b, and its kind (a key of SCORES).

    One model between the endpoints is in memory at a time. An alignment may transform a as well, but no axis of an
    output.

    Args:
        moves: the candidates.
        ends: the outputs of the endpoints, if computed already: of this pair, or of one with the same functions.
        lam: b's part of the model between, from 0 to 1.
    """
    ends = ends or EndpointOutputs(pair)
    lines = {name: parse(line) for name, line in pair.spec.outputs.items()}
    begin_phase("choosing which axes move")
    model, measured, kinds = pair.model(pair.a), [], ["kl"]
    # Twins of one set of weights: modules may keep state of their own during a forward pass.
    models = [model, *(twin(model, share_buffers=True) for _ in range(_workers(pair, model) - 1))]
    before: tuple[Transform, Transform] | None = None
    for move in track(moves, "choosing which axes move"):
        transform, maps = (
            (move.transform, move.reference_maps) if isinstance(move, Alignment) else (as_transform(move), {})
        )
        sides = Transform(identity(pair.spec, pair.shapes), maps), transform
        _set_between(model, pair, sides, lam, before)
        before = sides

        def compare(task: tuple[Any, int, Sequence[Mapping[str, Tensor]]], t: Transform = transform) -> Compared:
            runner, k, (a, b) = task
            with torch.inference_mode():
                b = {name: apply_transform_axes(lines[name], t, value) for name, value in b.items()}
                between = outputs_of(pair, runner(**in_dtype(pair.batches[k], torch.float32)))
                return divergence_by_text(a, b, between, scored_tokens(pair, k), lam)

        compared: list[Compared] = []
        for start in range(0, len(pair.batches), len(models)):
            numbers = range(start, min(start + len(models), len(pair.batches)))
            with torch.inference_mode():
                tasks = [(runner, k, ends(k)) for runner, k in zip(models, numbers, strict=False)]
            compared += in_parallel(compare, tasks)
        kinds = [kind for _, kind in compared]
        measured.append(reduce(operator.add, (each for each, _ in compared)))
    return measured, kinds[-1]


def _workers(pair: Pair, model: Any) -> int:
    """Return how many batches are run beside each other."""
    return min(torch.get_num_threads(), MAX_WORKERS, len(pair.batches)) if runs_beside_others(model) else 1


def _set_between(
    model: Any, pair: Pair, sides: tuple[Transform, Transform], lam: float, before: tuple[Transform, Transform] | None
) -> None:
    """Give the model the weights (1 - lam) a + lam b after the transforms of a and b.

    Args:
        before: the transforms of the weights that it has; tensors that these move alike are left as they are.
    """
    a, b = (moved_when_read(pair.spec, t, side) for t, side in zip(sides, (pair.a, pair.b), strict=True))
    state = model.state_dict()

    def fill(name: str) -> None:
        out = state[pair.written_name(name)]
        if not pair.a[name].is_floating_point():
            out.copy_(a[name])
        elif out.device.type == "cpu":
            torch.mul(a[name].float(), 1 - lam, out=out).add_(b[name].float(), alpha=lam)
        else:
            out.copy_((1 - lam) * a[name].float() + lam * b[name].float())

    def same(name: str) -> bool:
        axes = [axis for item in pair.spec.axes(name) for axis in map_axes(item)]
        return before is not None and all(_moves_alike(t, u, axes) for t, u in zip(sides, before, strict=True))

    names = [name for name in pair.a if not same(name)]
    for start in range(0, len(names), FILLED_AT_ONCE):
        in_parallel(fill, names[start : start + FILLED_AT_ONCE])
        pair.release_pages()  # or both files would be in memory beside the model between


def _moves_alike(t: Transform, u: Transform, axes: Iterable[str]) -> bool:
    """Return whether two transforms do the same to these axes."""
    orders = [(t.permutation.indices.get(axis), u.permutation.indices.get(axis)) for axis in axes]
    maps = [(t.maps.get(axis), u.maps.get(axis)) for axis in axes]
    return all(x is y or (x is not None and y is not None and torch.equal(x, y)) for x, y in orders + maps)
