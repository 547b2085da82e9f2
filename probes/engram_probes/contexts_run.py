"""How `row_contexts` reads a corpus: sums for blocks of documents, a short list for each row."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import starmap
from typing import NamedTuple

import numpy as np

from engram_model.errors import CorpusError, UsageError
from engram_probes.bootstrap import BLOCKS, divide, ratio_interval
from engram_probes.capture import MemoryTrace, next_surprisal, text_ids
from engram_probes.contexts import RowContexts
from engram_probes.memory_tables import ModelTables, tables_of
from engram_probes.ngram_counts import ending_ngrams
from engram_probes.provenance import provenance
from engram_probes.row_choice import (
    column_of,
    compressed_ngram,
    rows_by_number,
    rows_of_column,
    rows_of_ngram,
)
from engram_probes.text import Documents, token_texts


class Context(NamedTuple):
    """One read of a row; contexts sort by strength, then by where they are."""

    strength: float
    document: int
    position: int
    gate: tuple[float, ...]
    surprisal: float
    texts: tuple[str, str, str, str]  # before, token, after, n-gram

    def key(self) -> tuple:
        return -self.strength, self.document, self.position


@dataclass(eq=False)
class RowState:
    """Of each row: reads and sums of strength [block, R], of random rows too; the distinct n-grams
    that read it, and its k strongest contexts. Two states of one set of rows add up."""

    reads: np.ndarray
    sums: np.ndarray
    control_reads: np.ndarray
    control_sums: np.ndarray
    ngrams: list[set[bytes]]
    best: list[list[Context]]
    k: int
    documents: int = 0
    tokens: int = 0
    streams: int = 0

    @classmethod
    def empty(cls, rows: int, k: int) -> "RowState":
        number, total = np.zeros((BLOCKS, rows), np.int64), np.zeros((BLOCKS, rows))
        lists: list[list[Context]] = [[] for _ in range(rows)]
        return cls(number, total, number.copy(), total.copy(), [set() for _ in lists], lists, k)

    def __add__(self, other: "RowState") -> "RowState":
        later = [
            [c._replace(document=c.document + self.documents) for c in row] for row in other.best
        ]
        return RowState(
            self.reads + other.reads,
            self.sums + other.sums,
            self.control_reads + other.control_reads,
            self.control_sums + other.control_sums,
            list(starmap(set.union, zip(self.ngrams, other.ngrams, strict=True))),
            [self._strongest(a + b) for a, b in zip(self.best, later, strict=True)],
            self.k,
            self.documents + other.documents,
            self.tokens + other.tokens,
            max(self.streams, other.streams),
        )

    def keep(self, row: int, contexts: list[Context]) -> None:
        self.best[row] = self._strongest(self.best[row] + contexts)

    def _strongest(self, contexts: list[Context]) -> list[Context]:
        return sorted(contexts, key=Context.key)[: self.k]


@dataclass(frozen=True, eq=False)
class Rows:
    """layers: place among the memory layers [R]; columns, slots [R]; control [R, C], ascending; the
    size of W_c row of each [R] and [R, C]."""

    layers: np.ndarray
    columns: np.ndarray
    slots: np.ndarray
    norms: np.ndarray
    control: np.ndarray
    control_norms: np.ndarray

    @classmethod
    def of(cls, tables: ModelTables, pairs: list[tuple[int, int]], controls: int, seed: int):
        """From pairs of layer and row; random rows are drawn from the same head."""
        hasher, generator = tables.hasher, np.random.default_rng(seed)
        columns, control, norms, control_norms = [], [], [], []
        for layer, slot in pairs:
            column = column_of(tables, layer, slot)
            first, size = rows_of_column(tables, layer, column)
            drawn = generator.choice(size - 1, min(controls, size - 1), replace=False) + first
            drawn += drawn >= slot  # any row of the head but this one
            filled = np.sort(np.resize(drawn, controls)) if len(drawn) else np.full(controls, -1)
            control.append(filled)
            columns.append(column)
            norms.append(tables.value_norms(np.array([slot]), column, layer)[0])
            known = np.maximum(filled, 0)
            control_norms.append(tables.value_norms(known, column, layer))
        return cls(
            np.array([hasher.layer_ids.index(layer) for layer, _ in pairs]),
            np.array(columns),
            np.array([slot for _, slot in pairs]),
            np.array(norms),
            np.array(control).reshape(len(pairs), controls),
            np.array(control_norms).reshape(len(pairs), controls),
        )


def measure(model, tokenizer, texts, rows, settings: dict, seed: int, progress) -> RowContexts:
    tables = tables_of(model)
    if not isinstance(tables, ModelTables):
        raise UsageError("row_contexts reads gates, so it needs the model, not its tables alone")
    pairs = _pairs(tables, tokenizer, texts, rows, settings)
    watched = Rows.of(tables, pairs, settings["controls"], seed)
    documents = Documents(texts, settings["max_documents"])
    state = read(tables, tokenizer, documents, watched, settings, progress)
    return _result(tables, tokenizer, documents, watched, state, settings, seed)


def _pairs(tables: ModelTables, tokenizer, texts, rows, settings: dict) -> list[tuple[int, int]]:
    """Layer and row of what is watched."""
    if settings["ngram"] is not None:
        compressed = compressed_ngram(tables, tokenizer, settings["ngram"])
        return rows_of_ngram(tables, compressed)
    if rows is None:
        return _most_read(tables, tokenizer, texts, settings)
    return rows_by_number(tables, rows)


def _most_read(tables: ModelTables, tokenizer, texts, settings: dict) -> list[tuple[int, int]]:
    """Of each layer, order and head the row that is read most; of several the first."""
    if not isinstance(texts, str) and iter(texts) is texts:
        raise UsageError("these texts can be read once only; name the rows, or give a list")
    hasher = tables.hasher
    found: list[list[Counter[int]]] = [
        [Counter() for _ in hasher.offsets(layer)] for layer in hasher.layer_ids
    ]
    for _, ids, usual in _documents(
        tables, tokenizer, Documents(texts, settings["max_documents"]), settings["max_tokens"]
    ):
        for counters, layer in zip(found, hasher.layer_ids, strict=True):
            slots = hasher.slots(tables.compression[ids], layer)[usual]
            for counter, column in zip(counters, slots.T, strict=True):
                counter.update(column.tolist())
    return [
        (layer, min(counter, key=lambda slot: (-counter[slot], slot)))
        for counters, layer in zip(found, hasher.layer_ids, strict=True)
        for counter in counters
        if counter
    ]


def _documents(
    tables: ModelTables, tokenizer, documents: Documents, most: int | None
) -> Iterator[tuple[int, list[int], np.ndarray]]:
    """Number, ids and ordinary positions of each document, cut to the context."""
    subject, done = tables.subject, 0
    for number, document in enumerate(documents):
        ids = text_ids(subject, tokenizer, document["text"], whole=False)
        usual = ~subject.special(tokenizer, ids)
        yield number, ids, usual
        done += int(usual.sum())
        if most is not None and done >= most:
            return


def read(
    tables: ModelTables, tokenizer, documents: Documents, rows: Rows, settings: dict, progress
) -> RowState:
    """Run document after document.

    Raises:
        CorpusError: there is none.
    """
    state = RowState.empty(len(rows.slots), settings["k"])
    for number, ids, usual in _documents(tables, tokenizer, documents, settings["max_tokens"]):
        _add(state, tables, tokenizer, rows, number, ids, usual, settings)
        if progress:
            progress(documents.read, documents.total)
    if not state.documents:
        raise CorpusError("the corpus is empty: there is no text to read")
    return state


def _add(state, tables, tokenizer, rows: Rows, number: int, ids, usual, settings: dict) -> None:
    """One document."""
    with MemoryTrace(tables.subject) as trace:
        logits = tables.subject.logits(ids)
    traced = trace.arrays()
    size = np.linalg.norm(traced["gate"], axis=-1)
    share = divide(size, np.linalg.norm(traced["residual_norm"], axis=-1))  # [L, p]
    gates = traced["gate"].mean(-1)
    surprisal = next_surprisal(logits.float().log_softmax(-1), ids)
    hasher, block = tables.hasher, number % BLOCKS
    ngrams = ending_ngrams(tables.compression[ids], hasher)
    shown = token_texts(tokenizer, ids)
    by_gate = settings["by"] == "gate"
    for row, (layer, column) in enumerate(zip(rows.layers, rows.columns, strict=True)):
        slots = np.where(usual, traced["slots"][layer, :, column], -2)
        hits = np.flatnonzero(slots == rows.slots[row])
        others = np.flatnonzero(np.isin(slots, rows.control[row]))
        place = np.searchsorted(rows.control[row], slots[others])
        scale = share[layer] if not by_gate else gates[layer]
        strength = scale[hits] * (1 if by_gate else rows.norms[row])
        control = scale[others] * (1 if by_gate else rows.control_norms[row][place])
        state.reads[block, row] += len(hits)
        state.sums[block, row] += strength.sum()
        state.control_reads[block, row] += len(others)
        state.control_sums[block, row] += control.sum()
        order = column // hasher.n_heads
        state.ngrams[row].update(ngrams[order][p].tobytes() for p in hits)
        strongest = np.argsort(-strength, kind="stable")[: state.k]
        state.keep(
            row,
            [
                Context(
                    float(strength[i]),
                    number,
                    int(hits[i]),
                    tuple(traced["gate"][layer, hits[i]].tolist()),
                    float(surprisal[hits[i]]),
                    _texts(shown, int(hits[i]), settings["around"], order + 2),
                )
                for i in strongest
            ],
        )
    state.documents += 1
    state.tokens += int(usual.sum())
    state.streams = traced["gate"].shape[-1]


def _texts(shown: tuple[str, ...], p: int, around: int, order: int) -> tuple[str, str, str, str]:
    before, after = shown[max(0, p - around) : p], shown[p + 1 : p + 1 + around]
    ngram = shown[max(0, p + 1 - order) : p + 1]
    return "".join(before), shown[p], "".join(after), "".join(ngram)


def _result(
    tables: ModelTables, tokenizer, documents, rows: Rows, state: RowState, settings: dict, seed
) -> RowContexts:
    blocks, hasher = min(BLOCKS, state.documents), tables.hasher
    parts = (state.sums, state.reads, state.control_sums, state.control_reads)
    sums, reads, control_sums, control_reads = (array[:blocks] for array in parts)
    low, high = ratio_interval(sums, reads, seed)
    control_low, control_high = ratio_interval(control_sums, control_reads, seed)
    shape = len(rows.slots), settings["k"]
    strength, surprisal = np.full((2, *shape), np.nan)
    gate = np.full((*shape, state.streams), np.nan)
    document, position = np.full((2, *shape), -1)
    for row, contexts in enumerate(state.best):
        for rank, one in enumerate(contexts):
            at = row, rank
            strength[at], surprisal[at], gate[at] = one.strength, one.surprisal, one.gate
            document[at], position[at] = one.document, one.position
    texts = [tuple(tuple(c.texts[i] for c in row) for row in state.best) for i in range(4)]
    return RowContexts(
        provenance=provenance(
            [tables.subject.model], tokenizer, documents.description(), settings, seed
        ),
        layers=tuple(hasher.layer_ids[layer] for layer in rows.layers),
        orders=tuple((rows.columns // hasher.n_heads + 2).tolist()),
        heads=tuple((rows.columns % hasher.n_heads).tolist()),
        by=settings["by"],
        **dict(zip(("before", "token", "after", "ngram_texts"), texts, strict=True)),
        documents=state.documents,
        tokens=state.tokens,
        slots=rows.slots,
        value_norm=rows.norms,
        reads=reads.sum(0),
        distinct=np.array([len(found) for found in state.ngrams], dtype=np.int64),
        mean=divide(sums.sum(0), reads.sum(0)),
        mean_low=low,
        mean_high=high,
        control=divide(control_sums.sum(0), control_reads.sum(0)),
        control_low=control_low,
        control_high=control_high,
        control_reads=control_reads.sum(0),
        strength=strength,
        gate=gate,
        surprisal=surprisal,
        document=document,
        position=position,
    )
