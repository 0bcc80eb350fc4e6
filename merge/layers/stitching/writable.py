"""Whether the map of a stitch can be written at all, by headers alone; each refusal says why, and what can be."""

from __future__ import annotations

from merge.errors import UsageError
from merge.layers.parts import parts_of
from merge.layers.stacks import layer_count
from merge.layers.stitching.layout import Layout


def check_writable(layout: Layout) -> None:
    """Stop where the map cannot be written, before anything is read.

    Raises:
        UsageError: says why.
    """
    (k, m), total = layout.settings.at, layer_count(layout.top.config)
    if not layout.layered and (k == 0 or m == total):
        whose, other = (layout.source, "A") if k == 0 else (layout.top, "B")
        raise UsageError(
            f"--at {layout.settings.words} keeps no layer of {whose.source} ({other}), and --map {layout.settings.kind} adds "
            "none."
        )
    if not layout.layered and layout.settings.refine != "none":
        raise UsageError(
            f"--refine {layout.settings.refine}: here --map {layout.settings.kind} moves the units of {layout.source.source} and "
            "has no layer of its own to refine. Leave it out, or use --map affine."
        )
    assembly = layout.assembled(layout.plan())
    if not layout.layered:
        return
    from merge.layers.repair.affine import check_affine, check_linear_feed_forward
    from merge.layers.stitching.adapter import own_projection

    parts, family = assembly.parts, layout.top.model_type
    if not layout.norm_last:
        _check_added(layout, family)
    try:
        check_affine(assembly)
        check_linear_feed_forward(assembly)
    except UsageError as error:
        raise UsageError(
            f"--map {layout.settings.kind} takes a layer of its own: {error} --map identity and permutation need none; "
            "evaluate-models stitch measures every map unwritten."
        ) from None
    projection = own_projection(assembly, k)
    if not parts.norm_last and projection.bias is None:
        raise UsageError(f"layers of this {family} have no biases, so that a map with a constant cannot be written.")
    from merge.layers.stitching.norms import norm_names

    if parts.norm_last and norm_names(layout.top, m) is None:
        raise UsageError(
            f"--at {layout.settings.words}: a layer of {family} ends in a norm, but none writes what layer 0 of "
            f"{layout.top.source} reads. Cut it at 1 or above."
        )


def _check_added(layout: Layout, family: str) -> None:
    """Stop where a map cannot be written as a layer of a family whose norms come first."""
    from merge.layers.stitching.reordered import can_reorder, rotation_refusal

    parts, kind = parts_of(layout.bottom.config), layout.settings.kind
    refusal = rotation_refusal(layout.source)
    if kind in ("permutation", "orthogonal"):
        why = (
            f": {refusal}"
            if refusal and kind == "orthogonal"
            else ": no table says which axes are units of its stream."
        )
        raise UsageError(
            f"--map {kind} cannot be written for {layout.source.source} ({layout.source.architecture}){why} evaluate-models "
            "stitch measures it unwritten."
        )
    if parts.sandwich or parts.up is None:
        why = "norms what it adds" if parts.sandwich else "is gated, and a gate bends every map"
        others = ["identity", *["permutation"] * can_reorder(layout.source), *["orthogonal"] * (refusal is None)]
        raise UsageError(
            f"--map {kind} cannot be written: norms of {family} come first, and its feed-forward part {why}. Maps that need "
            f"no layer can: {', '.join(others)}. evaluate-models stitch measures every map unwritten."
        )
