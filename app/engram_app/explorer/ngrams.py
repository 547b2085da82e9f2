"""The n-grams that end at a position."""

from engram_probes.gates import GateMap


def ngrams(gates: GateMap, position: int) -> dict[int, str]:
    """Order -> text of the n-gram that ends at a position, shorter at the start of the text."""
    return {
        order: "".join(gates.tokens[max(0, position - order + 1) : position + 1])
        for order in range(2, gates.max_ngram_size + 1)
    }
