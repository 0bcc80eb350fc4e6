"""Assembly: an edited model before it is written: its config, and where each of its tensors comes from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.modules import is_module_tensor
from merge.checkpoints.settings import setting_differences
from merge.errors import MismatchError, UsageError, some
from merge.layers.config import PER_LAYER, RULES
from merge.layers.parts import Parts, check_without, parts_of, zeroed
from merge.layers.plans.making import combined
from merge.layers.plans.plan import LayerPlan, PlannedTensors, planned_config, planned_tensors
from merge.layers.stacks import layer_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Config entries that follow the layers, and those that follow the head: models of one plan may differ in them.
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_hidden_groups")
HEAD_KEYS = ("architectures", "id2label", "label2id", "num_labels", "problem_type", "tie_word_embeddings")


@dataclass(frozen=True)
class Assembly:
    """An edited model, in parts.

    Attributes:
        models: the sources, with the tensors of sentence-transformers modules.
        plan: the layers of the output.
        config: config.json of the output.
        tensors: the sources of its tensors.
        moved: number of a model -> its tensors as they are read, where it was aligned to the first.
        computed: output name -> tensor, where it is fitted, repaired or healed, and no copy or merge.
    """

    models: tuple[Checkpoint, ...]
    plan: LayerPlan
    config: Mapping[str, Any]
    tensors: PlannedTensors
    moved: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    computed: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def owner(self) -> Checkpoint:
        """The model whose class, head and modules the output has: that of the last layer."""
        return self.models[self.plan.layers[-1][0][0] if self.plan.layers else 0]

    @cached_property
    def embedder(self) -> Checkpoint:
        """The model whose embeddings and tokenizer the output has: that of the first layer, or the one whose state it reads."""
        return self.models[self.plan.embedders[0]]

    @cached_property
    def parts(self) -> Parts:
        return parts_of(self.config, self.plan.stack)

    def source(self, model: int, name: str) -> Tensor:
        """Return a tensor of a source model, in the units of the first where it was aligned."""
        return self.moved[model][name] if model in self.moved else self.models[model].tensor(name)

    def tensor(self, name: str) -> Tensor:
        """Return one tensor of the output, in the dtype that is written."""
        import torch

        if name in self.computed:
            return self.computed[name]
        sources = self.tensors.sources[name]
        making = self.tensors.makings.get(name)
        if len(sources) > 1:
            return combined([self.source(*pair) for pair in sources], making, name)
        tensor = self.source(*sources[0])
        return torch.zeros_like(tensor) if self._is_zero(name) else tensor

    def copied(self, name: str) -> bool:
        """Return whether an output tensor is a copy of one source tensor, byte for byte."""
        sources = self.tensors.sources[name]
        if name in self.computed or len(sources) > 1 or sources[0][0] in self.moved:
            return False
        return not self._is_zero(name)

    def _is_zero(self, name: str) -> bool:
        """Return whether a tensor is the output projection of a sublayer that writes nothing."""
        making = self.tensors.makings.get(name)
        part = layer_of(name, str(self.config["model_type"]), self.plan.stack)
        removed = () if making is None or part is None else making.removed
        return bool(removed) and part is not None and zeroed(part[2][1:], self.parts, removed)

    def build(self, dtype: torch.dtype | None = None) -> Any:
        """Return the output as a live model in float32, in evaluation mode, without its modules."""
        import torch

        from merge.checkpoints.transformers_model import build

        tensors = {
            self.owner.written_name(name): self.tensor(name)
            for name in self.tensors.sources
            if not is_module_tensor(name) and name not in self.owner_extra
        }
        return build(self.config, tensors, dtype or torch.float32)

    @cached_property
    def owner_extra(self) -> frozenset[str]:
        """Names of output tensors that the class of the output does not have."""
        from merge.checkpoints.names.canonical import expected_names

        known = expected_names(self.owner.structure)
        return frozenset(
            name
            for name, sources in self.tensors.sources.items()
            if sources[0][1] not in known and not is_module_tensor(name)
        )

    def with_computed(self, tensors: Mapping[str, Tensor]) -> Assembly:
        """Return the assembly with some tensors computed, cast to the dtype of what they replace."""
        cast = {name: tensor.to(self.tensor(name).dtype) for name, tensor in tensors.items()}
        return replace(self, computed={**self.computed, **cast})


def assemble(
    models: Sequence[Checkpoint],
    plan: LayerPlan,
    moved: Mapping[int, Mapping[str, Tensor]] | None = None,
    fits: Callable[[Checkpoint, Checkpoint], None] | None = None,
) -> Assembly:
    """Return the assembly of a plan, checked by headers alone.

    Args:
        models: whose layers the plan takes; the modules of a sentence-transformers folder are those of the owner.
        moved: see `Assembly`.
    Raises:
        UsageError: the plan asks for what the architecture cannot have.
        MismatchError: the models do not fit together.
    """
    models = tuple(models)
    used = sorted({model for sources in plan.layers for model, _ in sources} | set(plan.embedders)) or [0]
    if unused := [m.source for k, m in enumerate(models) if k not in used and not plan.floor]:
        raise UsageError(f"the plan uses no layer of {some(unused)}. Leave the model out, or name its layers.")
    for model in models[1:]:
        (fits or check_fit)(models[0], model)
    for making in plan.makings:
        if making is not None and making.kind in ("zero", "affine"):
            parts_of(models[0].config, plan.stack)
        elif making is not None and making.without:
            check_without(making, models[0].config, plan.stack)
    configs = [model.config for model in models]
    planned = planned_tensors(configs, [model.encoder.shapes for model in models], plan)
    owner_number = plan.layers[-1][0][0] if plan.layers else 0
    owner = models[owner_number]
    modules = {name: ((owner_number, name),) for name in owner.tensors if is_module_tensor(name)}
    config = planned_config(configs, plan)
    if owner_number:
        config = {key: value for key, value in config.items() if key not in HEAD_KEYS}
        config |= {key: owner.config[key] for key in HEAD_KEYS if key in owner.config}
    planned = replace(planned, sources={**planned.sources, **modules})
    _check_merged_heads(models, planned, plan.stack)
    return Assembly(models, plan, config, planned, moved or {})


def check_fit(first: Checkpoint, other: Checkpoint, tokens: bool = True, embedding_keys: Collection[str] = ()) -> None:
    """Stop where layers of two models cannot run in one: other widths, activations, norms, positions or tokens.

    Args:
        tokens: whether both must read the same tokens.
        embedding_keys: config entries that only embeddings depend on, which may differ.
    Raises:
        MismatchError: all differences in one message.
    """
    from merge.checkpoints.tokenizers.comparison import compare_tokenizers, tokenizer_of

    if first.model_type != other.model_type:
        raise MismatchError(
            f"layers of different architectures cannot be combined: {first.source} is {first.model_type}, {other.source} is "
            f"{other.model_type}."
        )
    may_differ = {*COUNTS, *PER_LAYER, *RULES, *HEAD_KEYS, *embedding_keys}
    different = setting_differences(first.structure, other.structure, may_differ)
    faults = [f"{key} is {left!r} in {first.source}, {right!r} in {other.source}" for key, left, right in different]
    dtypes = [{t.result_dtype for t in m.encoder.tensors.values() if not t.is_integer} for m in (first, other)]
    if dtypes[0] != dtypes[1]:
        listed = [", ".join(sorted(each)) for each in dtypes]
        faults.append(f"weights are {listed[0]} in {first.source}, {listed[1]} in {other.source}")
    tokenizers = [tokenizer_of(each.source, each.folder, each.config) for each in (first, other) if tokens]
    if tokens and tokenizers[0] is not None and tokenizers[1] is not None:
        faults += compare_tokenizers(tokenizers[0], tokenizers[1])[0]
    if faults:
        raise MismatchError(f"layers of these models do not fit together: {some(faults, 4, separator='; ')}.")


def _check_merged_heads(models: Sequence[Checkpoint], planned: PlannedTensors, stack: str) -> None:
    """Stop where heads of several models would be averaged whose classes differ."""
    family = models[0].model_type
    shared = {
        tuple(dict.fromkeys(model for model, _ in pairs))
        for name, pairs in planned.sources.items()
        if len(pairs) > 1 and layer_of(name, family, stack) is None
    }
    for numbers in shared:
        first, *others = (models[number] for number in numbers)
        for other in others:
            if first.structure.label_names != other.structure.label_names:
                raise MismatchError(
                    f"classes differ: {first.source} has {', '.join(first.structure.label_names)}, {other.source} has "
                    f"{', '.join(other.structure.label_names)}. End the plan in a layer of one model, whose head is then "
                    "taken, or use merge-models, which matches classes by name."
                )
