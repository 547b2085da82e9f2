"""The n-grams that end at a position."""

from collections.abc import Sequence

import numpy as np

from engram_probes.gates import GateMap


def ngrams(gates: GateMap, position: int) -> dict[int, str]:
    """Order -> text of the n-gram that ends at a position, shorter at the start of the text."""
    return {
        order: "".join(gates.tokens[max(0, position - order + 1) : position + 1])
        for order in range(2, gates.max_ngram_size + 1)
    }


def ending_at(
    token_ids: Sequence[int] | np.ndarray, position: int, longest: int
) -> tuple[int, ...]:
    """Token ids of the longest n-gram that ends at a position, shorter at the start of the text."""
    return tuple(int(i) for i in token_ids[max(0, position + 1 - longest) : position + 1])
