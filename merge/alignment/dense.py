"""The outputs of sentence-transformers' dense layers: axes of their own, matched once the encoder is aligned.

The similarity of two embeddings depends neither on the order of their entries nor on signs behind an odd activation: two
models may have learned one projection in different orders. The entries of the model that moves are brought into the
reference's order; its embeddings are permuted, their similarities stay what they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.sentence_transformers import pipeline_facts

if TYPE_CHECKING:
    from torch import Tensor

    from merge.symmetry.spec import PermutationSpec
    from merge.symmetry.transform import Transform

# f(-x) = -f(x): signs of the units may change with their order.
ODD = {"Tanh", "Identity", "Softsign", "Hardtanh", "Tanhshrink", "Softshrink", "Hardshrink"}
# Of each unit alone, or of all alike: only their order may change.
ALIKE = {
    "ReLU", "ReLU6", "GELU", "SiLU", "Mish", "LeakyReLU", "ELU", "CELU", "SELU", "Sigmoid", "Hardsigmoid", "Hardswish",
    "Softplus", "LogSigmoid", "Softmax", "LogSoftmax", "Softmin", "Threshold",
}  # fmt: skip
# What may follow: lengths, masks of tokens; a dense layer or a norm takes the axis itself.
FOLLOWING = {"Dense", "LayerNorm", "Normalize", "Dropout", "MultiVectorMask"}
ALIKE_IN_PLACE = 0.9  # mean correlation of rows from which on nothing is looked for
WORTH_SAYING = 0.1  # of mean correlation, that another order would gain


@dataclass(frozen=True)
class DenseOutputs:
    """The outputs of one dense layer.

    Attributes:
        path: the module's folder.
        axis: their name in specs.
        signs: whether signs may change too.
        fixed: why their order cannot change; empty where it can.
    """

    path: str
    axis: str
    signs: bool
    fixed: str = ""


@dataclass(frozen=True)
class Matched:
    """The best order of a model's rows for the reference's.

    Attributes:
        order: place i takes row order[i]; signs: of each place, after that.
        best, in_place: mean correlation of rows with the reference's.
    """

    order: Tensor
    signs: Tensor
    best: float
    in_place: float

    @property
    def moves(self) -> bool:
        return self.best > self.in_place + 1e-9


def dense_outputs(checkpoint: Checkpoint) -> tuple[DenseOutputs, ...]:
    """Return the outputs of every dense layer of a pipeline, in the order of its modules."""
    modules, outputs = checkpoint.modules or (), []
    for k, module in enumerate(modules):
        if module.kind != "Dense" or f"{module.path}/linear.weight" not in checkpoint.tensors:
            continue
        after = modules[k + 1 :]
        reader = next((j for j, later in enumerate(after) if later.kind == "Dense"), None)
        activation = str(module.settings.get("activation_function", "Tanh"))
        normed = any(later.kind == "LayerNorm" for later in after[:reader])
        signs = activation in ODD and not normed
        reason = _fixed(checkpoint, module.settings, activation, [later.kind for later in after], reader is None)
        adds = [later.path for later in after if _adds_inputs(later.settings)]
        outputs.append(
            DenseOutputs(module.path, f"dense{k}", signs, reason or (f"{adds[0]} adds its inputs" if adds else ""))
        )
    return tuple(outputs)


def _fixed(
    checkpoint: Checkpoint, settings: Mapping[str, Any], activation: str, after: Sequence[str], is_last: bool
) -> str:
    """Return why the outputs of a dense layer cannot change their order; nothing where they can."""
    if activation not in ODD | ALIKE:
        return f"{activation} may treat them differently"
    if _adds_inputs(settings):
        return "they are added to the inputs"
    if settings.get("module_output_name") == "scores":
        return "they are scores"
    if other := [kind for kind in after if kind not in FOLLOWING]:
        return f"{other[0]} reads them"
    if is_last and (pipeline_facts(checkpoint) or {}).get("truncate_dim") is not None:
        return "truncate_dim keeps the first of them"
    return ""


def _adds_inputs(settings: Mapping[str, Any]) -> bool:
    return bool(settings.get("use_residual")) and settings.get("in_features") == settings.get("out_features")


def match_dense(
    models: Sequence[Checkpoint],
    specs: Sequence[PermutationSpec],
    transforms: Sequence[Transform | None],
    reference: int,
) -> tuple[tuple[Transform | None, ...], list[str]]:
    """Return the transforms extended to the outputs of dense layers, and notes on what moved.

    Args:
        models: all that are merged, and the base; each with its spec, lines for its modules included.
    """
    from merge.symmetry.permutation import Permutation, identity
    from merge.symmetry.transform import Transform

    extended, notes = list(transforms), list[str]()
    for k, (model, spec, current) in enumerate(zip(models, specs, transforms, strict=True)):
        if current is not None:  # the axes of these outputs are in the spec, moved or not
            unmoved = identity(spec, model.shapes)
            indices = {**unmoved.indices, **current.permutation.indices}
            extended[k] = Transform(Permutation(indices, {**unmoved.outer, **current.permutation.outer}), current.maps)
    for k, (model, spec) in enumerate(zip(models, specs, strict=True)):
        outputs = [each for each in dense_outputs(models[reference]) if f"{each.path}/linear.weight" in model.tensors]
        if k == reference or not outputs:
            continue
        start = extended[k] or Transform(identity(spec, model.shapes), {})
        indices, outer, maps, moved = dict(start.permutation.indices), start.permutation.outer, dict(start.maps), False
        for each in outputs:
            so_far = Transform(Permutation(indices, outer), maps)
            target = _rows(models[reference], each.path, specs[reference], extended[reference])
            best = _match(target, _rows(model, each.path, spec, so_far), each)
            names = model.source, models[reference].source
            if not each.fixed and best.moves:
                indices, moved = {**indices, each.axis: best.order}, True
                if bool((best.signs < 0).any()):
                    maps[each.axis] = best.signs
                notes.append(_moved_note(each, best, *names))
            elif best.best > best.in_place + WORTH_SAYING:
                notes.append(f"{_in_place(each, best, *names)} They cannot be moved: {each.fixed}.")
        if moved:
            extended[k] = Transform(Permutation(indices, outer), maps)
    return tuple(extended), notes


def dense_notes(models: Sequence[Checkpoint]) -> list[str]:
    """Return a note for each dense layer whose outputs are averaged in place though another order fits better."""
    notes, first = [], models[0]
    for other in models[1:]:
        for each in dense_outputs(first):
            if f"{each.path}/linear.weight" not in other.tensors or _alike(first, other, each.path):
                continue
            best = _match(_rows(first, each.path), _rows(other, each.path), each)
            if best.best > best.in_place + WORTH_SAYING:
                advice = f"They cannot be moved: {each.fixed}." if each.fixed else "--align weights moves them."
                notes.append(f"{_in_place(each, best, other.source, first.source)} {advice}")
    return notes


def _in_place(each: DenseOutputs, best: Matched, model: str, reference: str) -> str:
    return (
        f"{model}: the outputs of {each.path} are merged in the order they are in, in which their rows correlate "
        f"{best.in_place:.2f} with those of {reference}; in the best order {best.best:.2f}."
    )


def _moved_note(each: DenseOutputs, best: Matched, model: str, reference: str) -> str:
    count, turned = len(best.order), int((best.signs < 0).sum())
    places = sum(int(unit) != place for place, unit in enumerate(best.order.tolist()))
    signs = f", {turned} with the other sign," if turned else ""
    return (
        f"{model}: {places} of {count} outputs of {each.path} moved{signs} to the places of {reference}'s (rows correlate "
        f"{best.best:.2f}, before {best.in_place:.2f}); similarities of embeddings do not depend on it"
    )


def _alike(a: Checkpoint, b: Checkpoint, path: str) -> bool:
    """Return whether the rows of two layers are nearly the same in place, without torch where numpy knows the dtype."""
    import numpy as np

    name = f"{path}/linear.weight"
    left, right = (model.array(name) for model in (a, b))
    if left.dtype.kind != "f" or right.dtype.kind != "f" or left.shape != right.shape:
        return left.shape != right.shape  # which the pre-flight refuses
    left, right = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    with np.errstate(invalid="ignore"):  # of weights that are not finite, which the merge refuses
        correlation = (left * right).sum(1) / np.where(lengths > 0, lengths, 1.0)
    return bool(correlation.mean() >= ALIKE_IN_PLACE)


def _rows(
    model: Checkpoint, path: str, spec: PermutationSpec | None = None, transform: Transform | None = None
) -> Tensor:
    """Return what each output computes, its weights and its bias as the transform leaves them, as rows of length one."""
    import torch

    from merge.symmetry.transform import apply_transform_axes

    columns = []
    for name in (f"{path}/linear.weight", f"{path}/linear.bias"):
        if name in model.tensors:
            tensor = model.tensor(name).double()
            if spec is not None and transform is not None:
                tensor = apply_transform_axes(spec.axes(name), transform, tensor)
            columns.append(tensor.reshape(len(tensor), -1))
    return torch.nn.functional.normalize(torch.cat(columns, 1), dim=1)


def _match(a: Tensor, b: Tensor, each: DenseOutputs) -> Matched:
    import torch

    from merge.alignment.solvers.assignment import match_axis

    gain = a @ b.T
    order = match_axis(gain.abs() if each.signs else gain)
    matched = gain[torch.arange(len(order)), order]
    signs = torch.where(matched < 0, -1.0, 1.0).double() if each.signs else torch.ones_like(matched)
    return Matched(order, signs, float((signs * matched).mean()), float(gain.diagonal().mean()))
