"""The n-grams that end at a position, and the rows they hit."""

from typing import TYPE_CHECKING

from engram_probes.gates import GateMap

if TYPE_CHECKING:
    import pandas as pd


def ngrams(gates: GateMap, position: int) -> dict[int, str]:
    """Order -> text of the n-gram that ends at a position, shorter at the start of the text."""
    return {
        order: "".join(gates.tokens[max(0, position - order + 1) : position + 1])
        for order in range(2, gates.max_ngram_size + 1)
    }


def rows_hit(gates: GateMap, position: int) -> "pd.DataFrame":
    """One row for each memory layer, order and head: which row of the table was read."""
    import pandas as pd

    texts = ngrams(gates, position)
    table = [
        {
            "layer": layer,
            "order": 2 + column // gates.n_heads,
            "n-gram": texts[2 + column // gates.n_heads],
            "head": column % gates.n_heads,
            "row": int(row),
        }
        for index, layer in enumerate(gates.layers)
        for column, row in enumerate(gates.slots[index, position])
    ]
    return pd.DataFrame(table)
