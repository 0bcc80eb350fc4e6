"""The last layer computed for the first token alone, the only one that a classifier reads; exact.

Keys and values of the last layer are computed for every token; its query, attention output, feed-forward and layer norms for
the first token only. That saves about 5/6 of one layer.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Hidden = Float[Tensor, "rows tokens hidden"]
First = Float[Tensor, "rows 1 hidden"]


@contextlib.contextmanager
def first_token_only(model: Any, probe: Mapping[str, Tensor]) -> Iterator[bool]:
    """Make a classifier's last layer compute its first token only while the block runs, where that is exact.

    Args:
        model: of one of FAMILIES, with a head that reads the first token; any other model is unchanged.
        probe: a small batch, on which the logits with and without the short cut are compared first.
    Yields:
        Whether the short cut is taken.
    """
    layer_and_forward = last_layer(model)
    if layer_and_forward is None or not _agrees(model, *layer_and_forward, probe):
        yield False
        return
    with _replaced_forward(*layer_and_forward):
        yield True


def last_layer(model: Any) -> tuple[Any, Callable[..., First]] | None:
    """Return the last layer of a classifier of FAMILIES and the function for its first token, or None for any other model."""
    config = model.config
    path, compute = FAMILIES.get(config.model_type, (None, None))
    if (
        path is None
        or compute is None
        or type(model).__module__.partition(".")[0] != "transformers"
        or not type(model).__name__.endswith("ForSequenceClassification")
        or getattr(config, "is_decoder", False)  # with a causal mask the first token attends to itself alone
        or config._attn_implementation not in ("sdpa", "eager")  # others give layers masks of another form
    ):
        return None
    layers = model.base_model.get_submodule(path)
    return (layers[-1], compute) if len(layers) else None


def bert_layer(layer: Any, hidden: Hidden, attention_mask: Tensor | None = None, *_: Any, **__: Any) -> First:
    """Return the first token's output of a layer of BERT."""
    attention = layer.attention.self
    mixed = _attend(attention, (attention.query, attention.key, attention.value), hidden, attention_mask)
    output: First = layer.feed_forward_chunk(layer.attention.output(mixed, hidden[:, :1]))
    return output


def distilbert_layer(layer: Any, hidden: Hidden, attention_mask: Tensor | None = None, *_: Any, **__: Any) -> First:
    """Return the first token's output of a layer of DistilBERT."""
    attention = layer.attention
    mixed = _attend(attention, (attention.q_lin, attention.k_lin, attention.v_lin), hidden, attention_mask)
    middle = layer.sa_layer_norm(attention.out_lin(mixed) + hidden[:, :1])
    output: First = layer.output_layer_norm(layer.ffn(middle) + middle)
    return output


# Model type -> path of its layers, and the function for the first token of one: families for which a test shows equality.
FAMILIES: dict[str, tuple[str, Callable[..., First]]] = {
    "bert": ("encoder.layer", bert_layer),
    "camembert": ("encoder.layer", bert_layer),
    "data2vec-text": ("encoder.layer", bert_layer),
    "distilbert": ("transformer.layer", distilbert_layer),
    "electra": ("encoder.layer", bert_layer),
    "ernie": ("encoder.layer", bert_layer),
    "layoutlm": ("encoder.layer", bert_layer),
    "roberta": ("encoder.layer", bert_layer),
    "xlm-roberta": ("encoder.layer", bert_layer),
}


def _attend(attention: Any, maps: tuple[Any, Any, Any], hidden: Hidden, mask: Tensor | None) -> First:
    """Return the attention output of the first token, heads concatenated; the mask has shape (rows, 1, tokens, tokens)."""
    query, key, value = (
        linear(tokens).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
        for linear, tokens in zip(maps, (hidden[:, :1], hidden, hidden), strict=True)
    )
    first = None if mask is None else mask[:, :, :1]
    mixed = scaled_dot_product_attention(query, key, value, attn_mask=first, scale=attention.scaling)
    return mixed.transpose(1, 2).flatten(2)


@contextlib.contextmanager
def _replaced_forward(layer: Any, compute: Callable[..., First]) -> Iterator[None]:
    # An attribute of this layer takes precedence over the method of its class.
    layer.forward = partial(compute, layer)
    try:
        yield
    finally:
        del layer.forward


def _agrees(model: Any, layer: Any, compute: Callable[..., First], probe: Mapping[str, Tensor]) -> bool:
    """Return whether the short cut gives the model's logits, to the rounding of its dtype; log a warning if not."""
    reason = "it gives other logits"
    try:
        plain = model(**probe).logits
    except Exception:  # noqa: BLE001 (a row that the model cannot predict is named where it is predicted)
        return False
    if not plain.isfinite().all():  # named where they are predicted; nothing can be compared with them
        return False
    try:
        with _replaced_forward(layer, compute):
            short = model(**probe).logits
        if bool((short - plain).abs().max() <= 100 * torch.finfo(plain.dtype).eps * plain.abs().max().clamp(min=1)):
            return True
    # Another version of transformers may build its layers of other modules.
    except (AttributeError, TypeError, RuntimeError) as error:
        reason = str(error)
    logging.getLogger(__name__).warning(
        "%s: the short cut through the last layer does not hold (%s); every token goes through it.",
        type(model).__name__,
        reason,
    )
    return False
