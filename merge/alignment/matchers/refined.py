"""Weight matching initialised by activation matching.

It is the better start of the two where the embeddings do not determine the order of the residual stream.
"""

from __future__ import annotations

from merge.alignment.matchers.activations import match_activations
from merge.alignment.matchers.weights import match_weights
from merge.alignment.pair import Matcher, Pair


def match_refined(pair: Pair) -> Matcher:
    """Return the matcher that starts from activation matching and goes on with weight matching.

    Raises:
        AlignmentError: there are no batches: activations need text and a tokenizer.
    """
    by_activations = match_activations(pair)
    return match_weights(pair, start=lambda kinds: by_activations(kinds).permutation)
