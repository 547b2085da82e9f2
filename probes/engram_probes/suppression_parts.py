"""The part of a memory that is suppressed, by layer, column (order and head) and row; controls."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from engram_model.errors import UsageError
from engram_model.memories import Memory
from engram_probes.capture import Subject
from engram_probes.suppression import HOWS, OF_ROWS

Slots = Mapping[int, Iterable[int]] | Iterable[int]


@dataclass(frozen=True, eq=False)
class Part:
    """What is suppressed of one layer's memory.

    Attributes:
        columns: bool [C], whether a column (order, head) belongs to it.
        slots: int64, the rows that do; None: all of these columns.
    """

    memory: Memory
    columns: np.ndarray
    slots: np.ndarray | None

    def description(self) -> dict:
        """For provenance."""
        return {
            "layer": self.memory.layer_id,
            "columns": np.flatnonzero(self.columns).tolist(),
            "slots": None if self.slots is None else self.slots.tolist(),
        }

    def reads(self, counts: np.ndarray) -> int:
        """Lookups that fall on it; counts: of each row of the layer's table, int64 [rows]."""
        columns = self.column_of(np.arange(len(counts)))
        belongs = self.columns[columns]
        if self.slots is not None:
            belongs &= np.isin(np.arange(len(counts)), self.slots)
        return int(counts[belongs].sum())

    def column_of(self, slots: np.ndarray) -> np.ndarray:
        """The column that reads each of these rows, [n]."""
        offsets = self.memory.offsets.cpu().numpy()
        return np.searchsorted(offsets, slots, side="right") - 1

    def control(self, counts: np.ndarray, seed: tuple[int, ...]) -> "Part":
        """As many other rows, column by column, drawn from those that are read.

        Raises:
            UsageError: too few are read.
        """
        assert self.slots is not None
        dice = np.random.default_rng(seed)
        read = np.setdiff1d(np.flatnonzero(counts), self.slots)
        belongs, columns = self.column_of(read), self.column_of(self.slots)
        drawn = []
        for column in np.unique(columns[self.columns[columns]]):
            need, there = int((columns == column).sum()), read[belongs == column]
            if need > len(there):
                raise UsageError(
                    f"{need} rows of layer {self.memory.layer_id}, column {column} are to be "
                    f"suppressed, and the tasks read {len(there)} others there: too few for a "
                    "control; give fewer slots, more items, or controls=0"
                )
            drawn.append(dice.choice(there, need, replace=False))
        slots = np.sort(np.concatenate(drawn)) if drawn else self.slots[:0]
        return Part(self.memory, self.columns, slots)


def parts_of(
    subject: Subject,
    how: str,
    layers: Iterable[int] | None = None,
    orders: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    slots: Slots | None = None,
) -> list[Part]:
    """The memories that are suppressed, and what of each. None: all there are.

    Raises:
        UsageError: a model without a memory, an unknown `how`, or a part that does not exist or
            cannot be suppressed in this way.
    """
    if not subject.memories:
        raise UsageError(
            f"{subject.name} has no memory, so there is nothing to suppress; give a model with one"
        )
    if how not in HOWS:
        raise UsageError(f"{how!r} is no way to suppress; use one of {', '.join(HOWS)}")
    memories, first = subject.memories, subject.memories[0]
    if layers is not None:
        chosen = _within("layer", layers, subject.memory_layers, "memory layers")
        memories = [memory for memory in memories if memory.layer_id in chosen]
    columns = np.ones((first.max_ngram_size - 1, first.n_heads), dtype=bool)
    if orders is not None:
        known = range(2, first.max_ngram_size + 1)
        columns &= np.isin(known, _within("order", orders, known, "orders"))[:, None]
    if heads is not None:
        known = range(first.n_heads)
        columns &= np.isin(known, _within("head", heads, known, "heads"))[None]
    rows = None if slots is None else _rows(memories, slots)
    if how not in OF_ROWS and not (columns.all() and slots is None):
        raise UsageError(
            f"{how} silences a layer's memory as a whole; for orders, heads or slots use one of "
            f"{', '.join(OF_ROWS)}"
        )
    return [
        Part(memory, columns.ravel(), None if rows is None else rows[memory.layer_id])
        for memory in memories
    ]


def in_words(subject: Subject, parts: list[Part]) -> str:
    """What is suppressed, as "order 3, head 2 of the memory of layer 1"."""
    if not parts:
        return "no memory"
    layers = [part.memory.layer_id for part in parts]
    whole = len(layers) == len(subject.memories)
    memory = "the memory" if whole else f"the memory of {_named('layer', layers)}"
    grid = parts[0].columns.reshape(-1, parts[0].memory.n_heads)
    told = []
    if parts[0].slots is not None:
        rows = sum(len(part.slots) for part in parts if part.slots is not None)
        told.append(f"{rows} {'row' if rows == 1 else 'rows'}")
    if not grid.any(1).all():
        told.append(_named("order", (np.flatnonzero(grid.any(1)) + 2).tolist()))
    if not grid.any(0).all():
        told.append(_named("head", np.flatnonzero(grid.any(0)).tolist()))
    return f"{', '.join(told)} of {memory}" if told else memory


def _named(noun: str, values: list[int]) -> str:
    return f"{noun}{'' if len(values) == 1 else 's'} {', '.join(map(str, values))}"


def _within(what: str, given: Iterable[int], known: Iterable[int], plural: str) -> list[int]:
    chosen, there = list(given), list(known)
    for value in chosen:
        if value not in there:
            has = ", ".join(map(str, there))
            raise UsageError(f"{what} {value} is not among the model's {plural}: {has}")
    return chosen


def _rows(memories: list[Memory], slots: Slots) -> dict[int, np.ndarray]:
    """Rows by layer, each once, in order."""
    ids = [memory.layer_id for memory in memories]
    if not isinstance(slots, Mapping):
        if len(ids) != 1:
            named = ", ".join(map(str, ids))
            raise UsageError(
                f"slots of which layer? The model has memories in layers {named}; give slots as "
                "{layer: rows}, or name one layer"
            )
        slots = {ids[0]: slots}
    _within("layer", slots, ids, "memory layers that are to be suppressed")
    found = {}
    for memory in memories:
        rows = np.unique(np.array(list(slots.get(memory.layer_id, ())), dtype=np.int64))
        size = int(memory.primes.sum())
        if len(rows) and not (rows[0] >= 0 and rows[-1] < size):
            wrong = rows[0] if rows[0] < 0 else rows[-1]
            raise UsageError(
                f"slot {wrong}: the table of layer {memory.layer_id} has {size:,} rows"
            )
        found[memory.layer_id] = rows
    return found
