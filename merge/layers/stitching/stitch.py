"""Stitch two models: the bottom layers of one, a fitted map, the top layers of the other, as one standard checkpoint.

Source: Bansal, Nakkiran and Barak 2021, arXiv:2106.07682.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.modules import is_module_tensor
from merge.disk.staging import output_notes
from merge.errors import MergeError, UsageError
from merge.layers.assembly import Assembly, assemble
from merge.layers.edit import opened_whole, write_assembly
from merge.layers.parts import parts_of
from merge.layers.plans.making import Making
from merge.layers.plans.plan import LayerPlan
from merge.layers.plans.text import model_letter
from merge.layers.record import EditReport, Made
from merge.layers.stacks import layer_count
from merge.layers.stitching.fit_together import check_models, check_pair, with_names_of, with_own_head
from merge.layers.stitching.kinds import MAPS, RIDGES, UNFITTED, StitchSettings

if TYPE_CHECKING:
    from torch import Tensor

    from merge.layers.activations import LiveLayers
    from merge.layers.stitching.adapter import AddedLayer, NormedLayer
    from merge.layers.stitching.maps import StateMap
    from merge.layers.stitching.pairs import Rows, StitchText

TOOL = "stitch-models"


@dataclass(frozen=True)
class Joined:
    """How the two parts are joined.

    Attributes:
        plan: the layers of the output.
        moved: tensors of the bottom model where its units were put into another order or basis.
        computed: tensors of the layer that holds the map, by output name.
        facts, sentences, notes: for the manifest, terminal and card, and the user.
    """

    plan: LayerPlan
    moved: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    computed: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    sentences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def stitch_models(
    a: Checkpoint,
    b: Checkpoint,
    settings: StitchSettings,
    output: Path,
    force: bool = False,
    dry_run: bool = False,
    names: Sequence[str] = (),
) -> EditReport:
    """Write the stitch of two models and check that it loads; with `dry_run` only return the report.

    Embeddings and tokenizer are those of the bottom model, class, head and sentence-transformers modules those of the top one.

    Args:
        a, b: bottom and top.
        names: of the models in the plan's text; A and B where there are none.
    Raises:
        MergeError: a subclass for every error in input or output; no incomplete output is left.
    """
    begun = time.monotonic()
    faults = output_notes(output, force, [a.folder, b.folder], dry_run)
    bottom, top = opened_whole((a, b))
    check_models(bottom, top, settings)
    top, head_notes = with_own_head(top, bottom)
    work = Work.of(bottom, top, settings)
    work.check()
    joined = work.planned() if dry_run else work.joined()
    assembly = work.assembled(joined.plan, joined.moved)
    if joined.computed:
        assembly = assembly.with_computed(joined.computed)
    k, m = settings.at
    lower = {0: "no layer", 1: "the first layer"}.get(k, f"the first {k} layers")
    parts = f"{lower} of {a.source}, then {b.source} from layer {m} on"
    said = (
        parts if m < layer_count(b.config) else f"{lower} of {a.source}, then the head of {b.source}",
        *joined.sentences,
    )
    made = Made(
        None,
        tuple(names) or tuple(map(model_letter, range(2))),
        {"stitch": {"at": list(settings.at), "map": settings.kind, "tokens": settings.tokens, **joined.facts}},
        said,
        (*faults, *head_notes, *joined.notes),
        TOOL,
    )
    report = write_assembly(assembly, output, force, dry_run, made)
    return replace(report, seconds=time.monotonic() - begun)


@dataclass
class Work:
    """The making of one stitch.

    Attributes:
        bottom, top: whole; `source` is the bottom model under its own names.
        layered: whether the map takes a layer of its own.
    """

    source: Checkpoint
    bottom: Checkpoint
    top: Checkpoint
    settings: StitchSettings
    layered: bool

    @classmethod
    def of(cls, bottom: Checkpoint, top: Checkpoint, settings: StitchSettings) -> Work:
        """Return the work, with the way that the map is written in."""
        return cls(bottom, with_names_of(bottom, top), top, settings, _takes_layer(bottom, settings))

    @property
    def norm_last(self) -> bool:
        return parts_of(self.bottom.config).norm_last

    def plan(self) -> LayerPlan:
        """Return the layers of the output."""
        (k, m), total = self.settings.at, layer_count(self.top.config)
        layers: list[tuple[tuple[int, int], ...]] = [((0, layer),) for layer in range(k)]
        makings: list[Making | None] = [None] * k
        if self.layered:
            layers.append(((1, max(m - 1, 0)),))
            makings.append(Making("affine", states=(k, m), reads=0))
        layers += [((1, layer),) for layer in range(m, total)]
        makings += [None] * (total - m)
        if self.bottom.model_type == "albert" and self.layered and k:
            makings[k - 1] = Making("mean", (1.0,))  # a layer of its own, as the norm that it ends in changes
        return LayerPlan(tuple(layers), makings=tuple(makings) if any(makings) else ())

    def assembled(self, plan: LayerPlan, moved: Mapping[int, Mapping[str, Tensor]] | None = None) -> Assembly:
        """Return the assembly of the plan, by headers alone."""
        return assemble(
            (self.bottom, self.top), plan, moved, fits=lambda first, other: check_pair(first, other, self.settings)
        )

    def check(self) -> None:
        """Stop where the map cannot be written, before anything is read.

        Raises:
            UsageError: says why.
        """
        (k, m), total = self.settings.at, layer_count(self.top.config)
        if not self.layered and (k == 0 or m == total):
            whose, other = (self.source, "A") if k == 0 else (self.top, "B")
            raise UsageError(
                f"--at {self.settings.words} keeps no layer of {whose.source} ({other}), and --map {self.settings.kind} adds "
                "none."
            )
        if not self.layered and self.settings.refine != "none":
            raise UsageError(
                f"--refine {self.settings.refine}: here --map {self.settings.kind} moves the units of {self.source.source} and "
                "has no layer of its own to refine. Leave it out, or use --map affine."
            )
        assembly = self.assembled(self.plan())
        if not self.layered:
            return
        from merge.layers.repair.affine import check_affine, check_linear_feed_forward
        from merge.layers.stitching.adapter import own_projection

        parts, family = assembly.parts, self.top.model_type
        if not self.norm_last:
            self._check_added(family)
        try:
            check_affine(assembly)
            check_linear_feed_forward(assembly)
        except UsageError as error:
            raise UsageError(
                f"--map {self.settings.kind} takes a layer of its own: {error} --map identity and permutation need none; "
                "evaluate-models stitch measures every map unwritten."
            ) from None
        projection = own_projection(assembly, k)
        if not parts.norm_last and projection.bias is None:
            raise UsageError(
                f"layers of this {family} have no biases, so that a map with a constant cannot be written."
            )
        from merge.layers.stitching.norms import norm_names

        if parts.norm_last and norm_names(self.top, m) is None:
            raise UsageError(
                f"--at {self.settings.words}: a layer of {family} ends in a norm, but none writes what layer 0 of "
                f"{self.top.source} reads. Cut it at 1 or above."
            )

    def _check_added(self, family: str) -> None:
        from merge.layers.stitching.reordered import can_reorder, rotation_refusal

        parts, kind = parts_of(self.bottom.config), self.settings.kind
        refusal = rotation_refusal(self.source)
        if kind in ("permutation", "orthogonal"):
            why = (
                f": {refusal}"
                if refusal and kind == "orthogonal"
                else ": no table says which axes are units of its stream."
            )
            raise UsageError(
                f"--map {kind} cannot be written for {self.source.source} ({self.source.architecture}){why} evaluate-models "
                "stitch measures it unwritten."
            )
        if parts.sandwich or parts.up is None:
            why = "norms what it adds" if parts.sandwich else "is gated, and a gate bends every map"
            others = ["identity", *["permutation"] * can_reorder(self.source), *["orthogonal"] * (refusal is None)]
            raise UsageError(
                f"--map {kind} cannot be written: norms of {family} come first, and its feed-forward part {why}. Maps that need "
                f"no layer can: {', '.join(others)}. evaluate-models stitch measures every map unwritten."
            )

    def planned(self) -> Joined:
        """Return what a dry run shows."""
        from merge.layers.activations import check_reads_text

        notes: tuple[str, ...] = ()
        if self.settings.kind not in UNFITTED:
            check_reads_text(self.source, "", "the fit of a map")
            notes = ("a dry run fits nothing",)
        return Joined(self.plan(), sentences=(self._how(),), notes=notes)

    def _how(self) -> str:
        way = "in a layer of its own" if self.layered else "without a layer of its own"
        return f"between them the map {self.settings.kind} ({MAPS[self.settings.kind]}), {way}"

    def joined(self) -> Joined:
        """Return the fitted map as it is written."""
        plan = self.plan()
        if self.settings.kind in UNFITTED:
            return Joined(plan, sentences=(self._how(),))
        from merge.layers.activations import check_reads_text, live_layers, live_model
        from merge.layers.stitching.pairs import read_text

        for model in (self.source, self.top):
            check_reads_text(model, "", "the fit of a map")
        text = read_text(self.source, self.settings.text)
        live = live_layers(live_model(self.source)), live_layers(live_model(self.top))
        if not self.layered:
            return self._moved(plan, text, live)
        return self._in_layer(plan, text, live)

    def _rows(self, text: StitchText, live: tuple[LiveLayers, LiveLayers]) -> Iterator[Rows]:
        from merge.layers.stitching.pairs import matched_tokens, same_tokens

        if self.settings.tokens == "offsets":
            return matched_tokens((self.source, self.top), live, self.settings.at, text)
        return same_tokens(*live, self.settings.at, text.batches)

    def _moved(self, plan: LayerPlan, text: StitchText, live: tuple[LiveLayers, LiveLayers]) -> Joined:
        """Return the join by another order or basis of the bottom model's units."""
        from merge.layers.repair.ridge import NormalEquations
        from merge.layers.stitching.maps import fit_map, fit_rotation
        from merge.layers.stitching.reordered import reordered, rotated, rotation_group

        sums: NormalEquations | None = None
        for x, y, _ in self._rows(text, live):
            sums = sums or NormalEquations(x.shape[1], y.shape[1])
            sums.add(x.double(), y.double())
        if sums is None:
            raise UsageError("no token of the text is read alike by both tokenizers, so nothing can be fitted.")
        if self.settings.kind == "permutation":
            fitted = fit_map("permutation", sums, NormalEquations(len(sums.xx) - 1, len(sums.y)), RIDGES)
            assert fitted.order is not None
            tensors = reordered(self.source, fitted.order)
        else:
            fitted = fit_rotation(sums, fixes_ones=rotation_group(self.source) == "orthogonal_one")
            tensors = rotated(self.source, fitted.weight)
        names = dict(zip(self.source.tensors, self.bottom.tensors, strict=True))
        moved = {names[name]: tensor for name, tensor in tensors.items()}
        rest = {n: self.bottom.tensor(n) for n in self.bottom.tensors if n not in moved or is_module_tensor(n)}
        facts, sentences = self._record(fitted, text)
        return Joined(plan, {0: {**rest, **moved}}, {}, facts, sentences, text.notes)

    def _in_layer(self, plan: LayerPlan, text: StitchText, live: tuple[LiveLayers, LiveLayers]) -> Joined:
        """Return the join by a layer that holds the map."""
        from merge.layers.stitching.adapter import added_layer, fit_added, fit_normed, normed_layer

        index, assembly = self.settings.at[0], self.assembled(plan)
        ridges = RIDGES if self.settings.ridge is None else (self.settings.ridge,)
        layer: NormedLayer | AddedLayer
        if self.norm_last:
            layer = normed_layer(assembly, self.settings, index, live)
            fitted = fit_normed(layer, self._rows(text, live), self.settings, ridges)
        else:
            layer = added_layer(assembly, index)
            if self.settings.tokens == "offsets":
                raise UsageError(
                    "--match-tokens offsets: where norms come first, a map is fitted on equal tokens only."
                )
            fitted = fit_added(layer, live[1], text.batches, self.settings, ridges)
        facts, sentences = self._record(fitted, text)
        if self.settings.refine != "none":
            fitted, more, said = self._refined(layer, assembly, fitted, text, live[1])
            facts, sentences = {**facts, **more}, (*sentences, *said)
        return Joined(plan, {}, layer.tensors(fitted.weight, fitted.constant), facts, sentences, text.notes)

    def _refined(
        self, layer: NormedLayer | AddedLayer, assembly: Assembly, fitted: StateMap, text: StitchText, top: LiveLayers
    ) -> tuple[StateMap, dict[str, Any], tuple[str, ...]]:
        from merge.layers.stitching.refine import Work as Refinement
        from merge.layers.stitching.refine import refine

        samples, classes, source = text.samples, list[int](), text.source
        if self.settings.label_column is not None:
            from merge.text.labelled import draw_examples, gold_of

            examples = draw_examples(self.settings.text, self.settings.label_column)
            samples, classes, source = examples.texts, gold_of(examples, self.top), examples.source
        start = assembly.with_computed(layer.tensors(fitted.weight, fitted.constant))
        work = Refinement(start, layer.tensors, self.settings.at[0], top, samples, classes)
        refined, done = refine(work, fitted, self.settings)
        return refined, {"refined": {**done.to_json(), "text": source}}, (f"{done.words}, on {source}",)

    def _record(self, fitted: StateMap, text: StitchText) -> tuple[dict[str, Any], tuple[str, ...]]:
        moved = None if fitted.order is None else int((fitted.order != fitted.order.sort().values).sum())
        facts = {"text": text.source, "tokens": fitted.tokens, "explained": fitted.explained, "ridge": fitted.ridge}
        facts["units_moved"] = moved
        ridge = f", ridge {fitted.ridge:g}" if fitted.ridge is not None else ""
        units = f", {moved} of {len(fitted.constant)} units moved" if moved is not None else ""
        explained = f", R2 {fitted.explained:.4f}" if fitted.explained is not None else ""
        pieces = "pieces of text that tokens of both make up" if self.settings.tokens == "offsets" else "tokens"
        sentence = f"{self._how()}: fitted on {fitted.tokens:,} {pieces} of {text.source}{ridge}{units}{explained}"
        return {key: value for key, value in facts.items() if value is not None}, (sentence,)


def _takes_layer(bottom: Checkpoint, settings: StitchSettings) -> bool:
    """Return whether a map takes a layer of its own: none where the units of the bottom model can be moved instead."""
    from merge.layers.stitching.reordered import can_reorder, rotation_group

    if settings.kind == "identity":
        return False
    if settings.kind == "permutation":
        return not can_reorder(bottom)
    try:
        first = not parts_of(bottom.config).norm_last
    except MergeError:
        return True
    return not (settings.kind == "orthogonal" and first and rotation_group(bottom) is not None)
