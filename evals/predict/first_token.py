"""Short cut: the last layer computed for the first token alone, the only one that a classifier reads; exact.

Keys and values of the last layer are those of every token; its query, attention output, feed-forward and layer norms are
needed at the first place only. That saves about 5/6 of one layer.
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
def first_token_only(model: Any, proof: Mapping[str, Tensor]) -> Iterator[bool]:
    """Let a classifier's last layer compute its first token only while the block runs, where that is known to be exact.

    Args:
        model: of one of FAMILIES, with a head that reads the first token; any other is left as it is.
        proof: a small batch; what the model says to it with and without the short cut must agree.
    Yields:
        Whether the short cut is taken.
    """
    found = last_layer(model)
    if found is None or not _agrees(model, *found, proof):
        yield False
        return
    with _computing(*found):
        yield True


def last_layer(model: Any) -> tuple[Any, Callable[..., First]] | None:
    """Return the last layer of a classifier of FAMILIES and what computes its first token, or None for any other model."""
    config = model.config
    place, compute = FAMILIES.get(config.model_type, (None, None))
    if (
        place is None
        or compute is None
        or type(model).__module__.partition(".")[0] != "transformers"
        or not type(model).__name__.endswith("ForSequenceClassification")
        or getattr(config, "is_decoder", False)  # there the first token attends to itself alone
        or config._attn_implementation not in ("sdpa", "eager")  # others give layers masks of other kinds
    ):
        return None
    layers = model.base_model.get_submodule(place)
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


# Model type -> where its layers are, and what computes the first token of one: families for which a test shows equality.
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
    """Return what the first token takes from all tokens, heads side by side; the mask is (rows, 1, tokens, tokens)."""
    query, key, value = (
        linear(tokens).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
        for linear, tokens in zip(maps, (hidden[:, :1], hidden, hidden), strict=True)
    )
    first = None if mask is None else mask[:, :, :1]
    mixed = scaled_dot_product_attention(query, key, value, attn_mask=first, scale=attention.scaling)
    return mixed.transpose(1, 2).flatten(2)


@contextlib.contextmanager
def _computing(layer: Any, compute: Callable[..., First]) -> Iterator[None]:
    # An attribute of this one layer goes before the method of its class.
    layer.forward = partial(compute, layer)
    try:
        yield
    finally:
        del layer.forward


def _agrees(model: Any, layer: Any, compute: Callable[..., First], proof: Mapping[str, Tensor]) -> bool:
    """Say whether the short cut gives this model's own logits, to the rounding of its dtype."""
    plain = model(**proof).logits
    said = "it gives other logits"
    try:
        with _computing(layer, compute):
            short = model(**proof).logits
        if bool((short - plain).abs().max() <= 100 * torch.finfo(plain.dtype).eps * plain.abs().max().clamp(min=1)):
            return True
    # Another version of transformers may make its layers of other parts.
    except (AttributeError, TypeError, RuntimeError) as error:
        said = str(error)
    logging.getLogger(__name__).warning(
        "%s: the short cut through the last layer does not hold (%s); every token goes through it.",
        type(model).__name__,
        said,
    )
    return False
