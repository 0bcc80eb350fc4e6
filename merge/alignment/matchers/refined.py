"""Refined: activations say where weight matching begins.

Activations tell which units do the same, wherever they stand; from there the weights' own objective only has to be climbed.
It is the better of the two beginnings where the embeddings do not say how the residual stream is ordered.
"""

from __future__ import annotations

from merge.alignment.matchers.activations import match_activations
from merge.alignment.matchers.weights import match_weights
from merge.alignment.pair import Matcher, Pair


def match_refined(pair: Pair) -> Matcher:
    """Return the matcher that begins with activations and goes on with weights.

    Raises:
        AlignmentError: there are no batches: activations need text and a tokenizer.
    """
    by_activations = match_activations(pair)
    return match_weights(pair, start=lambda kinds: by_activations(kinds).permutation)
