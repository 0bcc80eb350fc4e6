"""Legacy buffers: tensors that older versions stored although the config determines them.

A merge leaves them out, as transformers does, after checking that they are what the config gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from merge.checkpoints.structure import Structure


@dataclass(frozen=True)
class Buffer:
    """A kind of buffer.

    Attributes:
        ending: of its name.
        rank: how many axes it has; None for any number.
        content: what it holds in every model, for messages.
        other: what it would be if it held something else, for messages.
        matches: whether these numbers are what the config gives.
    """

    ending: str
    rank: int | None
    content: str
    other: str
    matches: Callable[[NDArray[Any], Structure], bool]


def buffer_of(name: str, rank: int) -> Buffer | None:
    """Return the kind of buffer that has this name and number of axes, or None."""
    kinds = (kind for kind in BUFFERS if f".{name}".endswith(kind.ending) and kind.rank in (None, rank))
    return next(kinds, None)


def _counts(numbers: NDArray[Any], structure: Structure) -> bool:
    return bool(numbers.reshape(-1).tolist() == list(range(numbers.size)))


def _zeros(numbers: NDArray[Any], structure: Structure) -> bool:
    return not numbers.any()


def _causal(numbers: NDArray[Any], structure: Structure) -> bool:
    import numpy as np

    return bool((numbers == np.tril(np.ones(numbers.shape[-2:]))).all())


def _large(numbers: NDArray[Any], structure: Structure) -> bool:
    return bool(numbers < -1000)  # -1e4 or -1e9, rounded to the dtype; infinite in float16


def _frequencies(numbers: NDArray[Any], structure: Structure) -> bool:
    """Return whether these are theta^(-i/n) for a theta of the config; within 1 %, since bfloat16 keeps three digits."""
    import numpy as np

    parameters = structure.settings.get("rope_parameters") or {}
    thetas = {
        entry["rope_theta"]
        for entry in (parameters, *parameters.values())
        if isinstance(entry, dict) and "rope_theta" in entry
    }
    powers = -np.arange(numbers.size) / numbers.size
    return any(np.allclose(numbers, theta**powers, rtol=1e-2, atol=1e-6) for theta in thetas)


def _window(numbers: NDArray[Any], structure: Structure) -> bool:
    """Return whether this is BEiT's table of the distances between patches, the class token first."""
    import numpy as np

    settings = structure.settings
    image, patch = settings.get("image_size"), settings.get("patch_size")
    if not isinstance(image, int) or not isinstance(patch, int):
        return False
    n = image // patch
    row, column = np.divmod(np.arange(n * n), n)
    expected = np.empty((n * n + 1, n * n + 1), dtype=np.int64)
    expected[1:, 1:] = (row[:, None] - row + n - 1) * (2 * n - 1) + column[:, None] - column + n - 1
    distances = (2 * n - 1) ** 2
    expected[0, :], expected[:, 0], expected[0, 0] = distances, distances + 1, distances + 2
    return np.array_equal(numbers, expected)


BUFFERS = (
    Buffer(".position_ids", None, "0, 1, 2, ...", "positions", _counts),
    Buffer(".token_type_ids", None, "zeros", "segments", _zeros),
    Buffer(".attn.bias", 4, "the causal mask", "a mask", _causal),
    Buffer(".attn.masked_bias", 0, "a large negative number", "a masked score", _large),
    Buffer(".rotary_emb.inv_freq", 1, "the frequencies of the config's rope_theta", "frequencies", _frequencies),
    Buffer(".relative_position_index", 2, "the distances of the patches", "distances", _window),
)
