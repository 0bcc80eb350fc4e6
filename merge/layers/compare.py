"""A table of edited models: for each plan the layers, size, speed and score, held against the full model and no layer."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.modules import is_module_tensor
from merge.errors import CheckpointError, UsageError
from merge.layers.assembly import Assembly, assemble
from merge.layers.plans.formatted import format_plan
from merge.layers.plans.plan import LayerPlan
from merge.layers.repair.repair import RepairSettings, repaired
from merge.progress import track
from merge.text.source import TextSource

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from merge.layers.strategies.agreement import Outputs

AssemblyScore = Callable[[Assembly], float]  # larger is better


@dataclass(frozen=True)
class Entry:
    """One row that is asked for: a label, the plan, and the repair that follows."""

    label: str
    plan: LayerPlan
    repair: RepairSettings


@dataclass(frozen=True)
class Row:
    """One edited model.

    Attributes:
        plan: as text; "none" for the model without layers.
        layers, parameters: how many it has.
        seconds: of its forward passes over the text.
        speed: how many times as fast as the full model; None for the model without layers.
        score, percent: its score, and as a share of the full model's.
        above_floor: (score - floor) / (full - floor) in percent: 0 for a model as good as no layer at all.
        cosine, rsa: agreement with the full model on the text, without labels.
        repair: what was done to it, in sentences.
    """

    label: str
    plan: str
    layers: int
    parameters: int
    seconds: float | None
    speed: float | None
    score: float
    percent: float | None
    above_floor: float | None
    cosine: float
    rsa: float
    repair: str = ""


@dataclass(frozen=True)
class Comparison:
    """The table.

    Attributes:
        rows: the full model, every plan in order, and the model without layers where the family can have none.
        score: what the score is.
        text: what speed and agreement are measured on.
        notes: for the user.
    """

    rows: tuple[Row, ...]
    score: str
    text: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON holds it."""
        rows = [asdict(row) for row in self.rows]
        return {"score": self.score, "text": self.text, "rows": rows, "notes": list(self.notes)}

    def to_csv(self) -> str:
        """Return the table as CSV with a header."""
        out = io.StringIO()
        writer = csv.DictWriter(out, list(asdict(self.rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        return out.getvalue()

    def __str__(self) -> str:
        width = max(len(row.label) for row in self.rows)
        head = f"{'':{width}}  layers  parameters   speed    score  % of full  % above floor  cosine    rsa"
        lines = [f"score: {self.score}; speed and agreement on {self.text}", head]
        for row in self.rows:
            speed = "-" if row.speed is None else f"{row.speed:.2f}x"
            shares = ["-" if x is None else f"{x:.1f}" for x in (row.percent, row.above_floor)]
            lines.append(
                f"{row.label:{width}}  {row.layers:6}  {row.parameters:10,}  {speed:>6}  {row.score:7.4f}  {shares[0]:>9}  "
                f"{shares[1]:>13}  {row.cosine:6.3f}  {row.rsa:5.3f}"
            )
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Return a figure of score against number of layers, with the floor as a line."""
        from merge.layers.compare_figure import comparison_figure

        return comparison_figure([(row.label, row.layers, row.score) for row in self.rows], self.score)


def entries_of(plans: Sequence[tuple[str, LayerPlan]], settings: RepairSettings) -> list[Entry]:
    """Return a row for every plan as it is and, where the settings repair or heal, one for each of these."""
    plain, entries = RepairSettings(text=settings.text), []
    for label, plan in plans:
        entries.append(Entry(label, plan, plain))
        if settings.kind != "none":
            entries.append(Entry(f"{label}, {settings.kind}", plan, replace(settings, heal_steps=0)))
        if settings.heal_steps:
            words = f"{settings.kind} + " if settings.kind != "none" else ""
            entries.append(Entry(f"{label}, {words}{settings.heal_steps} steps", plan, settings))
    return entries


def compare_plans(
    models: Sequence[Checkpoint],
    names: Sequence[str],
    entries: Sequence[Entry],
    text: TextSource,
    measure: str = "cosine",
    score: AssemblyScore | None = None,
    score_name: str = "score",
    stack: str = "",
) -> Comparison:
    """Return the table of plans, the full first model above it and that model without layers below.

    Args:
        models: whole, as `opened_whole` returns them.
        names: of the models in plans.
        measure: the label-free score (cosine, rsa, kl) where no score is given.
        score: of an edited model, larger is better; the label-free one when None.
    Raises:
        UsageError: there is nothing to compare, or the measure is unknown.
    """
    from merge.layers.stacks import layer_count
    from merge.layers.strategies.agreement import agreement, outputs_of
    from merge.layers.strategies.choose import read_batches

    if not entries:
        raise UsageError("there is nothing to compare: give plans, or strategies with counts.")
    batches, source, notes = read_batches(models[0], text, stack, "a comparison")
    total = layer_count(models[0].config, stack)
    full_assembly = assemble(models[:1], LayerPlan.keep(range(total), stack))
    model = full_assembly.build()
    outputs_of(model, batches[:1], stack)  # the first pass of a process is slower than others
    full = outputs_of(model, batches, stack)
    agreement(full, full, measure)
    del model
    scored = _scorer(score, full, measure)
    top = scored(full_assembly, full)
    floor, floor_row, floor_notes = _floor(models, stack, batches, full, scored, score is None, measure)
    rows = [_row("full model", full_assembly, names, full, full, top, top, floor)]
    for entry in track(list(entries), "comparing plans"):
        used = _used(models, entry.plan)
        done = repaired(used, entry.plan, entry.repair)
        outputs = outputs_of(done.assembly.build(), batches, stack)
        value = scored(done.assembly, outputs)
        row = _row(entry.label, done.assembly, names, outputs, full, value, top, floor)
        rows.append(Row(**{**asdict(row), "repair": "; ".join(done.sentences)}))
        notes = (*notes, *(f"{entry.label}: {note}" for note in done.notes if note not in notes))
    named = score_name if score is not None else f"{measure} to the full model"
    return Comparison((*rows, *floor_row), named, source, tuple(dict.fromkeys((*notes, *floor_notes))))


def _used(models: Sequence[Checkpoint], plan: LayerPlan) -> Sequence[Checkpoint]:
    """Return the models up to the last one that a plan names."""
    return models[: 1 + max(model for sources in plan.layers for model, _ in sources)]


def _scorer(score: AssemblyScore | None, full: Outputs, measure: str) -> Callable[[Assembly, Outputs], float]:
    from merge.layers.strategies.agreement import agreement

    if score is None:
        return lambda _, outputs: agreement(full, outputs, measure)
    return lambda assembly, _: float(score(assembly))


def _floor(
    models: Sequence[Checkpoint],
    stack: str,
    batches: Sequence[Any],
    full: Outputs,
    scored: Callable[[Assembly, Outputs], float],
    label_free: bool,
    measure: str,
) -> tuple[float | None, tuple[Row, ...], tuple[str, ...]]:
    """Return the score of the first model without its layers, its row, and a note where there is none."""
    from merge.layers.activations import live_layers, live_model
    from merge.layers.strategies.agreement import Outputs, agreement, floor_embeddings

    outputs = Outputs(floor_embeddings(live_layers(live_model(models[0]), stack), batches), None, math.nan)
    if outputs.embeddings.shape != full.embeddings.shape:
        return None, (), ("no floor: the states before the first layer have another width than those after the last",)
    if label_free and measure == "kl":
        return None, (), ("no floor: kl compares logits, which embeddings alone do not give",)
    try:
        assembly = assemble(models[:1], LayerPlan.none(stack))
        floor = scored(assembly, outputs)
    except (UsageError, CheckpointError) as error:
        return None, (), (f"no floor: {error}",)
    cosine, rsa = (agreement(full, outputs, name) for name in ("cosine", "rsa"))
    return floor, (Row("no layer", "none", 0, parameters(assembly), None, None, floor, None, 0.0, cosine, rsa),), ()


def _row(
    label: str,
    assembly: Assembly,
    names: Sequence[str],
    outputs: Outputs,
    full: Outputs,
    value: float,
    top: float,
    floor: float | None,
) -> Row:
    from merge.layers.strategies.agreement import agreement

    above = None if floor is None or top == floor else 100 * (value - floor) / (top - floor)
    return Row(
        label,
        format_plan(assembly.plan, names),
        len(assembly.plan.layers),
        parameters(assembly),
        outputs.seconds,
        full.seconds / outputs.seconds,
        value,
        100 * value / top if top > 0 else None,
        above,
        agreement(full, outputs, "cosine"),
        agreement(full, outputs, "rsa"),
    )


def parameters(assembly: Assembly) -> int:
    """Return the number of values in the weights of an assembly, its modules left out."""
    stored = [
        assembly.models[pairs[0][0]].tensors[pairs[0][1]]
        for name, pairs in assembly.tensors.sources.items()
        if not is_module_tensor(name)
    ]
    return sum(math.prod(each.shape) for each in stored if not each.is_integer)
