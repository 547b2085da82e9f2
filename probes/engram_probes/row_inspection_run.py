"""How `inspect_rows` finds its numbers."""

from typing import Any

import numpy as np

from engram_probes.memory_tables import MemoryTables, ModelTables, tables_of
from engram_probes.ngram_texts import NgramTexts
from engram_probes.provenance import Provenance, versions
from engram_probes.row_choice import (
    Pair,
    column_of,
    compressed_ngram,
    rows_by_number,
    rows_of_column,
    rows_of_ngram,
)
from engram_probes.row_inspection import RowInspection
from engram_probes.slot_index import SlotIndex
from engram_probes.slots_run import index_of
from engram_probes.text import nested_texts

QUANTILES = (0.025, 0.5, 0.975)


def inspect(
    model_or_tables, tokenizer, rows, ngram, corpus, settings: dict, seed: int, progress
) -> RowInspection:
    from engram_model.compression import tokenizer_sha256

    tables = tables_of(model_or_tables)
    own = None if ngram is None else compressed_ngram(tables, tokenizer, ngram)
    pairs = rows_by_number(tables, rows) if own is None else rows_of_ngram(tables, own)
    index = None if corpus is None else index_of(tables, tokenizer, corpus, progress)
    columns = [column_of(tables, *pair) for pair in pairs]
    orders = [column // tables.hasher.n_heads + 2 for column in columns]
    raw_counts = None if index is None else index.raw_counts
    texts = NgramTexts(tokenizer, np.asarray(tables.compression), raw_counts)
    mine = [None if own is None else own[-order:] for order in orders]
    fields: dict[str, Any] = _norms(tables, pairs, columns, settings["controls"], seed)
    if isinstance(tables, ModelTables) and settings["topk"]:
        fields |= _says(tables, tokenizer, pairs, columns, settings["topk"])
    if index is not None:
        fields |= _tenants(index, pairs, orders, mine, texts, settings["most"])
    return RowInspection(
        provenance=Provenance(
            models=[tables.describe()],
            tokenizer_sha256=tokenizer_sha256(tokenizer),
            corpus={} if index is None else index.corpus,
            settings=settings,
            seed=seed,
            versions=versions(),
        ),
        layers=tuple(layer for layer, _ in pairs),
        orders=tuple(orders),
        heads=tuple(column % tables.hasher.n_heads for column in columns),
        ngram_texts=tuple("" if ids is None else texts(ids) for ids in mine),
        slots=np.array([slot for _, slot in pairs], dtype=np.int64),
        **fields,
    )


def _norms(
    tables: MemoryTables, pairs: list[Pair], columns: list[int], controls: int, seed: int
) -> dict[str, np.ndarray]:
    """Norm of each row, and of random rows of its order and head."""
    generator, found = np.random.default_rng(seed), []
    for (layer, slot), column in zip(pairs, columns, strict=True):
        first, size = rows_of_column(tables, layer, column)
        drawn = first + generator.choice(size, min(controls, size), replace=False)
        norms = np.linalg.norm(tables.rows(np.append(drawn, slot), layer), axis=-1)
        own, others = norms[-1], norms[:-1]
        found.append((size, own, np.quantile(others, QUANTILES), (others < own).mean()))
    sizes, own_norms, controlled, shorter = (np.array(part) for part in zip(*found, strict=True))
    return {
        "table_rows": sizes.astype(np.int64),
        "row_norm": own_norms.astype(np.float32),
        "control_norm": controlled.astype(np.float32),
        "shorter": shorter,
    }


def _says(
    tables: ModelTables, tokenizer, pairs: list[Pair], columns: list[int], topk: int
) -> dict[str, Any]:
    import torch

    shares = np.concatenate(
        [
            tables.column_shares(np.array([slot]), column, layer)
            for (layer, slot), column in zip(pairs, columns, strict=True)
        ]
    )
    tensor = torch.as_tensor(shares, device=tables.subject.model.device)
    ids, logits = (array[0] for array in tables.read(tensor[None], topk))
    return {
        "value_norm": np.linalg.norm(shares, axis=-1),
        "says_ids": ids,
        "says_logits": logits,
        "says_texts": nested_texts(tokenizer, ids),
    }


def _tenants(
    index: SlotIndex, pairs: list[Pair], orders: list[int], mine: list, texts, most: int
) -> dict[str, Any]:
    shape = len(pairs), most
    counts, names = np.zeros(shape, np.int64), np.full(shape, "", dtype=object)
    tenants, reads, own_reads = np.zeros((3, len(pairs)), np.int64)
    own_tenant = np.full(len(pairs), -1)
    for row, ((layer, slot), order, own) in enumerate(zip(pairs, orders, mine, strict=True)):
        ids = index.layers[layer].of(slot)
        of_row = index.counts[order][ids]
        tenants[row], reads[row] = len(ids), of_row.sum()
        counts[row, : len(ids)] = of_row[:most]
        names[row, : len(ids)] = [texts(index.ngrams[order][:, i]) for i in ids[:most]]
        number = None if own is None else index.find(tuple(own.tolist()))
        if number is not None:
            own_reads[row] = index.counts[order][number]
            own_tenant[row] = next((k for k, i in enumerate(ids[:most]) if i == number), -1)
    return {
        "distinct": np.array([len(index.counts[order]) for order in orders], dtype=np.int64),
        "tenants": tenants,
        "reads": reads,
        "own_reads": own_reads,
        "tenant_counts": counts,
        "tenant_texts": tuple(tuple(row) for row in names),
        "own_tenant": own_tenant,
    }
