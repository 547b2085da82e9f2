"""The lookup on a CPU: hash and gather against the public demo's way and `F.embedding`."""

import os
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engram_kernels import lookup, ngram_slots
from engram_kernels.gather import lookup_unique
from engram_kernels.offload import HostTable
from engram_model.bench.baselines import eager_slots
from engram_model.bench.measure import Machine, Row
from engram_model.bench.text import VOCABULARY, token_ids
from engram_model.hashing import NgramHasher

WIDTH, HEADS, BASE, CONTEXT = 80, 8, 2_262_000, 4096  # of configuration A
ROW_BYTES = 2 * WIDTH
BEYOND_CACHE = 1 << 28  # bytes; no CPU's caches hold them


def numpy_slots(ids, multipliers, primes, offsets, pad: int) -> np.ndarray:
    """The public demo's way: int64 NumPy, a shifted copy a token back, a remainder a head."""
    orders = len(multipliers)
    shifted = [ids] + [
        np.pad(ids, ((0, 0), (back, 0)), constant_values=pad)[:, : ids.shape[1]]
        for back in range(1, orders)
    ]
    columns = []
    for order in range(2, orders + 1):
        mix = shifted[0] * multipliers[0]
        for back in range(1, order):
            mix = np.bitwise_xor(mix, shifted[back] * multipliers[back])
        columns += [mix % int(prime) for prime in primes[order - 2]]
    return np.stack(columns, axis=2) + offsets


def cpu_hash(machine: Machine) -> Iterator[Row]:
    """Slots of one layer."""
    tokens = 512 if machine.quick else 65_536
    hasher = NgramHasher([1], 3, HEADS, [BASE] * 2, VOCABULARY, pad_id=2)
    made = (hasher.multipliers(1), hasher.primes(1).copy(), hasher.offsets(1))
    tensors = tuple(torch.as_tensor(constant) for constant in made)
    shape = (-1, min(tokens, CONTEXT))
    ids = torch.as_tensor(np.random.default_rng(0).integers(0, VOCABULARY, tokens)).view(shape)
    window, array = F.pad(ids, (hasher.max_ngram_size - 1, 0), value=-1), ids.numpy()
    functions = {
        "ours": lambda: ngram_slots(window, *tensors, 2),
        "NumPy demo": lambda: numpy_slots(array, *made, 2),
        "eager torch": lambda: eager_slots(ids, [tensors], 2)[0],
    }
    expected = torch.as_tensor(functions["NumPy demo"]())
    assert all(torch.equal(functions[name](), expected) for name in ("ours", "eager torch"))
    notes = ["slots equal bit for bit"]
    row = _row(machine, "cpu_hash", f"{tokens:,} tokens x 16 rows", functions, notes)
    row.notes += [f"{name}: {us / tokens * 1e3:.1f} ns a token" for name, us in row.times.items()]
    yield row.faster("NumPy demo", 3)


def cpu_gather(machine: Machine) -> Iterator[Row]:
    """Rows of n-grams from one table, and as the demo has them, one table a head."""
    tokens = 512 if machine.quick else 65_536
    base = 1009 if machine.quick else min(BASE, _available() // 2 // (2 * HEADS * ROW_BYTES))
    hasher = NgramHasher([1], 3, HEADS, [base] * 2, VOCABULARY, pad_id=2)
    table = _filled(torch.empty(hasher.rows(1), WIDTH, dtype=torch.bfloat16))
    text, source = token_ids(tokens)
    for name, ids in ((source, text), ("uniform ids", torch.randint(0, VOCABULARY, (tokens,)))):
        slots = hasher.slots(ids.view(-1, min(tokens, CONTEXT)), 1)
        yield _gathered(machine, name, table, slots, hasher)


def _gathered(machine: Machine, source: str, table: Tensor, slots: Tensor, hasher) -> Row:
    tables = table.split(hasher.primes(1).flatten().tolist())
    places = (slots - torch.as_tensor(hasher.offsets(1))).unbind(-1)
    functions = {
        "ours": lambda: lookup(table, slots),
        "ours, de-duplicated": lambda: lookup_unique(table, slots),
        "F.embedding": lambda: F.embedding(slots, table),
        "16 tables": lambda: torch.stack(list(map(F.embedding, places, tables)), -2),
    }
    expected = functions["F.embedding"]()
    assert all(torch.equal(function(), expected) for function in functions.values())
    distinct = slots.unique().numel() / slots.numel()
    case = f"{source}, {slots[..., 0].numel():,} tokens x 16 rows of {ROW_BYTES} bytes"
    notes = ["rows equal bit for bit", f"{table.nbytes / 1e9:.2f} GB, {distinct:.0%} distinct rows"]
    row = _row(machine, "cpu_gather", case, functions, notes)
    return row.faster("F.embedding", 1.5).faster("16 tables", 2)


def cpu_constant_time(machine: Machine) -> Iterator[Row]:
    """The same number of lookups in tables of 10^5 to 10^8 rows, on huge pages where there are."""
    lookups = 1000 if machine.quick else 131_072
    tables = _tables((1000, 2000) if machine.quick else (10**5, 10**6, 10**7, 36 * 10**6, 10**8))
    functions: dict[str, Callable] = {}
    for rows, table in tables.items():
        slots = torch.as_tensor(np.random.default_rng(0).integers(0, rows, lookups))
        functions[str(rows)] = partial(lookup, table, slots)
    times, spread = _host(machine).times(functions)  # all in turn: they are compared
    first = None
    for rows, table in tables.items():
        ours, spreads = {"ours": times[str(rows)]}, {"ours": spread[str(rows)]}
        case = f"{rows:,} rows, {table.nbytes / 1e9:.2f} GB, {lookups:,} lookups"
        row = Row("cpu_constant_time", case, ours, spreads)
        if table.nbytes > BEYOND_CACHE:
            first = first or row.times["ours"]
            ratio = row.times["ours"] / first
            row.goal("x the smallest beyond the caches", ratio, 1.5, at_least=False)
        yield row


def _tables(sizes: tuple[int, ...]) -> dict[int, Tensor]:
    """Rows -> table; those that half of the memory has room for."""
    room, made = _available() // 2, {}
    for rows in sizes:
        room -= rows * ROW_BYTES
        if room >= 0:
            made[rows] = _filled(HostTable.empty(rows, WIDTH).rows)
    return made


def _row(machine: Machine, stage: str, case: str, functions: dict, notes: list[str]) -> Row:
    return _host(machine).row(stage, case, functions, notes=notes)


def _host(machine: Machine) -> Machine:
    """The machine without its GPU."""
    return Machine("cpu", machine.name, quick=machine.quick)


def _filled(table: Tensor) -> Tensor:
    block = torch.randn(1 << 16, table.shape[1]).to(table.dtype)
    for part in table.split(len(block)):
        part.copy_(block[: len(part)])
    return table


def _available() -> int:
    """Bytes of memory that can be taken without pressing others out."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = dict(line.split(":") for line in file)
        return int(found["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
