"""What is kept of compared texts: sums over blocks of documents, so that parts of a corpus add up.

Two parts give exactly what the whole does where the first ends with a full block: positions are
drawn by the document's text and permutations by the block's tokens, not by what was read before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import sha256

import numpy as np
import torch

from engram_probes.alignment import soft_alignment
from engram_probes.bootstrap import interval
from engram_probes.capture import Subject, batches
from engram_probes.hsic import (
    MIN_SAMPLES,
    HsicSums,
    cka_ratio,
    hsic_of_centred,
    permuted,
    u_centred,
)

LEAST_BLOCKS = 5  # an interval from fewer would be a guess
POOL = 512  # documents that the second opinions are formed of


@dataclass(frozen=True, eq=False)
class Picked:
    """A document's ids and the positions that are looked at.

    stand_ins: of each position the special token (or position 0) that takes its place where those
    are put back, -1 for none: as often as there are such tokens in the document.
    """

    ids: list[int]
    positions: np.ndarray
    stand_ins: np.ndarray

    @property
    def looked_at(self) -> np.ndarray:
        return np.append(self.positions, self.stand_ins[self.stand_ins >= 0])


@dataclass(frozen=True, eq=False)
class Layout:
    """How a block's features make batches: samples that are the same manieth of their documents.

    batches: places of each batch's samples among the features. with_sinks: the same with the
    special tokens in their places.
    """

    batches: list[np.ndarray]
    with_sinks: list[np.ndarray]

    @classmethod
    def of(cls, block: Sequence[Picked]) -> "Layout":
        order, places, stand_ins, start = [], [], [], 0
        for picked in block:
            number = len(picked.positions)
            own = start + np.arange(number)
            replaced = picked.stand_ins >= 0
            instead = own.copy()
            instead[replaced] = start + number + np.arange(replaced.sum())
            order.append(np.arange(number))
            places.append(own)
            stand_ins.append(instead)
            start += number + int(replaced.sum())
        one, two, nth = (np.concatenate(parts) for parts in (places, stand_ins, order))
        # Position i of fewer documents than the estimator needs makes no batch, nor do later ones.
        batches = [nth == i for i in range(nth.max() + 1) if (nth == i).sum() >= MIN_SAMPLES]
        return cls([one[chosen] for chosen in batches], [two[chosen] for chosen in batches])

    @property
    def samples(self) -> int:
        return sum(len(batch) for batch in self.batches)

    @property
    def sinks(self) -> int:
        pairs = zip(self.batches, self.with_sinks, strict=True)
        return sum(int((a != b).sum()) for a, b in pairs)


@dataclass(frozen=True, eq=False, kw_only=True)
class AlignmentState:
    """Two parts add up.

    blocks: HSIC sums of each block. sinks: of those with special tokens put back, where asked for.
    null: permuted HSICs summed over all batches, [P, R, C].
    pool: features of one position a document, of the rows' and of the columns' model.
    documents, samples, batches: compared. replaced: samples that a special token takes the place
    of. candidates, aligned: positions that could be looked at, and those that the other tokenizer
    has too. texts: descriptions of what was read.
    """

    blocks: tuple[HsicSums, ...] = ()
    sinks: tuple[HsicSums, ...] = ()
    null: np.ndarray | float = 0.0
    pool: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    documents: int = 0
    samples: int = 0
    batches: int = 0
    replaced: int = 0
    candidates: int = 0
    aligned: int = 0
    texts: tuple[dict, ...] = ()

    def __add__(self, other: "AlignmentState") -> "AlignmentState":
        added = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        have = np.cumsum([0, *(rows.shape[1] for rows, _ in added["pool"])])
        kept = tuple(pair for pair, n in zip(added["pool"], have, strict=False) if n < POOL)
        return AlignmentState(**{**added, "pool": kept})

    @classmethod
    def of_block(
        cls,
        rows: np.ndarray,
        columns: np.ndarray,
        block: Sequence[Picked],
        permutations: int,
        seed: int,
    ) -> "AlignmentState":
        """rows, columns: `features` of the block by each model, the same object by the same."""
        layout = Layout.of(block)
        if not layout.batches:
            return cls()
        generator = np.random.default_rng([seed, block_key(block)])
        parts: list[HsicSums] = []
        null: np.ndarray | float = 0.0
        for batch in layout.batches:
            first, second = centred_pair(rows, columns, batch)
            parts.append(hsic_of_centred(first, second))
            if permutations:
                draws = permuted(first, second, permutations, generator)
                null = null + np.stack(list(draws))
        first_batch = layout.batches[0]
        return cls(
            blocks=(HsicSums.total(parts),),
            sinks=_with_sinks(rows, columns, layout, parts),
            null=null,
            pool=((rows[:, first_batch], columns[:, first_batch]),),
            documents=len(first_batch),
            samples=layout.samples,
            batches=len(layout.batches),
            replaced=layout.sinks,
        )

    def pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """[R, n, d] and [C, n, d'] of at most `POOL` documents."""
        rows, columns = zip(*self.pool, strict=True)
        return np.concatenate(rows, 1)[:, :POOL], np.concatenate(columns, 1)[:, :POOL]

    def null_cka(self) -> np.ndarray:
        """[P, R, C]."""
        total = HsicSums.total(self.blocks)
        return cka_ratio(np.asarray(self.null), total.rows, total.columns)


def block_key(block: Sequence[Picked]) -> int:
    """A number that depends on the block's tokens only."""
    digest = sha256()
    for picked in block:
        digest.update(np.array(picked.ids).tobytes())
    return int.from_bytes(digest.digest()[:8], "big")


def centred_pair(
    rows: np.ndarray, columns: np.ndarray, batch: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    first = u_centred(rows[:, batch])
    return first, first if columns is rows else u_centred(columns[:, batch])


def _with_sinks(
    rows: np.ndarray, columns: np.ndarray, layout: Layout, parts: list[HsicSums]
) -> tuple[HsicSums, ...]:
    """Batches without a special token stay as they are."""
    changed = [
        part
        if np.array_equal(batch, instead)
        else hsic_of_centred(*centred_pair(rows, columns, instead))
        for part, batch, instead in zip(parts, layout.batches, layout.with_sinks, strict=True)
    ]
    return (HsicSums.total(changed),)


def features(subject: Subject, block: Sequence[Picked]) -> np.ndarray:
    """Residual after every block at the positions looked at, [layers, samples, d] float32."""
    parts = []
    for batch in batches(block, lambda picked: len(picked.ids), subject.tokens_at_once):
        residuals = subject.residuals([picked.ids for picked in batch])
        positions = [picked.looked_at for picked in batch]
        row = np.repeat(np.arange(len(batch)), [len(places) for places in positions])
        column = np.concatenate(positions)
        chosen = [depth[row, column].float() for depth in residuals.depths[1:]]
        parts.append(torch.stack(chosen).cpu().numpy())
    return np.concatenate(parts, axis=1)


@dataclass(frozen=True, eq=False)
class Estimate:
    """CKA [R, C] and soft alignment [C] of blocks of documents, with 95% intervals."""

    matrix: np.ndarray
    low: np.ndarray
    high: np.ndarray
    soft: np.ndarray
    soft_low: np.ndarray
    soft_high: np.ndarray

    @classmethod
    def of(cls, blocks: Sequence[HsicSums], k: int, seed: int) -> "Estimate":
        cross = np.stack([block.cross for block in blocks])
        rows = np.stack([block.rows for block in blocks])
        columns = np.stack([block.columns for block in blocks])

        def both(weights: np.ndarray) -> np.ndarray:
            """CKA and, as one more row, the soft alignment."""
            matrix = cka_ratio(np.tensordot(weights, cross, 1), weights @ rows, weights @ columns)
            return np.vstack([matrix, soft_alignment(matrix, k)])

        value = both(np.ones(len(cross), dtype=np.int64))
        low, high = interval(both, len(cross), seed, least=LEAST_BLOCKS)
        return cls(value[:-1], low[:-1], high[:-1], value[-1], low[-1], high[-1])
