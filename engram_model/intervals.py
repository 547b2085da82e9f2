"""Intervals by drawing documents, or people asked about, with replacement: what belongs to one of
them is not independent."""

import numpy as np

DRAWS = 1000


def ratio_interval(sums: np.ndarray, counts: np.ndarray, seed: int) -> tuple[float, float]:
    """95% percentile interval of `sums.sum() / counts.sum()`.

    Args:
        sums, counts: [documents], counts above 0. With one document there is nothing to draw from:
            low and high are then the ratio itself.
    """
    drawn = np.random.default_rng(seed).integers(0, len(sums), (DRAWS, len(sums)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)


def mean_interval(values: np.ndarray, groups: list[str], seed: int) -> tuple[float, float]:
    """95% interval of the mean of `values` in [0, 1], whose groups are drawn whole.

    Where all values are 0, or all are 1, drawing shows no spread: the interval is then the exact
    binomial one of as many outcomes as there are groups.

    Args:
        values: [n].
        groups: the group of each value.
    """
    _, places = np.unique(groups, return_inverse=True)
    size = int(places.max()) + 1
    if (values == 0).all():
        return 0.0, unseen_share(size)
    if (values == 1).all():
        return 1 - unseen_share(size), 1.0
    return ratio_interval(np.bincount(places, values), np.bincount(places), seed)


def unseen_share(size: int) -> float:
    """The largest share that something may have which none of `size` draws shows: the upper end of
    the exact binomial 95% interval."""
    return 1 - 0.025 ** (1 / size)
