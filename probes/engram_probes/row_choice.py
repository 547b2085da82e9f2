"""Which rows of the memories' tables are meant: by number, or those that an n-gram reads."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from engram_model.errors import UsageError
from engram_probes.memory_tables import MemoryTables

Pair = tuple[int, int]  # layer and row of its flat table


def rows_by_number(tables: MemoryTables, rows: Any) -> list[Pair]:
    """Layer and row of each of {layer: [row, ...]}, or of a list where one layer has a memory.

    Raises:
        UsageError: none, a layer without a memory, a row outside of its table.
    """
    layers = tables.hasher.layer_ids
    if not isinstance(rows, dict):
        if len(layers) > 1:
            raise UsageError(f"rows: say of which layer, {{layer: [row, ...]}}; layers: {layers}")
        rows = {layers[0]: rows}
    pairs = [(int(layer), int(slot)) for layer, slots in rows.items() for slot in slots]
    if not pairs:
        raise UsageError("rows: give at least one row")
    for layer, slot in pairs:
        if layer not in layers:
            raise UsageError(f"layer {layer} has no memory; layers with one: {layers}")
        if not 0 <= slot < tables.hasher.rows(layer):
            raise UsageError(
                f"row {slot}: the table of layer {layer} has rows 0 to "
                f"{tables.hasher.rows(layer) - 1}"
            )
    return pairs


def compressed_ngram(
    tables: MemoryTables, tokenizer: Any, ngram: str | Sequence[int]
) -> np.ndarray:
    """Compressed ids of an n-gram given as text or as raw token ids, at most the longest order.

    Raises:
        UsageError: fewer than two tokens, or tokens beyond the vocabulary.
    """
    text = isinstance(ngram, str)
    ids = tokenizer(ngram, add_special_tokens=False)["input_ids"] if text else [*map(int, ngram)]
    if len(ids) < 2:
        raise UsageError(f"ngram {ngram!r} is {len(ids)} token; give at least two")
    if not 0 <= min(ids) <= max(ids) < len(tables.compression):
        raise UsageError(
            f"ngram {ngram!r} has token ids outside of the tables' vocabulary of "
            f"{len(tables.compression):,}"
        )
    return np.asarray(tables.compression)[ids[-tables.hasher.max_ngram_size :]]


def rows_of_ngram(tables: MemoryTables, compressed: np.ndarray) -> list[Pair]:
    """Layer and row of what the n-grams read that end with these ids, lower orders first."""
    hasher = tables.hasher
    columns = (len(compressed) - 1) * hasher.n_heads
    return [
        (layer, int(slot))
        for layer in hasher.layer_ids
        for slot in hasher.slots(compressed, layer)[-1, :columns]
    ]


def column_of(tables: MemoryTables, layer: int, slot: int) -> int:
    """Order and head that a row belongs to, as a column: order 2 + c // heads, head c % heads."""
    return int(np.searchsorted(tables.hasher.offsets(layer), slot, side="right")) - 1


def rows_of_column(tables: MemoryTables, layer: int, column: int) -> tuple[int, int]:
    """First row of an order and head, and how many it has."""
    hasher = tables.hasher
    return int(hasher.offsets(layer)[column]), int(hasher.primes(layer).reshape(-1)[column])
