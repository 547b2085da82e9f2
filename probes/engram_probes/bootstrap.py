"""Intervals by drawing documents with replacement: tokens of one document are not independent."""

import warnings
from collections.abc import Callable, Iterator

import numpy as np

LEVEL = 0.95
DRAWS = 1000
BLOCKS = 200  # of documents, where memory must not grow with their number


def draw_counts(units: int, seed: int, draws: int = DRAWS) -> Iterator[np.ndarray]:
    """How often each unit is drawn, int64 [units], `draws` times."""
    generator = np.random.default_rng(seed)
    for _ in range(draws):
        yield np.bincount(generator.integers(0, units, units), minlength=units)


def interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    units: int,
    seed: int,
    draws: int = DRAWS,
    least: int = 2,
) -> tuple[np.ndarray, np.ndarray]:
    """95% percentile interval of a statistic of weighted units.

    Args:
        statistic: weights int64 [units] -> array of any shape; weights of one give the estimate.
        units: number of documents, or blocks of them.
        seed: of the draws.
        draws: how many.
        least: units below which there is no interval.

    Returns:
        Low and high, shaped as the statistic; NaN where there are fewer than `least` units.
    """
    shape = np.shape(statistic(np.ones(units, dtype=np.int64)))
    if units < least or 0 in shape:
        return np.full(shape, np.nan), np.full(shape, np.nan)
    drawn = np.stack([statistic(counts) for counts in draw_counts(units, seed, draws)])
    tail = 100 * (1 - LEVEL) / 2
    with warnings.catch_warnings():  # where every draw is NaN, so is the interval
        warnings.simplefilter("ignore", RuntimeWarning)
        # A draw can miss every document that has the quantity: it says nothing about it.
        low, high = np.nanpercentile(drawn, [tail, 100 - tail], axis=0)
    return low, high


def ratio_interval(
    sums: np.ndarray, counts: np.ndarray, seed: int, draws: int = DRAWS
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of `sums.sum(0) / counts.sum(0)` over documents.

    Args:
        sums: [documents, ...].
        counts: [documents, ...], shaped so that it divides the sums.
    """

    def ratio(weights: np.ndarray) -> np.ndarray:
        return divide(np.tensordot(weights, sums, 1), np.tensordot(weights, counts, 1))

    return interval(ratio, len(sums), seed, draws)


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the denominator is zero."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    out = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator != 0)
