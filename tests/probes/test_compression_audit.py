"""The audit of a tokenizer's compression against counting by hand."""

import numpy as np
import pytest

from engram_model.compression import compression_map
from engram_model.errors import UsageError
from engram_probes.compression_audit import audit_compression
from engram_probes.text import token_texts


def test_groups_are_those_of_the_map(tokenizer, slot_index):
    compression, counts = compression_map(tokenizer), slot_index.raw_counts
    frame = audit_compression(tokenizer, raw_counts=counts)
    assert len(frame) == compression.max() + 1 and frame.raw_tokens.sum() == len(compression)
    assert frame.raw_tokens.is_monotonic_decreasing and frame.raw_tokens[0] > 1
    for row in frame.itertuples():
        members = np.flatnonzero(compression == row.compressed_id)
        assert row.raw_tokens == len(members) and row.occurrences == counts[members].sum()
        assert sorted(row.texts.split(" ")) == sorted(token_texts(tokenizer, members))
        others = counts[members].sum() - counts[members].max()
        assert row.merged == pytest.approx(others / max(row.occurrences, 1))
        commonest = members[counts[members].argmax()]
        assert row.texts.split(" ")[0] == token_texts(tokenizer, [commonest])[0]
    assert (frame.merged > 0).any()


def test_without_counts_it_needs_no_corpus(tokenizer):
    frame = audit_compression(tokenizer)
    assert list(frame.columns) == ["compressed_id", "raw_tokens", "texts"]
    the = frame[frame.texts.str.split(" ").map(lambda texts: "a" in texts)]
    assert "A" in the.texts.item().split(" ")
    with pytest.raises(UsageError, match="counts of 3 tokens"):
        audit_compression(tokenizer, raw_counts=np.zeros(3, dtype=int))
