"""Running two models over the same positions, and what `cka` makes of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch

from engram_model.errors import CorpusError, UsageError
from engram_probes.alignment import Alignment, soft_alignment
from engram_probes.bootstrap import interval
from engram_probes.capture import Subject, batches, check_vocabularies, encode
from engram_probes.hsic import (
    MIN_SAMPLES,
    HsicSums,
    cka_ratio,
    hsic_of_centred,
    permuted,
    u_centred,
)
from engram_probes.neighbours import mutual_neighbours
from engram_probes.positions import entity_final, sampled
from engram_probes.provenance import provenance
from engram_probes.text import Documents

LARGEST_BATCH, SMALLEST_BATCH, BLOCKS = 256, 8, 10
LEAST_BLOCKS = 5  # an interval from fewer would be a guess
POOL = 512  # documents in which nearest neighbours are looked for


@dataclass(frozen=True, eq=False)
class Picked:
    """A document's ids and the positions that are looked at."""

    ids: list[int]
    positions: np.ndarray


@dataclass(eq=False)
class Tally:
    """Sums over blocks of documents.

    blocks: HSIC sums of each. null: permuted HSICs summed over all batches, [P, R, C].
    pool: features of one position a document, of the rows' and of the columns' model.
    """

    permutations: int
    generator: np.random.Generator
    blocks: list[HsicSums] = field(default_factory=list)
    null: np.ndarray | float = 0.0
    pool: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    documents: int = 0
    samples: int = 0
    batches: int = 0

    def add_block(self, rows: np.ndarray, columns: np.ndarray, order: np.ndarray) -> None:
        """rows, columns: features [layers, samples, d]; order: how manieth of its document each is.

        All samples of one order come from different documents: they make a batch.
        """
        parts = []
        for i in range(int(order.max(initial=-1)) + 1):
            chosen = order == i
            if chosen.sum() < MIN_SAMPLES:
                break
            if i == 0 and self.documents < POOL:
                self.pool.append((rows[:, chosen], columns[:, chosen]))
            parts.append(self._add_batch(rows[:, chosen], columns[:, chosen]))
            self.documents += int(chosen.sum()) if i == 0 else 0
            self.samples += int(chosen.sum())
        if parts:
            self.batches += len(parts)
            self.blocks.append(HsicSums.total(parts))

    def _add_batch(self, rows: np.ndarray, columns: np.ndarray) -> HsicSums:
        rows, columns = u_centred(rows), u_centred(columns)
        if self.permutations:
            draws = permuted(rows, columns, self.permutations, self.generator)
            self.null = self.null + np.stack(list(draws))
        return hsic_of_centred(rows, columns)


