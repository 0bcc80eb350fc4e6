"""The two parts of a stitch joined: the map is fitted, and written into a layer or into the bottom model's own tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from merge.checkpoints.modules import is_module_tensor
from merge.errors import UsageError
from merge.layers.assembly import Assembly
from merge.layers.plans.plan import LayerPlan
from merge.layers.stitching.kinds import MAPS, RIDGES, UNFITTED
from merge.layers.stitching.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

    from merge.layers.activations import LiveLayers
    from merge.layers.stitching.adapter import AddedLayer, NormedLayer
    from merge.layers.stitching.maps import StateMap
    from merge.layers.stitching.pairs import Reader, Rows, StitchText


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


def planned(layout: Layout) -> Joined:
    """Return what a dry run shows."""
    from merge.layers.activations import check_reads_text

    notes: tuple[str, ...] = ()
    if layout.settings.kind not in UNFITTED:
        check_reads_text(layout.source, "", "the fit of a map")
        notes = ("a dry run fits nothing",)
    return Joined(layout.plan(), sentences=(_how(layout),), notes=notes)


def _how(layout: Layout) -> str:
    way = "in a layer of its own" if layout.layered else "without a layer of its own"
    return f"between them the map {layout.settings.kind} ({MAPS[layout.settings.kind]}), {way}"


def joined(layout: Layout) -> Joined:
    """Return the fitted map as it is written."""
    plan = layout.plan()
    if layout.settings.kind in UNFITTED:
        return Joined(plan, sentences=(_how(layout),))
    from merge.layers.activations import check_reads_text, live_layers, live_model
    from merge.layers.stitching.pairs import read_text

    for model in (layout.source, layout.top):
        check_reads_text(model, "", "the fit of a map")
    text = read_text(layout.source, layout.settings.text)
    live = live_layers(live_model(layout.source)), live_layers(live_model(layout.top))
    if not layout.layered:
        return _moved(layout, plan, text, live)
    return _in_layer(layout, plan, text, live)


def _rows(
    layout: Layout,
    text: StitchText,
    live: tuple[LiveLayers, LiveLayers],
    readers: tuple[Reader, Reader] | None = None,
) -> Iterator[Rows]:
    from merge.layers.stitching.pairs import AS_READ, matched_tokens, same_tokens

    if layout.settings.tokens == "offsets":
        return matched_tokens((layout.source, layout.top), live, layout.settings.at, text, readers or AS_READ)
    return same_tokens(live, layout.settings.at, text.batches, readers or AS_READ)


def _moved(layout: Layout, plan: LayerPlan, text: StitchText, live: tuple[LiveLayers, LiveLayers]) -> Joined:
    """Return the join by another order or basis of the bottom model's units."""
    from merge.layers.repair.ridge import NormalEquations
    from merge.layers.stitching.maps import fit_map, fit_rotation
    from merge.layers.stitching.reordered import reordered, rotated, rotation_group

    sums: NormalEquations | None = None
    for x, y, _ in _rows(layout, text, live):
        sums = sums or NormalEquations(x.shape[1], y.shape[1])
        sums.add(x.double(), y.double())
    if sums is None:
        raise UsageError("no token of the text is read alike by both tokenizers, so nothing can be fitted.")
    if layout.settings.kind == "permutation":
        fitted = fit_map("permutation", sums, NormalEquations(len(sums.xx) - 1, len(sums.y)), RIDGES)
        assert fitted.order is not None
        tensors = reordered(layout.source, fitted.order)
    else:
        fitted = fit_rotation(sums, fixes_ones=rotation_group(layout.source) == "orthogonal_one")
        tensors = rotated(layout.source, fitted.weight)
    names = dict(zip(layout.source.tensors, layout.bottom.tensors, strict=True))
    moved = {names[name]: tensor for name, tensor in tensors.items()}
    rest = {n: layout.bottom.tensor(n) for n in layout.bottom.tensors if n not in moved or is_module_tensor(n)}
    facts, sentences = _record(layout, fitted, text)
    return Joined(plan, {0: {**rest, **moved}}, {}, facts, sentences, text.notes)


def _in_layer(layout: Layout, plan: LayerPlan, text: StitchText, live: tuple[LiveLayers, LiveLayers]) -> Joined:
    """Return the join by a layer that holds the map."""
    from merge.layers.stitching.adapter import added_layer, fit_added, fit_normed, normed_layer

    index, assembly = layout.settings.at[0], layout.assembled(plan)
    ridges = RIDGES if layout.settings.ridge is None else (layout.settings.ridge,)
    layer: NormedLayer | AddedLayer
    if layout.norm_last:
        layer = normed_layer(assembly, layout.settings, index, live)
        fitted = fit_normed(layer, _rows(layout, text, live, layer.readers), layout.settings, ridges)
    else:
        layer = added_layer(assembly, index)
        if layout.settings.tokens == "offsets":
            raise UsageError("--match-tokens offsets: where norms come first, a map is fitted on equal tokens only.")
        fitted = fit_added(layer, live[1], text.batches, layout.settings, ridges)
    facts, sentences = _record(layout, fitted, text)
    if layout.settings.refine != "none":
        fitted, added, words = _refined(layout, layer, assembly, fitted, text, live[1])
        facts, sentences = {**facts, **added}, (*sentences, *words)
    return Joined(plan, {}, layer.tensors(fitted.weight, fitted.constant), facts, sentences, text.notes)


def _refined(
    layout: Layout,
    layer: NormedLayer | AddedLayer,
    assembly: Assembly,
    fitted: StateMap,
    text: StitchText,
    top: LiveLayers,
) -> tuple[StateMap, dict[str, Any], tuple[str, ...]]:
    from merge.layers.stitching.refine import Work, refine

    samples, classes, source = text.samples, list[int](), text.source
    if layout.settings.label_column is not None:
        from merge.text.labelled import draw_examples, gold_of

        examples = draw_examples(layout.settings.text, layout.settings.label_column)
        samples, classes, source = examples.texts, gold_of(examples, layout.top), examples.source
    start = assembly.with_computed(layer.tensors(fitted.weight, fitted.constant))
    work = Work(start, layer.tensors, layout.settings.at[0], top, samples, classes)
    refined, done = refine(work, fitted, layout.settings)
    return refined, {"refined": {**done.to_json(), "text": source}}, (f"{done.words}, on {source}",)


def _record(layout: Layout, fitted: StateMap, text: StitchText) -> tuple[dict[str, Any], tuple[str, ...]]:
    moved = None if fitted.order is None else int((fitted.order != fitted.order.sort().values).sum())
    facts = {"text": text.source, "tokens": fitted.tokens, "explained": fitted.explained, "ridge": fitted.ridge}
    facts["units_moved"] = moved
    ridge = f", ridge {fitted.ridge:g}" if fitted.ridge is not None else ""
    units = f", {moved} of {len(fitted.constant)} units moved" if moved is not None else ""
    explained = f", R2 {fitted.explained:.4f}" if fitted.explained is not None else ""
    pieces = "pieces of text that tokens of both make up" if layout.settings.tokens == "offsets" else "tokens"
    sentence = f"{_how(layout)}: fitted on {fitted.tokens:,} {pieces} of {text.source}{ridge}{units}{explained}"
    return {key: value for key, value in facts.items() if value is not None}, (sentence,)
