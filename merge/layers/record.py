"""The record of an edit: what it made of which layers, as report, manifest and model card state it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.disk.hashes import file_hash
from merge.disk.versions import installed_version
from merge.layers.assembly import Assembly
from merge.layers.plans.formatted import format_plan
from merge.layers.plans.numbers import format_layers
from merge.layers.plans.plan import LayerPlan, PlannedTensors
from merge.layers.stacks import layer_count
from merge.layers.strategies.importance import LayerImportance
from merge.publish.edited_card import edited_card

MANIFEST = "edit.json"


@dataclass(frozen=True)
class Made:
    """What was measured and changed on the way to an edited model, beside its plan.

    Attributes:
        importance: the layers' importance, if the layers to drop were chosen by it.
        names: the name of each model in the plan's text.
        steps: what was done after the layers were taken (alignment, repair, healing): name -> figures for the manifest.
        sentences: the same in plain sentences, for terminal and card.
        notes: for the user.
        tool: the command that made it.
    """

    importance: LayerImportance | None = None
    names: tuple[str, ...] = ("A",)
    steps: Mapping[str, Any] = field(default_factory=dict)
    sentences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tool: str = "edit-layers"

    @property
    def manifest(self) -> str:
        """The name of the file that states how the model was made."""
        return MANIFEST if self.tool == "edit-layers" else "merge.json"


@dataclass(frozen=True)
class EditReport:
    """The result of an edit, or in a dry run the planned result.

    Attributes:
        assembly: the models, the plan, and the config and tensors of the output.
        made: what was measured and changed on the way.
        notes: notes for the user.
        bytes: size of all tensors written; 0 in a dry run.
    """

    assembly: Assembly
    output: Path
    notes: tuple[str, ...]
    made: Made
    bytes: int
    seconds: float

    @property
    def checkpoint(self) -> Checkpoint:
        """The first model, with the tensors of its sentence-transformers modules."""
        return self.assembly.models[0]

    @property
    def plan(self) -> LayerPlan:
        return self.assembly.plan

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json of the output."""
        return self.assembly.config

    @property
    def tensors(self) -> PlannedTensors:
        """The sources of the output's tensors, and the input tensors left out."""
        return self.assembly.tensors

    @property
    def importance(self) -> LayerImportance | None:
        return self.made.importance

    @property
    def total(self) -> int:
        """The number of layers of the first model."""
        return layer_count(self.checkpoint.config, self.plan.stack)

    @property
    def dropped(self) -> tuple[int, ...]:
        """The layers of the first model that the output lacks; a fitted layer keeps none."""
        makings = [self.plan.making(index) for index in range(len(self.plan.layers))]
        kept = {
            layer
            for making, sources in zip(makings, self.plan.layers, strict=True)
            for model, layer in sources
            if model == 0 and (making is None or making.kind != "affine")
        }
        return tuple(layer for layer in range(self.total) if layer not in kept)

    @property
    def copied(self) -> int:
        """The number of output tensors that are copies, byte for byte."""
        return sum(self.assembly.copied(name) for name in self.tensors.sources)

    @property
    def changed(self) -> dict[str, list[Any]]:
        """Config key -> [before, after]; None where the key is missing."""
        before, after = self.checkpoint.config, self.config
        keys = [*before, *(key for key in after if key not in before)]
        return {k: [before.get(k), after.get(k)] for k in keys if before.get(k) != after.get(k)}


def edit_facts(report: EditReport) -> dict[str, Any]:
    """Return the facts of an edit for manifest and terminal; without times, so that equal edits give equal bytes."""
    owner, names = report.assembly.owner, report.made.names
    return {
        "architecture": owner.architecture,
        "model_type": owner.model_type,
        "models": [
            {
                "source": checkpoint.source,
                "commit": checkpoint.commit,
                "content_hash": checkpoint.encoder.content_hash,
                "files": checkpoint.weight_hashes,
            }
            for checkpoint in report.assembly.models
        ],
        "plan": format_plan(report.plan, names),
        "names": list(names),
        "stack": report.plan.stack or None,
        "layers_before": report.total,
        "layers": report.plan.to_json(),
        "dropped": list(report.dropped),
        **_importance_facts(report.importance),
        "config": report.changed,
        "left_out": [name for _, name in report.tensors.left_out],
        "copied": report.copied,
        "computed": len(report.tensors.sources) - report.copied,
        **report.made.steps,
        "notes": list(report.notes),
    }


def _importance_facts(importance: LayerImportance | None) -> dict[str, Any]:
    """Return what a strategy measured, contribution under its own key as ever."""
    own = importance is not None and importance.strategy == "contribution"
    facts: dict[str, Any] = {"contribution": importance.to_json() if own and importance is not None else None}
    if importance is not None and not own:
        facts["strategy"] = importance.to_json()
    return facts


def manifest(report: EditReport, folder: Path, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Return edit.json: the hash of the input, the sources of the layers, and the hash of every file written.

    Args:
        hashes: of the files that were hashed while they were written.
    """
    packages = ("merge-models", "torch", "transformers", "safetensors")
    versions = {name: installed_version(name) for name in packages}
    names = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    files = {name: hashes.get(name) or file_hash(path) for name, path in names.items()}
    return {"format": 1, **edit_facts(report), "versions": versions, "files": files}


def card(report: EditReport, folder: Path) -> str:
    """Return README.md of the output: what its layers are, how they were made, and of what."""
    made = [_made_of(report)]
    if report.made.sentences:
        made.append("\n".join(["## How it was made", "", *(f"- {line}" for line in report.made.sentences)]))
    models, owner = report.assembly.models, report.assembly.owner
    return edited_card(folder, made, models, owner.architecture, report.made.manifest, report.notes, report.output.name)


def _made_of(report: EditReport) -> str:
    """Return the sentences of a card on what the layers are."""
    plan, total, source = report.plan, report.total, report.checkpoint.source
    computed = len(report.tensors.sources) - report.copied
    count = "1 layer" if len(plan.layers) == 1 else f"{len(plan.layers)} layers"
    if plan.copies and len(report.assembly.models) == 1:
        kept = format_layers([layer for ((_, layer),) in plan.layers])
        what = f"{count}, taken from the {total} of {source} in this order (counted from 0): {kept}."
    else:
        pairs = zip(report.made.names, report.assembly.models, strict=True)
        named = ", ".join(f"{name} = {model.source}" for name, model in pairs)
        what = f"{count} by the plan `{format_plan(plan, report.made.names)}`, with {named}."
    if computed == 0:
        copies = "tensors were copied byte for byte, without training"
        return f"{what} Made with `{report.made.tool}` of merge-models; {copies}."
    return (
        f"{what} Made with `{report.made.tool}` of merge-models; {report.copied} tensors are copies, {computed} were "
        "computed."
    )
