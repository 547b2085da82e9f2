"""The audit of a tokenizer's compression against counting by hand."""

import numpy as np
import pytest

from engram_model.compression import compression_map
from engram_model.errors import UsageError
from engram_probes.compression_audit import audit_compression
from engram_probes.text import token_texts


def test_groups_are_those_of_the_map(tokenizer, slot_index):
    compression, counts = compression_map(tokenizer), slot_index.raw_counts
    frame = audit_compression(tokenizer, raw_counts=counts).to_frame()
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
    frame = audit_compression(tokenizer).to_frame()
    assert list(frame.columns) == ["compressed_id", "raw_tokens", "texts"]
    the = frame[frame.texts.str.split(" ").map(lambda texts: "a" in texts)]
    assert "A" in the.texts.item().split(" ")
    with pytest.raises(UsageError, match="counts of 3 tokens"):
        audit_compression(tokenizer, raw_counts=np.zeros(3, dtype=int))


def test_it_saves_draws_and_says_what_is_lost(tokenizer, slot_index, tmp_path):
    import engram_probes as ep

    audit = ep.audit_compression(tokenizer, raw_counts=slot_index.raw_counts)
    again = ep.load_result(audit.save(tmp_path))
    assert again.to_frame().equals(audit.to_frame()) and again.summary() == audit.summary()
    total = slot_index.raw_counts.sum()
    lost = sum(row.merged * row.occurrences for row in audit.to_frame().itertuples())
    assert f"{lost / total:.1%} are not the commonest" in audit.summary() and lost > 0
    bars = audit.figure(most=5).data[0]
    expected = [n for n in sorted(audit.lost.tolist(), reverse=True)[:5] if n]
    assert bars.x.tolist() == expected
    alone = ep.audit_compression(tokenizer)
    assert alone.merged is None and alone.figure().data[0].x[0] == alone.raw_tokens.max()


def test_a_map_that_merges_nothing_has_nothing_to_show(tokenizer):
    """Planted: every raw token has an id of its own."""
    audit = audit_compression(tokenizer, np.arange(len(tokenizer)))
    assert (audit.raw_tokens == 1).all() and "0 ids are shared" in audit.summary()
    assert "there are none" in audit.figure().layout.meta["alt"]
