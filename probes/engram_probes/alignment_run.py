"""Running two models over the same positions, and what `cka` makes of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar
from zlib import crc32

import numpy as np

from engram_model.errors import CorpusError, UsageError
from engram_probes.alignment import Alignment, soft_alignment
from engram_probes.alignment_state import AlignmentState, Estimate, Picked, features
from engram_probes.capture import Subject, check_vocabularies
from engram_probes.hsic import MIN_SAMPLES, HsicSums, cka_ratio
from engram_probes.positions import Choice, same_ends
from engram_probes.provenance import provenance
from engram_probes.second_opinions import second_opinions
from engram_probes.text import Documents

LARGEST_BATCH, SMALLEST_BATCH, BLOCKS = 256, 8, 10
Progress = Callable[[int, int | None], None] | None
State = TypeVar("State", bound=Any)  # a dataclass with `samples` and `texts` that adds up


@dataclass(frozen=True, eq=False, kw_only=True)
class Picker:
    """Which positions of each document are looked at.

    tokenizer, context: of the model or models that are compared. other, other_context: of the rows'
    model where it has another tokenizer; then only positions where tokens of both end are taken.
    sinks: whether special tokens stand in for some positions, see `Picked`.
    """

    choice: Choice
    tokenizer: Any
    context: int
    per_document: int
    seed: int
    other: Any = None
    other_context: int = 0
    sinks: bool = True

    def __call__(self, document: dict) -> tuple[tuple[Picked, Picked], int, int]:
        """For the columns' and the rows' model; positions there are, and that both have."""
        text = document["text"]
        generator = np.random.default_rng([self.seed, crc32(text.encode("utf-8", "replace"))])
        ids, usual = self.choice.of(document, self.tokenizer)
        usual = usual[(usual > 0) & (usual < self.context)]
        ids, other_ids, place = ids[: self.context], ids, np.arange(len(ids))
        candidates = len(usual)
        if self.other is not None:
            other_ids, place = same_ends(text, self.tokenizer, self.other)
            usual = usual[(place[usual] > 0) & (place[usual] < self.other_context)]
        chosen = generator.permutation(usual)[: self.per_document]
        stand_ins = self._stand_ins(ids, len(chosen), generator)
        columns = Picked(ids, chosen, stand_ins)
        if self.other is None:
            return (columns, columns), candidates, candidates
        there = np.where(stand_ins < 0, -1, np.maximum(place[stand_ins], 0))
        rows = Picked(other_ids[: self.other_context], place[chosen], there)
        return (columns, rows), candidates, len(usual)

    def _stand_ins(self, ids: list[int], number: int, generator: np.random.Generator) -> np.ndarray:
        special = np.isin(ids, self.tokenizer.all_special_ids)
        special[0] = True
        drawn = generator.choice(np.flatnonzero(special), number)
        replaced = (generator.random(number) < special.mean()) & self.sinks
        return np.where(replaced, drawn, -1)


@dataclass(frozen=True, eq=False, kw_only=True)
class AlignmentRun:
    """The options of `cka`, and their checks."""

    model_a: Any
    model_b: Any
    tokenizer: Any
    tokenizer_b: Any
    positions: str
    per_document: int
    k: int
    neighbours: int
    permutations: int
    second: bool
    sinks: bool
    seed: int

    def __post_init__(self) -> None:
        Choice(self.positions)
        check_options(self.per_document, self.k, self.rows)
        if self.permutations < 0 or self.neighbours < 1:
            raise UsageError(
                f"permutations {self.permutations}, neighbours {self.neighbours}: use at least 0 "
                "and 1"
            )
        if self.tokenizer_b is None:
            check_vocabularies(self.columns, self.rows)

    @cached_property
    def columns(self) -> Subject:
        return Subject.of(self.model_a)

    @cached_property
    def rows(self) -> Subject:
        return Subject.of(self.model_b)

    def read(
        self,
        texts: Any,
        batch_size: int | None = None,
        max_documents: int | None = None,
        progress: Progress = None,
    ) -> AlignmentState:
        """What the texts say; states of parts of a corpus, read with one batch size, add up.

        Raises:
            CorpusError: too few documents with a position to compare.
        """
        columns, rows = self.columns, self.rows
        picker = Picker(
            choice=Choice(self.positions),
            tokenizer=self.tokenizer,
            context=columns.context
            if self.tokenizer_b is not None
            else min(columns.context, rows.context),
            per_document=self.per_document,
            seed=self.seed,
            other=self.tokenizer_b,
            other_context=rows.context,
            sinks=self.sinks,
        )
        documents = Documents(texts, max_documents)
        return read_blocks(documents, picker, batch_size, self._block, progress)

    def _block(self, block: list) -> AlignmentState:
        columns, rows = self.columns, self.rows
        pairs = [pair for pair, _, _ in block]
        first = [one for one, _ in pairs]
        second = [other for _, other in pairs]
        for subject, picked in ((columns, first), (rows, second)):
            subject.check_vocabulary([max(one.ids) for one in picked])
        there = features(columns, first)
        same = rows.model is columns.model and self.tokenizer_b is None
        here = there if same else features(rows, second)
        state = AlignmentState.of_block(here, there, first, self.permutations, self.seed)
        counts = np.array([(every, both) for _, every, both in block]).sum(0)
        return replace(state, candidates=int(counts[0]), aligned=int(counts[1]))

    def result(self, state: AlignmentState, batch_size: int) -> Alignment:
        columns, rows = self.columns, self.rows
        found = Estimate.of(state.blocks, self.k, self.seed)
        null_mean, null_high = _null(state, found.matrix.shape, self.permutations)
        settings = {
            "positions": self.positions,
            "per_document": self.per_document,
            "batch_size": batch_size,
            "k": self.k,
            "neighbours": self.neighbours,
            "permutations": self.permutations,
            "second": self.second,
            "sinks": self.sinks,
        }
        return Alignment(
            provenance=provenance(
                [columns.model, rows.model],
                self.tokenizer,
                described(state.texts),
                settings,
                self.seed,
            ),
            model_a=columns.name,
            model_b=rows.name,
            memory_layers=columns.memory_layers,
            positions=self.positions,
            documents=state.documents,
            samples=state.samples,
            batches=state.batches,
            blocks=len(state.blocks),
            batch_size=batch_size,
            per_document=self.per_document,
            permutations=self.permutations,
            k=self.k,
            aligned_share=state.aligned / state.candidates,
            other_tokenizer=self.tokenizer_b is not None,
            matrix=found.matrix,
            low=found.low,
            high=found.high,
            null_mean=null_mean,
            null_high=null_high,
            soft_index=found.soft,
            soft_low=found.soft_low,
            soft_high=found.soft_high,
            **self._second(state),
            **_sinks(state, self.sinks),
        )

    def _second(self, state: AlignmentState) -> dict[str, Any]:
        """Fields of the second opinions."""
        if not self.second:
            return {}
        rows, columns = state.pooled()
        near = max(1, min(self.neighbours, rows.shape[1] // 4))
        generator = np.random.default_rng([self.seed, 2])
        found = second_opinions(rows, columns, near, generator)
        soft = found.soft(lambda matrix: soft_alignment(matrix, self.k))
        return {
            "pool": rows.shape[1],
            "neighbours_k": near,
            "neighbours_chance": near / (rows.shape[1] - 1),
            "neighbours": found.value[0],
            "procrustes": found.value[1],
            "rsa": found.value[2],
            "second_null_mean": found.null_mean,
            "second_null_high": found.null_high,
            **dict(zip(("second_soft", "second_low", "second_high"), soft, strict=True)),
        }


def check_options(per_document: int, k: int, rows: Subject) -> None:
    if per_document < 1:
        raise UsageError(f"per_document {per_document}: use at least 1")
    if not 1 <= k <= len(rows.layers):
        raise UsageError(
            f"k {k}: {rows.name} has {len(rows.layers)} layers; use 1 to {len(rows.layers)}"
        )


def block_size(batch_size: int | None, total: int | None) -> int:
    """As asked for; or blocks enough for an interval where there are documents enough."""
    if batch_size is not None:
        if batch_size < MIN_SAMPLES:
            raise UsageError(f"batch_size {batch_size}: debiased CKA needs {MIN_SAMPLES} or more")
        return batch_size
    if total is None:
        return LARGEST_BATCH
    return min(LARGEST_BATCH, max(SMALLEST_BATCH, total // BLOCKS))


def blocks_of(documents: Documents, picker: Picker, size: int) -> Iterator[list]:
    """What `picker` gives of `size` documents that have a position to look at."""
    found = (picker(document) for document in documents)
    picked = (one for one in found if len(one[0][0].positions))
    while block := list(islice(picked, size)):
        yield block


def read_blocks(
    documents: Documents,
    picker: Picker,
    batch_size: int | None,
    state_of: Callable[[list], State],
    progress: Progress,
) -> State:
    """The states of all blocks of documents, added up.

    Raises:
        CorpusError: too few documents with a position to compare.
    """
    state: State | None = None
    for block in blocks_of(documents, picker, block_size(batch_size, documents.total)):
        found = state_of(block)
        state = found if state is None else state + found
        if progress:
            progress(documents.read, documents.total)
    if state is None or not state.samples:
        raise _too_few(documents, picker.choice)
    return replace(state, texts=(documents.description(),))


def _too_few(documents: Documents, choice: Choice) -> CorpusError:
    missing = choice.missing()
    return CorpusError(
        missing
        or f"{documents.read} documents are too few: CKA needs at least {MIN_SAMPLES} with a "
        f"position to compare ({choice.asked})"
    )


def described(texts: tuple[dict, ...]) -> dict[str, Any]:
    """Of parts that were read apart."""
    if len(texts) == 1:
        return texts[0]
    documents = sum(part["documents"] for part in texts)
    return {"kind": "parts", "documents": documents, "parts": list(texts)}


def _null(
    state: AlignmentState, shape: tuple[int, ...], permutations: int
) -> tuple[np.ndarray, np.ndarray]:
    if not permutations:
        return np.full(shape, np.nan), np.full(shape, np.nan)
    null = state.null_cka()
    return null.mean(0), np.percentile(null, 95, axis=0)


def _sinks(state: AlignmentState, asked: bool) -> dict[str, Any]:
    """Fields of the check with special tokens put back."""
    if not asked:
        return {}
    total = HsicSums.total(state.sinks)
    return {
        "with_sinks": cka_ratio(total.cross, total.rows, total.columns),
        "sink_share": state.replaced / state.samples,
    }