@dataclass(frozen=True, eq=False, kw_only=True)
class AlignmentRun:
    """The options of `cka`, and their checks."""

    model_a: Any
    model_b: Any
    tokenizer: Any
    positions: str
    per_document: int
    k: int
    neighbours: int
    permutations: int
    seed: int

    def __call__(
        self,
        texts: Any,
        batch_size: int | None,
        max_documents: int | None,
        progress: Callable[[int, int | None], None] | None,
    ) -> Alignment:
        columns, rows = Subject.of(self.model_a), Subject.of(self.model_b)
        self._check(columns, rows, batch_size)
        documents = Documents(texts, max_documents)
        size = batch_size or _batch_size(documents.total)
        tally = Tally(self.permutations, np.random.default_rng(self.seed))
        picked = self._pick(documents, min(columns.context, rows.context))
        while block := list(islice(picked, size)):
            order = np.concatenate([np.arange(len(p.positions)) for p in block])
            tally.add_block(features(rows, block), features(columns, block), order)
            if progress:
                progress(documents.read, documents.total)
        if not tally.blocks:
            raise CorpusError(
                f"{documents.read} documents are too few: CKA needs at least {MIN_SAMPLES} with a "
                f"position to compare ({self.positions})"
            )
        return self._result(columns, rows, documents, tally, size)

    def _check(self, columns: Subject, rows: Subject, batch_size: int | None) -> None:
        if self.positions not in ("sampled", "entity"):
            raise UsageError(f"positions {self.positions!r}: use 'sampled' or 'entity'")
        if self.per_document < 1 or self.permutations < 0 or self.neighbours < 1:
            raise UsageError(
                f"per_document {self.per_document}, permutations {self.permutations}, neighbours "
                f"{self.neighbours}: use at least 1, 0 and 1"
            )
        if batch_size is not None and batch_size < MIN_SAMPLES:
            raise UsageError(f"batch_size {batch_size}: debiased CKA needs {MIN_SAMPLES} or more")
        if not 1 <= self.k <= len(rows.layers):
            raise UsageError(
                f"k {self.k}: {rows.name} has {len(rows.layers)} layers; use 1 to "
                f"{len(rows.layers)}"
            )
        check_vocabularies(columns, rows)

    def _pick(self, documents: Documents, context: int) -> Iterator[Picked]:
        generator = np.random.default_rng([self.seed, 1])
        special_ids = self.tokenizer.all_special_ids
        for document in documents:
            if self.positions == "entity":
                ids, chosen = entity_final(document, self.tokenizer, self.per_document, generator)
            else:
                ids = encode(self.tokenizer, document["text"])
                special = np.isin(ids[:context], special_ids)
                special[0] = True
                chosen = sampled(special, self.per_document, generator)
            chosen = chosen[(chosen > 0) & (chosen < context)]
            if len(chosen):
                yield Picked(ids[:context], chosen)

    def _result(
        self, columns: Subject, rows: Subject, documents: Documents, tally: Tally, size: int
    ) -> Alignment:
        cross = np.stack([block.cross for block in tally.blocks])
        own_rows = np.stack([block.rows for block in tally.blocks])
        own_columns = np.stack([block.columns for block in tally.blocks])
        shape = cross.shape[1:]

        def estimate(weights: np.ndarray) -> np.ndarray:
            """CKA and, as one more row, the soft alignment."""
            matrix = cka_ratio(
                np.tensordot(weights, cross, 1), weights @ own_rows, weights @ own_columns
            )
            return np.vstack([matrix, soft_alignment(matrix, self.k)])

        both = estimate(np.ones(len(cross), dtype=np.int64))
        low, high = interval(estimate, len(cross), self.seed, least=LEAST_BLOCKS)
        null_mean, null_high = _null(tally, own_rows.sum(0), own_columns.sum(0), shape)
        nearest, near, chance = _neighbours(tally, self.neighbours)
        settings = {
            "positions": self.positions,
            "per_document": self.per_document,
            "batch_size": size,
            "k": self.k,
            "neighbours": self.neighbours,
            "permutations": self.permutations,
        }
        return Alignment(
            provenance=provenance(
                [columns.model, rows.model],
                self.tokenizer,
                documents.description(),
                settings,
                self.seed,
            ),
            model_a=columns.name,
            model_b=rows.name,
            memory_layers=columns.memory_layers,
            positions=self.positions,
            documents=tally.documents,
            samples=tally.samples,
            batches=tally.batches,
            blocks=len(tally.blocks),
            batch_size=size,
            per_document=self.per_document,
            permutations=self.permutations,
            k=self.k,
            neighbours_k=near,
            neighbours_chance=chance,
            matrix=both[:-1],
            low=low[:-1],
            high=high[:-1],
            null_mean=null_mean,
            null_high=null_high,
            neighbours=nearest,
            soft_index=both[-1],
            soft_low=low[-1],
            soft_high=high[-1],
        )


def features(subject: Subject, block: list[Picked]) -> np.ndarray:
    """Residual after every block at the picked positions, [layers, samples, d] float32."""
    parts = []
    for batch in batches(block, lambda picked: len(picked.ids)):
        residuals = subject.residuals([picked.ids for picked in batch])
        row = np.repeat(np.arange(len(batch)), [len(picked.positions) for picked in batch])
        column = np.concatenate([picked.positions for picked in batch])
        chosen = [depth[row, column].float() for depth in residuals.depths[1:]]
        parts.append(torch.stack(chosen).cpu().numpy())
    return np.concatenate(parts, axis=1)


def _batch_size(total: int | None) -> int:
    """Blocks enough for an interval where there are documents enough for blocks."""
    if total is None:
        return LARGEST_BATCH
    return min(LARGEST_BATCH, max(SMALLEST_BATCH, total // BLOCKS))


def _null(
    tally: Tally, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    if not tally.permutations:
        return np.full(shape, np.nan), np.full(shape, np.nan)
    null = cka_ratio(np.asarray(tally.null), rows, columns)
    return null.mean(0), np.percentile(null, 95, axis=0)


def _neighbours(tally: Tally, most: int) -> tuple[np.ndarray, int, float]:
    """Overlap, the k it was computed with, and what chance gives."""
    rows = np.concatenate([pair[0] for pair in tally.pool], axis=1)[:, :POOL]
    columns = np.concatenate([pair[1] for pair in tally.pool], axis=1)[:, :POOL]
    n = rows.shape[1]
    near = max(1, min(most, n // 4))
    return mutual_neighbours(rows, columns, near), near, near / (n - 1)
