"""States of a live model: what its layers read and write on text, a row for each token that is not padding.

State k is what layer k reads; the state after the last layer is what that layer writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import absent_pooler, without_absent_pooler
from merge.checkpoints.hooks import token_mask, token_rows, watching
from merge.errors import CalibrationError, UsageError
from merge.layers.stacks import layer_count, stack_of

if TYPE_CHECKING:
    from torch import Tensor

    from merge.checkpoints.checkpoint import Checkpoint
    from merge.checkpoints.inputs import Batch


@dataclass(frozen=True)
class LiveLayers:
    """A live model and its list of layers.

    Attributes:
        model: in evaluation mode.
        path: of the list below the base model.
        names: of the modules in the list; fewer than layers where layers share one (ALBERT).
        total: the number of layers that run.
        order: "time" where positions come before texts (XLNet).
    """

    model: Any
    path: str
    names: tuple[str, ...]
    total: int
    order: str

    def module(self, index: int, path: str) -> Any:
        """Return a module below a layer."""
        return self.model.base_model.get_submodule(f"{self.path}.{self.names[index]}.{path}")

    def rows(self, activation: Tensor, batch: Batch) -> Tensor:
        """Return the rows of an activation that are not padding, as a copy."""
        return token_rows(activation, token_mask(batch), self.order)


EMBEDDING_NORM = "embeddings.LayerNorm"  # writes state 0 where norms come last


class EnoughError(Exception):
    """Ends a forward pass once all that is asked for has been seen."""


def live_layers(model: Any, stack: str = "") -> LiveLayers:
    """Return the layers of a live model."""
    family, config = model.config.model_type, model.config.to_dict()
    paths = stack_of(family, stack).paths
    path = next(path for path in paths if _has(model.base_model, path))
    names = tuple(name for name, _ in model.base_model.get_submodule(path).named_children())
    return LiveLayers(model, path, names, layer_count(config, stack), "time" if family == "xlnet" else "")


def _has(model: Any, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def see_states(live: LiveLayers, batch: Batch, wanted: Iterable[int], see: Callable[[int, Tensor], None]) -> None:
    """Run a batch and call `see(state, rows)` for every wanted state, in their order; the pass ends at the last one."""
    import torch

    chosen = set(wanted)
    sites = [f"{live.path}.{name}:{side}" for name in live.names for side in ("in", "out")]
    events = 0

    def show(_site: str, activation: Tensor) -> None:
        nonlocal events
        layer, after = divmod(events, 2)  # layers run in order, also those that share a module
        events += 1
        state = layer + 1 if after else layer
        if state in chosen and (not after or state == live.total):
            see(state, live.rows(activation, batch))
            if state == max(chosen):
                raise EnoughError

    if not live.names:
        raise UsageError("a model without layers has no states between them.")
    with torch.inference_mode(), suppress(EnoughError), watching(live.model.base_model, sites, show):
        live.model(**batch)


def states_of(live: LiveLayers, batch: Batch, wanted: Iterable[int]) -> dict[int, Tensor]:
    """Return the rows of every wanted state of one batch."""
    rows: dict[int, Tensor] = {}
    see_states(live, batch, wanted, rows.__setitem__)
    return rows


def normed_states(live: LiveLayers, batch: Batch, wanted: Iterable[int], norm: str) -> dict[int, Tensor]:
    """Return the rows of wanted states of one batch, each before gain and bias of the norm that writes it.

    For families whose norms come last. States are read before the norm, not divided by its gain afterwards: a gain of 0
    (all-MiniLM-L6-v2 has one, 5e-33) hides a unit that the norm's statistics need.

    Args:
        wanted: states; 0 only where the norm of the embeddings writes it.
        norm: path of the norm below a layer.
    """
    import torch

    chosen = set(wanted)
    paths = [EMBEDDING_NORM] * (0 in chosen) + [f"{live.path}.{name}.{norm}" for name in live.names]
    epsilons = {f"{path}:in": norm_epsilon(live.model.base_model.get_submodule(path)) for path in paths}
    state = 0 if 0 in chosen else 1
    read: dict[int, tuple[Tensor, float]] = {}

    def show(site: str, activation: Tensor) -> None:
        nonlocal state
        if state in chosen:
            read[state] = live.rows(activation, batch), epsilons[site]
            if state == max(chosen):
                raise EnoughError
        state += 1

    with torch.inference_mode(), suppress(EnoughError), watching(live.model.base_model, epsilons, show):
        live.model(**batch)
    norm_of = torch.nn.functional.layer_norm  # outside of inference mode, so that gradients may pass what is made of it
    return {state: norm_of(rows, rows.shape[-1:], eps=epsilon) for state, (rows, epsilon) in read.items()}


def normed_state(live: LiveLayers, batch: Batch, state: int, norm: str) -> Tensor:
    """Return the rows of one state as `normed_states` reads it."""
    return normed_states(live, batch, [state], norm)[state]


def norm_epsilon(norm: Any) -> float:
    """Return the epsilon of a layer norm, which DeBERTa names otherwise."""
    return float(getattr(norm, "eps", None) or norm.variance_epsilon)


def check_reads_text(checkpoint: Checkpoint, stack: str, asks: str) -> None:
    """Stop where the layers do not read plain text, or there is no tokenizer to read it with.

    Args:
        asks: what needs the text, for the message.
    Raises:
        UsageError: the model has several inputs, or reads images.
        CalibrationError: it has no tokenizer.
    """
    from merge.checkpoints.transformers_model import meta_model

    stack_of(checkpoint.model_type, stack)
    check_one_text_input(
        meta_model(checkpoint.config), checkpoint.source, f"{asks} works", " Leave it out, or choose another."
    )
    if not checkpoint.has_tokenizer:
        raise CalibrationError(
            f"{checkpoint.source} has no tokenizer, which {asks} needs to read text. Put one into its folder, or choose another."
        )


def check_one_text_input(model: Any, source: str, works: str = "this works", otherwise: str = "") -> None:
    """Stop at a model that has several inputs, or reads images.

    Args:
        works: the beginning of "... works for models with one text input", for the message.
        otherwise: what else to do.
    Raises:
        UsageError: names its class.
    """
    vision = getattr(model.config, "vision_config", None) is not None
    if model.config.is_encoder_decoder or model.main_input_name != "input_ids" or vision:
        raise UsageError(f"{source} is a {type(model).__name__}: {works} for models with one text input.{otherwise}")


def live_model(checkpoint: Checkpoint) -> Any:
    """Return a checkpoint as a live model in float32, in evaluation mode, without tensors that its class does not have."""
    import torch

    from merge.checkpoints.names.canonical import expected_names
    from merge.checkpoints.transformers_model import build

    encoder = checkpoint.encoder
    known = expected_names(encoder.structure)
    tensors = {name: encoder.tensor(name) for name in encoder.tensors if name in known} | absent_pooler(encoder)
    written = {encoder.written_name(name): tensor for name, tensor in tensors.items()}
    return without_absent_pooler(encoder, build(encoder.config, written, torch.float32, copied=False))


def split_batches(batches: tuple[Batch, ...], share: float = 0.2) -> Iterator[tuple[Batch, bool]]:
    """Yield each batch in two, those of the fit and those held out: every fifth text by default.

    Args:
        share: of the texts that is held out.
    """
    every = round(1 / share)
    number = 0
    for batch in batches:
        texts = len(batch["input_ids"])
        held = [k for k in range(texts) if (number + k) % every == every - 1]
        number += texts
        for chosen, is_held in (([k for k in range(texts) if k not in held], False), (held, True)):
            if chosen:
                yield {name: tensor[chosen] for name, tensor in batch.items()}, is_held
