"""Random choices that can be addressed: the same (seed, stream, index) always rolls the same."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

# One stream for each use, so that adding a use never shifts another.
STREAMS = {
    "words": 0,
    "people": 1,
    "phrases": 2,
    "train order": 3,
    "valid order": 4,
    "train": 5,
    "valid": 6,
    "mentors": 7,
    "suites": 8,
}
_WORD = 1 << 64
_REFILL = 96


def philox(seed: int, stream: str, index: int = 0) -> np.random.Philox:
    """The counter-based bit generator of one (seed, stream, index).

    Only its raw 64-bit words are used: NumPy promises to keep those the same for ever, which it
    does not for the methods of `Generator`.
    """
    return np.random.Philox(key=(STREAMS[stream] << 64) + seed, counter=index << 128)


class Dice:
    """Uniform choices from one (seed, stream, index)."""

    def __init__(self, seed: int, stream: str, index: int = 0):
        self._bits = philox(seed, stream, index)
        self._words: list[int] = []

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        if not self._words:
            self._words = self._bits.random_raw(_REFILL).tolist()
        return self._words.pop() * n // _WORD

    def pick(self, items: Sequence[Item]) -> Item:
        """One of `items`."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[Item], k: int) -> list[Item]:
        """`k` different places of `items`, in random order (k = len(items) shuffles)."""
        pool = list(items)
        for i in range(k):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:k]


def permutation(seed: int, stream: str, index: int, n: int) -> np.ndarray:
    """int64 [n]: a random order of 0..n-1."""
    return np.argsort(philox(seed, stream, index).random_raw(n), kind="stable")
