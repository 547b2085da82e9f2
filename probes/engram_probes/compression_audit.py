"""Which raw tokens a memory cannot tell apart: those that share a compressed id."""

from typing import TYPE_CHECKING, Any

import numpy as np

from engram_model.errors import UsageError
from engram_probes.text import token_texts

if TYPE_CHECKING:
    import pandas


def audit_compression(
    tokenizer: Any, compression: np.ndarray | None = None, raw_counts: np.ndarray | None = None
) -> "pandas.DataFrame":
    """One row for each compressed id, those that most raw tokens share first.

    Args:
        compression: raw id -> compressed id, int [vocabulary]; None: the map of this tokenizer.
        raw_counts: occurrences of each raw token, int [vocabulary], as `SlotIndex.raw_counts`.

    Returns:
        compressed_id, raw_tokens (how many), texts (as shown, the commonest first); with counts
        also occurrences, and merged: the share of them that are not the commonest raw token's.

    Raises:
        UsageError: counts of another vocabulary.
    """
    import pandas as pd

    from engram_model.compression import compression_map

    compression = compression_map(tokenizer) if compression is None else compression
    counts = np.zeros(len(compression), np.int64) if raw_counts is None else np.asarray(raw_counts)
    if counts.shape != compression.shape:
        raise UsageError(f"counts of {counts.size} tokens for a vocabulary of {compression.size}")
    texts = np.array(token_texts(tokenizer, range(len(compression))), dtype=object)
    by = np.lexsort((-counts, compression))
    first = np.flatnonzero(np.diff(compression[by], prepend=-1))
    groups = np.split(by, first[1:])
    total = np.add.reduceat(counts[by], first)
    frame = pd.DataFrame(
        {
            "compressed_id": compression[by][first],
            "raw_tokens": [len(group) for group in groups],
            "texts": [" ".join(texts[group]) for group in groups],
        }
    )
    if raw_counts is not None:
        frame["occurrences"] = total
        most = np.maximum(total, 1)  # a group that never occurs merges nothing
        frame["merged"] = (total - counts[by][first]) / most
    return frame.sort_values("raw_tokens", ascending=False, kind="stable", ignore_index=True)
