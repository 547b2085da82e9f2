"""Intervals over documents."""

import numpy as np

from engram_probes.bootstrap import interval, ratio_interval


def test_interval_of_a_mean_is_about_two_standard_errors():
    values = np.random.default_rng(0).normal(size=400)
    low, high = ratio_interval(values, np.ones(400), seed=0)
    error = values.std() / np.sqrt(400)
    np.testing.assert_allclose(
        [low, high], values.mean() + np.array([-1.96, 1.96]) * error, atol=0.02
    )


def test_documents_are_drawn_and_not_tokens():
    """Tokens that agree within their document tell no more than one of them."""
    per_document = np.random.default_rng(0).normal(size=50)
    few = ratio_interval(per_document, np.ones(50), seed=1)
    many = ratio_interval(100 * per_document, np.full(50, 100), seed=1)
    np.testing.assert_allclose(few, many)


def test_too_few_documents_have_no_interval():
    low, high = ratio_interval(np.array([[2.0, 3.0]]), np.array([[4, 4]]), seed=0)
    assert low.shape == high.shape == (2,)
    assert np.isnan(low).all() and np.isnan(high).all()
    assert np.isnan(interval(lambda weights: weights.sum(), 4, 0, least=5)).all()


def test_the_seed_decides():
    sums, counts = np.arange(30.0), np.ones(30)
    assert ratio_interval(sums, counts, 1) == ratio_interval(sums, counts, 1)
    assert ratio_interval(sums, counts, 1) != ratio_interval(sums, counts, 2)


def test_a_quantity_that_a_draw_misses():
    sums, counts = np.array([0.0, 0.0, 5.0]), np.array([0, 0, 1])
    assert ratio_interval(sums, counts, 0) == (5, 5)
