"""Make an edited model from a plan and the repairs that go with it: fitted layers, seams, healing steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.errors import CalibrationError, UsageError, nearest
from merge.layers.activations import LiveLayers, check_reads_text, live_layers, split_batches, states_of
from merge.layers.assembly import Assembly, assemble
from merge.layers.plans.numbers import format_layers
from merge.layers.plans.plan import LayerPlan
from merge.layers.repair.affine_plan import is_affine, with_affine_layers, without_folds
from merge.layers.repair.seams import Seam, find_seams
from merge.layers.stacks import layer_count
from merge.text.source import TextSource

if TYPE_CHECKING:
    from torch import Tensor

    from merge.checkpoints.inputs import Batch
    from merge.layers.repair.heal import Healing
    from merge.text.calibration import CalibrationText

REPAIRS = ("none", "auto", "seam", "affine")


@dataclass(frozen=True)
class RepairSettings:
    """What is done for the layers that a plan leaves out.

    Attributes:
        kind: none; seam: the layer below each seam is refitted; affine: a fitted layer takes the place of each block that is
            left out; auto: seam, unless the plain model is nearer to the full one on held-out text.
        text: what layers are fitted and healed on.
        ridge: of every fit; chosen on held-out text when None.
        heal_steps: steps of distillation from the full model afterwards.
        heal_rate: of their optimiser.
    """

    kind: str = "none"
    text: TextSource = field(default_factory=TextSource)
    ridge: float | None = None
    heal_steps: int = 0
    heal_rate: float = 2e-4

    def __post_init__(self) -> None:
        if self.kind not in REPAIRS:
            raise UsageError(f"unknown repair {self.kind!r}.{nearest(self.kind, REPAIRS)}")
        if self.ridge is not None and not 0 <= self.ridge < float("inf"):
            raise UsageError(f"a ridge is a finite number of at least 0, found {self.ridge}.")
        if self.heal_steps < 0 or not 0 < self.heal_rate < float("inf"):
            raise UsageError(
                f"healing takes a number of steps and a rate above 0, found {self.heal_steps} and {self.heal_rate}."
            )


@dataclass(frozen=True)
class Repaired:
    """An assembly with its fitted tensors.

    Attributes:
        facts: figures for the manifest.
        sentences: what was done, for terminal and card.
        notes: for the user.
    """

    assembly: Assembly
    facts: Mapping[str, Any]
    sentences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def repaired(
    models: Sequence[Checkpoint],
    plan: LayerPlan,
    settings: RepairSettings | None = None,
    moved: Mapping[int, Mapping[str, Tensor]] | None = None,
    dry_run: bool = False,
) -> Repaired:
    """Return the assembly of a plan, with its affine layers fitted, its seams repaired and its weights healed.

    Args:
        models: whole, as `opened_whole` returns them.
        settings: nothing is repaired when None.
        moved: tensors of models that were aligned.
        dry_run: whether to check the plan alone; nothing is measured.
    Raises:
        UsageError, MismatchError: the plan or the repair asks for what the architecture cannot have.
        CalibrationError: the text cannot be read, or is too short.
    """
    settings = settings or RepairSettings()
    totals = [layer_count(model.config, plan.stack) for model in models]
    notes: tuple[str, ...] = ()
    if settings.kind == "affine":
        plan, notes = with_affine_layers(plan, totals)
    plan, folds = without_folds(plan, models)
    assembly = assemble(models, plan, moved)
    fitted = [index for index in range(len(plan.layers)) if is_affine(plan, index)]
    seams: tuple[Seam, ...] = ()
    if settings.kind in ("seam", "auto"):
        seams, notes = find_seams(plan, totals)
        if not seams:
            notes = (*notes, f"--repair {settings.kind}: the plan leaves no seam that a refit repairs")
    if fitted or folds:
        from merge.layers.repair.affine import check_affine

        check_affine(assembly)
    if not (fitted or folds or seams or settings.heal_steps) or dry_run:
        planned = ("a dry run fits and heals nothing",) if fitted or folds or seams or settings.heal_steps else ()
        return Repaired(assembly, {}, (), (*notes, *planned))
    work = _Work.on(assembly, settings)
    facts: dict[str, Any] = {"text": work.text.source}
    sentences: list[str] = []
    notes = (*notes, *work.text.notes, *work.cut)
    for index in fitted:
        work.fit_layer(index, facts, sentences)
    for index, end in folds:
        work.fold(index, end, facts, sentences)
    if seams:
        notes = (*notes, *work.refit(seams, facts, sentences))
    if settings.heal_steps:
        work.heal(facts, sentences)
    return Repaired(work.assembly, {"repair": facts}, tuple(sentences), notes)


@dataclass
class _Work:
    """The state of a repair: the assembly so far, the text, and the live models that are read."""

    assembly: Assembly
    settings: RepairSettings
    text: CalibrationText
    batches: tuple[Batch, ...]
    cut: tuple[str, ...]
    teachers: dict[int, LiveLayers] = field(default_factory=dict)
    held_states: list[Tensor] = field(default_factory=list)

    @classmethod
    def on(cls, assembly: Assembly, settings: RepairSettings) -> _Work:
        from merge.checkpoints.inputs import load_tokenizer, tokenise
        from merge.text.calibration import read_calibration

        embedder = assembly.embedder
        check_reads_text(embedder, assembly.plan.stack, "a repair")
        text = read_calibration(settings.text, matching=False)
        batches, cut = tokenise(load_tokenizer(embedder.folder), text.samples, embedder.config)
        return cls(assembly, settings, text, batches, cut)

    @property
    def owner(self) -> int:
        """The number of the model that the result is held against."""
        return self.assembly.models.index(self.assembly.owner)

    def teacher(self, number: int) -> LiveLayers:
        """Return a source model, live, in the units of the first."""
        import torch

        from merge.checkpoints.transformers_model import build

        if number not in self.teachers:
            encoder = self.assembly.models[number].encoder
            known = {n for n in encoder.tensors if n not in self.assembly.models[number].extra}
            tensors = {
                encoder.written_name(name): self.assembly.source(number, name)
                for name in known
                if name in encoder.structure.shapes or encoder.written_name(name) in encoder.structure.shapes
            }
            model = build(encoder.config, tensors, torch.float32)
            self.teachers[number] = live_layers(model, self.assembly.plan.stack)
        return self.teachers[number]

    def student(self) -> LiveLayers:
        return live_layers(self.assembly.build(), self.assembly.plan.stack)

    def fit_layer(self, index: int, facts: dict[str, Any], sentences: list[str]) -> None:
        from merge.layers.repair.affine import RIDGES, affine_layer
        from merge.layers.repair.projection import Projection

        teacher, making = self.teacher(self.assembly.plan.layers[index][0][0]), self.assembly.plan.making(index)
        reads = self.teacher(making.reads) if making is not None and making.reads is not None else None
        tensors, fitted = affine_layer(self.assembly, index, teacher, self.batches, self._ridges(RIDGES), reads)
        own = Projection.of(self.assembly, index).layer
        taken = any(not name.startswith(own) for name in tensors)
        self.assembly = self.assembly.with_computed(tensors)
        more = ", which takes over gain and bias of the norm below it" if taken else ""
        self._record("affine", index, fitted, facts, sentences, f"output layer {index} is a fitted map{more}")

    def fold(self, index: int, end: int, facts: dict[str, Any], sentences: list[str]) -> None:
        from merge.layers.repair.affine import RIDGES, folded_map

        teacher = self.teacher(self.assembly.plan.layers[index][0][0])
        ridges = self._ridges(RIDGES)
        tensors, fitted = folded_map(self.assembly, index, self.student(), teacher, end, self.batches, ridges)
        self.assembly = self.assembly.with_computed(tensors)
        what = f"a fitted map is folded into the output projection of layer {index}"
        self._record("affine", index, fitted, facts, sentences, what)

    def refit(self, seams: Sequence[Seam], facts: dict[str, Any], sentences: list[str]) -> tuple[str, ...]:
        """Refit every seam, or with `auto` keep the plain model where that is nearer to the full one; return notes."""
        from merge.layers.repair.seam import RIDGES, refit_facts, refit_seam

        auto, plain = self.settings.kind == "auto", self.assembly
        try:
            student, refits = self.student(), []
            before = self._distance(student)
            for seam in seams:
                teacher = self.teacher(seam.model)
                ridges = self._ridges(RIDGES)
                tensors, refit = refit_seam(self.assembly, student, teacher, seam, self.batches, ridges, whole=not auto)
                self.assembly = self.assembly.with_computed(tensors)
                refits.append(refit)
        except (UsageError, CalibrationError) as error:
            if not auto:
                raise
            self.assembly = plain
            facts["seams"] = []
            return (f"--repair auto: nothing was repaired: {error}",)
        after = self._distance(student)
        facts["seams"] = refit_facts(refits)
        facts["distance"] = {"plain": before, "repaired": after}
        judged = "held-out text" if auto else "every fifth text, which the fit read too"
        figures = (
            f"distance of the last states from the full model's on {judged}: {before:.3f} plain, {after:.3f} refitted"
        )
        if auto and not after < before:
            self.assembly = plain
            facts["kept"] = "plain"
            return (f"--repair auto kept the plain model: {figures}",)
        for refit in refits:
            gone = f", without layers {format_layers(refit.seam.missing)}" if refit.seam.missing else ""
            sentences.append(
                f"seam refit of output layer {refit.seam.index}{gone}: ridge {refit.fitted.ridge:g}, {refit.fitted.rows:,} "
                f"tokens, R2 {refit.fitted.explained:.3f}"
            )
        sentences.append(f"{figures}; on {self.text.source}")
        return ()

    def heal(self, facts: dict[str, Any], sentences: list[str]) -> None:
        from merge.checkpoints.inputs import load_tokenizer, tokenise
        from merge.layers.repair.heal import heal

        embedder, samples = self.assembly.embedder, self.text.samples
        tokenizer = load_tokenizer(embedder.folder)

        def batches_of(numbers: Sequence[int]) -> Sequence[Batch]:
            return tokenise(tokenizer, [samples[number] for number in numbers], embedder.config)[0]

        student, steps, rate = self.assembly.build(), self.settings.heal_steps, self.settings.heal_rate
        seed, teacher = self.settings.text.seed, self.teacher(self.owner).model
        healing: Healing = heal(student, teacher, batches_of, len(samples), steps, rate, seed)
        state = student.state_dict()
        named = {name: self.assembly.owner.written_name(name) for name in self.assembly.tensors.sources}
        trained = {
            name: state[written].detach()
            for name, written in named.items()
            if written in state and state[written].is_floating_point()
        }
        self.assembly = self.assembly.with_computed(trained)
        facts["healing"] = asdict(healing)
        sentences.append(
            f"healed by {healing.steps} steps of distillation from {self.assembly.owner.source} on {self.text.source}: "
            f"{healing.loss} {healing.first:.4f} -> {healing.last:.4f} (AdamW, rate {healing.rate:g}, "
            f"{healing.texts_a_step} texts a step)"
        )

    def _ridges(self, several: Sequence[float]) -> Sequence[float]:
        return several if self.settings.ridge is None else (self.settings.ridge,)

    def _record(
        self, kind: str, index: int, fitted: Any, facts: dict[str, Any], sentences: list[str], what: str
    ) -> None:
        record = {"layer": index, "ridge": fitted.ridge, "tokens": fitted.rows, "explained": fitted.explained}
        facts.setdefault(kind, []).append(record)
        sentences.append(
            f"{what}: ridge {fitted.ridge:g}, {fitted.rows:,} tokens, R2 {fitted.explained:.3f}, on {self.text.source}"
        )

    def _distance(self, student: LiveLayers) -> float:
        """Return `relative_error` of the last states on held-out text, which the fits of ridges leave out."""
        import torch

        from merge.layers.repair.ridge import relative_error

        teacher = self.teacher(self.owner)
        held = [batch for batch, is_held in split_batches(self.batches) if is_held]
        if not held:
            raise CalibrationError("a repair needs at least five texts, one of which is held out. Give more text.")
        if not self.held_states:
            self.held_states = [states_of(teacher, batch, [teacher.total])[teacher.total] for batch in held]
        gap = squares = 0.0
        total, count = torch.zeros(()), 0
        for batch, due in zip(held, (states.double() for states in self.held_states), strict=True):
            given = states_of(student, batch, [student.total])[student.total].double()
            gap += float((given - due).square().sum())
            squares += float(due.square().sum())
            total, count = total + due.sum(0), count + len(due)
        return relative_error(gap, squares, total, count)
