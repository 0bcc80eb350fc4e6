"""Made-up values of the inputs of a forward method, by name: several guesses where configs do not state a shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ENTITIES, MENTION = 3, 4  # entities of a text, and the most tokens of each
REGIONS = 3  # regions of an image
FRAMES = 40  # of sound
ELSEWHERE = 5  # tokens of the other text that cross-attention reads


@dataclass(frozen=True)
class Facts:
    """What made-up values have to fit.

    Attributes:
        texts: number of texts or images.
        length: number of tokens of a text.
        config: of the model: its own keys over those of its text and vision parts.
        generator: of the values.
    """

    texts: int
    length: int
    config: Mapping[str, Any]
    generator: torch.Generator

    def stated(self, *keys: str) -> list[int]:
        """Return the numbers that the config states under these keys, the largest of a list."""
        found = (self.config.get(key) for key in keys)
        values = (max(v, default=0) if isinstance(v, list | tuple) else v for v in found)
        return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0]

    def numbers(self, bound: int, *shape: int) -> Tensor:
        return torch.randint(max(bound, 1), shape, generator=self.generator)

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def mask(self, *shape: int) -> Tensor:
        """Return ones, but a zero at the end of the first row."""
        mask = torch.ones(shape, dtype=torch.int64)
        mask[0, -1] = 0
        return mask


Guess = Callable[[Facts], Iterator[Any]]


def guesses(name: str, facts: Facts) -> Iterator[Any]:
    """Yield values for an input, the likeliest first; none for a name that nothing is known of."""
    if name in GUESSES:
        yield from GUESSES[name](facts)
        return
    shape = facts.texts, facts.length
    if name.endswith("_mask"):
        yield facts.mask(*shape)
    elif name.endswith("position_ids"):
        yield from _positions(facts)
    elif name.endswith("_ids"):
        yield facts.numbers(2, *shape)


def _positions(f: Facts) -> Iterator[Tensor]:
    yield torch.arange(f.length).flip(0).expand(f.texts, -1)


def _token_types(f: Facts) -> Iterator[Tensor]:
    kinds = min(f.stated("type_vocab_size") or [2])
    yield f.numbers(kinds, f.texts, f.length)
    sizes = f.config.get("type_vocab_sizes")
    if isinstance(sizes, list):
        yield torch.stack([f.numbers(size, f.texts, f.length) for size in sizes], -1)


def _up_to(*keys: str, default: int = 2) -> Guess:
    """Return a guess of one number for each token, below the size that the config states."""

    def guess(f: Facts) -> Iterator[Tensor]:
        yield f.numbers((f.stated(*keys) or [default])[0], f.texts, f.length)

    return guess


def _boxes(f: Facts) -> Iterator[Tensor]:
    """Corners of boxes: left, upper, right, lower; the second is not before the first."""
    bound = (f.stated("max_2d_position_embeddings") or [30])[0]
    corner, size = (f.numbers(bound // 2, f.texts, f.length, 2) for _ in range(2))
    yield torch.cat([corner, corner + size], -1)
    yield torch.cat([corner, corner + size], -1).double() / bound
    yield torch.cat([corner, corner + size] * 2, -1).double() / bound


def _languages(f: Facts) -> Iterator[Tensor]:
    count = (f.stated("n_langs") or [2])[0]
    yield f.numbers(count, f.texts, f.length)


def _language_of_texts(f: Facts) -> Iterator[Tensor]:
    count = len(f.config.get("languages") or [0])
    yield torch.arange(f.texts) % count
    yield torch.tensor([count - 1])


def _entities(f: Facts) -> Iterator[Tensor]:
    yield f.numbers((f.stated("entity_vocab_size") or [2])[0], f.texts, ENTITIES)


def _entity_positions(f: Facts) -> Iterator[Tensor]:
    longest = (f.stated("max_mention_length") or [MENTION])[0]
    positions = f.numbers(f.length, f.texts, ENTITIES, longest)
    positions[..., longest // 2 + 1 :] = -1
    yield positions


def _entity_edges(f: Facts) -> Iterator[Tensor]:
    yield f.numbers(f.length, f.texts, ENTITIES)


def _regions(*keys: str) -> Guess:
    """Return a guess of vectors of the regions of an image."""

    def guess(f: Facts) -> Iterator[Tensor]:
        for width in f.stated(*keys):
            yield f.floats(f.texts, REGIONS, width)

    return guess


def _states(f: Facts) -> Iterator[Tensor]:
    """The hidden states of another model, which cross-attention reads."""
    keys = ("encoder_hidden_size", "cross_attention_hidden_size", "encoder_width", "hidden_size", "d_model", "n_embd")
    for width in dict.fromkeys(f.stated(*keys)):
        yield f.floats(f.texts, ELSEWHERE, width)


def _pixels(f: Facts) -> Iterator[Tensor]:
    channels = (f.stated("num_channels", "in_channels") or [3])[0]
    for key in ("image_size", "input_size"):
        side = f.config.get(key)
        if side:
            height, width = side if isinstance(side, list | tuple) else (side, side)
            yield f.floats(f.texts, channels, height, width)
    if f.config.get("audio_model_type") is None:
        yield f.floats(f.texts, channels, 32, 32)


def _pixel_mask(f: Facts) -> Iterator[Tensor]:
    for pixels in _pixels(f):
        yield torch.ones(f.texts, *pixels.shape[2:], dtype=torch.int64)


def _patches(f: Facts) -> int:
    side, patch = (f.stated("image_size") or [0])[0], (f.stated("patch_size") or [1])[0]
    return (side // patch) ** 2


def _hidden_patches(f: Facts) -> Iterator[Tensor]:
    yield f.numbers(2, f.texts, _patches(f)).bool()


def _noise(f: Facts) -> Iterator[Tensor]:
    yield torch.rand(f.texts, _patches(f), generator=f.generator, dtype=torch.float64)


def _sound(f: Facts) -> Iterator[Tensor]:
    bins = (f.stated("num_mel_bins", "input_feat_per_channel", "feature_size") or [80])[0]
    for frames in [2 * n for n in f.stated("max_source_positions")] + [FRAMES]:
        yield f.floats(f.texts, bins, frames)
    yield f.floats(f.texts, FRAMES, bins)


def _one_a_text(f: Facts) -> Iterator[Tensor]:
    yield f.numbers(f.length, f.texts)
    yield f.numbers(f.length, f.texts, 2)


def _one(*shape: str) -> Guess:
    """Return a guess of a mask of ones of this shape, in words of Facts or numbers of regions or entities."""
    sizes = {"regions": REGIONS, "entities": ENTITIES, "elsewhere": ELSEWHERE}

    def guess(f: Facts) -> Iterator[Tensor]:
        yield f.mask(f.texts, *(sizes[word] for word in shape))

    return guess


def _kinds(word: str) -> Guess:
    sizes = {"regions": REGIONS, "entities": ENTITIES}

    def guess(f: Facts) -> Iterator[Tensor]:
        yield f.numbers(2, f.texts, sizes[word])
        yield torch.zeros(f.texts, sizes[word], dtype=torch.int64)

    return guess


def _alignment(f: Facts) -> Iterator[Tensor]:
    alignment = f.numbers(f.length, f.texts, REGIONS, 2)
    alignment[..., 1] = -1
    yield alignment


def _orders(f: Facts) -> Iterator[Tensor]:
    """Which token does not see which: those after it in a random order."""
    rank = torch.rand(f.texts, f.length, generator=f.generator).argsort(-1)
    yield (rank[:, :, None] < rank[:, None, :]).double()


def _targets(f: Facts) -> Iterator[Tensor]:
    yield torch.eye(f.length, dtype=torch.float64)[torch.tensor([1, 0])].expand(f.texts, -1, -1)


def _paths(*keys: str) -> Guess:
    def guess(f: Facts) -> Iterator[Tensor]:
        depth = (f.stated("max_depth") or [4])[0]
        yield f.numbers((f.stated(*keys) or [2])[0], f.texts, f.length, depth)

    return guess


def _lengths(f: Facts) -> Iterator[Tensor]:
    lengths = torch.full((f.texts,), f.length)
    lengths[0] = max(1, f.length - 2)
    yield lengths
    yield lengths[:, None] // 2


def _first_token(f: Facts) -> Iterator[Tensor]:
    yield (torch.arange(f.length) == 0).long().expand(f.texts, -1).contiguous()


GUESSES: dict[str, Guess] = {
    "token_type_ids": _token_types,
    "decoder_token_type_ids": _token_types,
    "langs": _languages,
    "lang_ids": _language_of_texts,
    "lengths": _lengths,
    "question_lengths": _lengths,
    "global_attention_mask": _first_token,
    "task_type_ids": _up_to("task_type_vocab_size"),
    "input_shape_ids": _up_to("shape_vocab_size"),
    "input_pronunciation_ids": _up_to("pronunciation_vocab_size"),
    "attack_input_ids": _up_to("vocab_size"),
    "attack_input_shape_ids": _up_to("shape_vocab_size"),
    "attack_input_pronunciation_ids": _up_to("pronunciation_vocab_size"),
    "attack_token_type_ids": _token_types,
    "bbox": _boxes,
    "entity_ids": _entities,
    "entity_attention_mask": _one("entities"),
    "entity_token_type_ids": _kinds("entities"),
    "entity_position_ids": _entity_positions,
    "entity_start_positions": _entity_edges,
    "entity_end_positions": _entity_edges,
    "visual_embeds": _regions("visual_embedding_dim"),
    "visual_feats": _regions("visual_feat_dim"),
    "visual_pos": _regions("visual_pos_dim"),
    "visual_attention_mask": _one("regions"),
    "visual_token_type_ids": _kinds("regions"),
    "image_text_alignment": _alignment,
    "region_to_phrase_position": lambda f: iter([f.numbers(f.length, f.texts, f.length + REGIONS)]),
    "encoder_hidden_states": _states,
    "encoder_embeds": lambda f: iter([f.floats(f.texts, f.length, n) for n in f.stated("hidden_size")]),
    "encoder_attention_mask": _one("elsewhere"),
    "pixel_values": _pixels,
    "pixel_mask": _pixel_mask,
    "bool_masked_pos": _hidden_patches,
    "noise": _noise,
    "input_features": _sound,
    "perm_mask": _orders,
    "target_mapping": _targets,
    "input_mask": lambda f: iter([1.0 - f.mask(f.texts, f.length).double()]),
    "p_mask": lambda f: iter([1.0 - f.mask(f.texts, f.length).double()]),
    "cls_index": _one_a_text,
    "mc_token_ids": _one_a_text,
    "question_positions": _one_a_text,
    "xpath_tags_seq": _paths("max_xpath_tag_unit_embeddings"),
    "xpath_subs_seq": _paths("max_xpath_subs_unit_embeddings"),
    "num_hashes": lambda f: iter([2]),
    "image_token_type_idx": lambda f: iter([1]),
}
