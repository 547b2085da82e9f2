"""Comparisons of tokens: planted differences, texts that share parts, wrong use."""

from dataclasses import replace

import numpy as np
import pytest

import engram_probes as ep
from engram_model.errors import UsageError


def planted(first, ids, surprisal, tokenizer_sha256="same"):
    """Predictions whose surprisals are known, made from real ones of as many tokens."""
    p = len(ids)
    return ep.Predictions(
        provenance=replace(first.provenance, tokenizer_sha256=tokenizer_sha256),
        model="planted",
        tokens=tuple(str(i) for i in ids),
        next_texts=(("x",),) * p,
        token_ids=np.array(ids),
        surprisal=np.array(surprisal, dtype=float),
        entropy=np.zeros(p),
        next_ids=np.zeros((p, 1), dtype=int),
        next_probs=np.ones((p, 1)),
        special=np.arange(p) == 0,
    )


def test_predictions_are_those_of_the_model(predictions, gates):
    np.testing.assert_allclose(predictions.surprisal[1:], gates.next_surprisal[:-1], rtol=1e-5)
    assert np.isnan(predictions.surprisal[0])
    np.testing.assert_array_equal(predictions.next_ids, gates.next_ids)
    assert (predictions.entropy > 0).all()


def test_a_planted_difference_is_found_where_it_is(predictions):
    first = planted(predictions, [0, 1, 2, 3], [np.nan, 1, 5, 1])
    second = planted(predictions, [0, 1, 2, 3], [np.nan, 1, 2, 1])
    found = ep.compare_tokens(first, second, names=("A", "B"))
    np.testing.assert_array_equal(found.difference()[1:], [0, 3, 0])
    assert "A is 1.00 nats a token more surprised than B" in found.summary()
    assert "“2” (position 2): +3.00" in found.summary()


def test_texts_are_laid_side_by_side_by_their_tokens_in_common(predictions):
    first = planted(predictions, [0, 1, 9, 3, 4], [np.nan, 1, 1, 1, 1])
    second = planted(predictions, [0, 1, 7, 8, 3, 4], [np.nan, 1, 1, 1, 3, 1])
    found = ep.compare_tokens(first, second)
    np.testing.assert_array_equal(found.positions, [[0, 1, 3, 4], [0, 1, 4, 5]])
    strip = found.strip(1)
    assert np.isnan(strip[[0, 2, 3]]).all()
    np.testing.assert_array_equal(strip[[1, 4, 5]], [0, -2, 0])


def test_before_the_texts_part_nothing_differs(engram, tokenizer):
    first, second = (
        ep.next_tokens(engram, tokenizer, f"The miller of Varnholm {end}")
        for end in ("counts boats", "sells boats")
    )
    found = ep.compare_tokens(first, second, names=("counts", "sells"))
    apart = next(i for i, (a, b) in enumerate(zip(*found.texts, strict=False)) if a != b)
    assert (found.positions[0] == found.positions[1])[:apart].all()
    np.testing.assert_allclose(found.difference()[1:apart], 0, atol=1e-5)
    assert np.abs(found.difference()[apart:]).max() > 1e-4


def test_gates_of_one_side_are_shown_but_not_compared(predictions, gates, twin, tokenizer, texts):
    other = ep.next_tokens(twin, tokenizer, texts[1])
    found = ep.compare_tokens(predictions, other, (gates, None))
    assert found.offered == ("surprisal", "entropy")
    np.testing.assert_allclose(found.values("gate")[0], gates.values("gate").mean(0))
    assert np.isnan(found.values("gate")[1]).all()
    both = ep.compare_tokens(predictions, predictions, (gates, gates))
    assert both.offered == ("surprisal", "entropy", "gate", "added")
    assert "equally well" in both.summary()


def test_wrong_use_is_refused(predictions, gates, engram, tokenizer):
    other = ep.next_tokens(engram, tokenizer, "Boats at dusk.")
    with pytest.raises(UsageError, match="other tokenizers"):
        ep.compare_tokens(predictions, planted(predictions, [0, 1], [np.nan, 1], "another"))
    with pytest.raises(UsageError, match="another text"):
        ep.compare_tokens(other, other, (gates, None))
    with pytest.raises(UsageError, match="no gates were given"):
        ep.compare_tokens(other, other).figure("gate")
    with pytest.raises(UsageError, match="not compared"):
        ep.compare_tokens(other, other).values("loss")
    with pytest.raises(UsageError, match="one text"):
        ep.next_tokens(engram, tokenizer, ["a", "b"])


def test_texts_with_nothing_in_common_are_said_so(predictions):
    first, second = planted(predictions, [1], [np.nan]), planted(predictions, [2], [np.nan])
    found = ep.compare_tokens(first, second)
    assert "no token in common" in found.summary() and found.to_frame().empty
    assert found.figure().layout.meta["alt"]
