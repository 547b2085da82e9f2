"""Collisions: n-grams of a text that read the same rows as another one."""

from dataclasses import dataclass

import numpy as np

from engram_model.errors import UsageError
from engram_model.hashing import NgramHasher


@dataclass(frozen=True)
class Collision:
    """An n-gram that shares slots with another.

    Attributes:
        ngram: its compressed ids.
        position: of its last id, where it comes first.
        heads: the heads in which both have the same slot.
    """

    ngram: tuple[int, ...]
    position: int
    heads: tuple[int, ...]


def colliding_ngrams(
    hasher: NgramHasher,
    compressed_ids: np.ndarray,
    ngram: tuple[int, ...],
    layer_id: int,
    heads: int = 1,
) -> list[Collision]:
    """Other n-grams of a text whose slots are those of `ngram` in at least `heads` heads.

    Args:
        compressed_ids: [positions] of the text; -1 marks a position without text.
        ngram: as many compressed ids as one of the hasher's orders.
        layer_id: a memory layer.
        heads: the least number of heads of that order.

    Returns:
        Each n-gram once, those that share most heads first, then in the order of the text.

    Raises:
        UsageError: an n-gram of no order of the hasher, or more heads than it has.
    """
    order = len(ngram)
    if not 2 <= order <= hasher.max_ngram_size or not 1 <= heads <= hasher.n_heads:
        raise UsageError(
            f"{order}-gram in {heads} heads: the hasher has orders 2 to {hasher.max_ngram_size} "
            f"and {hasher.n_heads} heads"
        )
    ids = np.asarray(compressed_ids, dtype=np.int64)
    columns = slice((order - 2) * hasher.n_heads, (order - 1) * hasher.n_heads)
    target = hasher.slots(np.array(ngram), layer_id)[-1, columns]
    shared = hasher.slots(ids, layer_id)[:, columns] == target
    found: dict[tuple[int, ...], Collision] = {}
    for position in np.flatnonzero(shared.sum(-1) >= heads).tolist():
        other = tuple(ids[max(0, position - order + 1) : position + 1].tolist())
        if len(other) == order and -1 not in other and other != tuple(ngram):
            same = tuple(np.flatnonzero(shared[position]).tolist())
            found.setdefault(other, Collision(other, position, same))
    return sorted(found.values(), key=lambda collision: -len(collision.heads))
