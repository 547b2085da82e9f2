"""Spearman correlations, plain and partial, of a bounded sample of tokens.

Ranks need all values at once, so sums do not do: of each block of documents at most `MOST` tokens
are kept, those with the smallest priorities, which are drawn from the text itself. So two samples
of two parts of a corpus add up to the sample of both.
"""

import zlib
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import rankdata

from engram_probes.bootstrap import divide

MOST = 500
ALIKE = 1e-9  # two variables this near to a function of one another cannot be told apart


@dataclass(eq=False)
class TokenSample:
    """block -> priorities [n] and features [n, F] of its tokens."""

    blocks: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def add(self, block: int, priorities: np.ndarray, features: np.ndarray) -> None:
        if block in self.blocks:
            old = self.blocks[block]
            priorities = np.concatenate([old[0], priorities])
            features = np.concatenate([old[1], features])
        kept = np.argsort(priorities, kind="stable")[:MOST]
        self.blocks[block] = (priorities[kept], features[kept])

    def __add__(self, other: "TokenSample") -> "TokenSample":
        both = TokenSample(dict(self.blocks))
        for block, kept in other.blocks.items():
            both.add(block, *kept)
        return both

    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """Block of each token [n], and features [n, F]."""
        blocks = np.repeat(list(self.blocks), [len(kept[0]) for kept in self.blocks.values()])
        return blocks, np.concatenate([kept[1] for kept in self.blocks.values()])


def priorities(text: str, size: int, seed: int) -> np.ndarray:
    """A random number for each token of a text, the same whenever it is read."""
    return np.random.default_rng([seed, zlib.crc32(text.encode())]).random(size)


def centred_ranks(columns: np.ndarray) -> np.ndarray:
    """[..., n] -> ranks among all n, ties at their mean, from -1/2 to 1/2."""
    return rankdata(columns, axis=-1) / columns.shape[-1] - 0.5


def moments(ranks: np.ndarray) -> np.ndarray:
    """Sums of products of F variables and 1: [F, n] -> [F + 1, F + 1]."""
    rows = np.concatenate([ranks, np.ones((1, ranks.shape[1]))])
    return rows @ rows.T


def correlation(moments: np.ndarray) -> np.ndarray:
    """Sums of products of variables and 1 [..., F + 1, F + 1] -> correlations [..., F, F]."""
    mean = divide(moments[..., :-1, -1:], moments[..., -1:, -1:])
    covariance = divide(moments[..., :-1, :-1], moments[..., -1:, -1:]) - mean * mean.swapaxes(
        -1, -2
    )
    spread = np.sqrt(np.maximum(np.diagonal(covariance, axis1=-2, axis2=-1), 0))
    spread = np.where(spread > ALIKE, spread, 0)
    return divide(covariance, spread[..., :, None] * spread[..., None, :])


def partial(matrix: np.ndarray, a: int, b: int, given: tuple[int, ...]) -> np.ndarray:
    """Correlation of two variables with others held fixed; NaN where these fix one of the two.

    Args:
        matrix: correlations [..., F, F].
    """
    if not given:
        return matrix[..., a, b]
    first, *rest = given
    ab, af, bf = (partial(matrix, *pair, tuple(rest)) for pair in ((a, b), (a, first), (b, first)))
    free = (1 - af**2) * (1 - bf**2)
    return divide(ab - af * bf, np.sqrt(np.where(free > ALIKE, free, 0)))
