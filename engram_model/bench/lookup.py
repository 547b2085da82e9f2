"""Hash and gather: the lookup of a batch."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from engram_kernels import lookup, lookup_ngrams, ngram_slots
from engram_model.bench.baselines import eager_slots
from engram_model.bench.measure import Machine, Row
from engram_model.bench.text import token_ids
from engram_model.hashing import NgramHasher

TOKENS, CONTEXT, COLUMNS = 32_768, 4096, 16
ROWS = 36_198_400  # of configuration A: 16 x 2,262,400


def constants(hasher: NgramHasher, layer: int) -> tuple[torch.Tensor, ...]:
    names = ("multipliers", "primes", "offsets")
    return tuple(torch.as_tensor(getattr(hasher, n)(layer).copy(), device="cuda") for n in names)


def hash(machine: Machine) -> Iterator[Row]:
    """Slots of two layers at once, against eager int64 operations."""
    hasher = NgramHasher([1, 14], 3, 8, [2_262_000] * 2, 99_092, pad_id=2)
    layers = [constants(hasher, layer) for layer in (1, 14)]
    stacked = [torch.stack(tensors) for tensors in zip(*layers, strict=True)]
    ids = torch.randint(0, 99_092, (TOKENS // CONTEXT, CONTEXT), device="cuda")
    pad = torch.tensor([2], device="cuda")

    def ours() -> torch.Tensor:
        return ngram_slots(ids, *stacked, pad, history=False)

    expected = torch.stack(eager_slots(ids, layers, 2))
    assert torch.equal(ours(), expected)
    row = machine.row(
        "hash",
        "2 layers x 16 rows, 32,768 tokens",
        {
            "ours": ours,
            "eager": lambda: eager_slots(ids, layers, 2),
        },
        bytes=TOKENS * (8 + 2 * COLUMNS * 8),
        notes=["slots equal bit for bit"],
    )
    yield row.goal("microseconds", row.times["ours"], 10, at_least=False).faster("eager", 10)


def gather(machine: Machine) -> Iterator[Row]:
    """Rows of uniform ids at three widths, and of real n-grams."""
    for width, share in ((80, 0.62), (128, 0.70), (256, 0.82)):
        rows = ROWS if width == 80 else 12_000_000
        table = torch.empty(rows, width, dtype=torch.bfloat16, device="cuda").normal_()
        slots = torch.randint(0, rows, (TOKENS, COLUMNS), device="cuda")
        row = _gathered(machine, f"uniform, {2 * width} bytes a row", table, slots)
        row.goal("share of copy", row.share, share)
        yield row.faster("F.embedding", 5) if width == 80 else row
        if width == 80:
            yield from _of_text(machine, table)
        del table


def _gathered(machine: Machine, case: str, table, slots) -> Row:
    assert torch.equal(lookup(table, slots), F.embedding(slots, table))
    bags = torch.arange(0, slots.numel(), 1, device="cuda")
    return machine.row(
        "gather",
        case,
        {
            "ours": lambda: lookup(table, slots),
            "F.embedding": lambda: F.embedding(slots, table),
            "F.embedding_bag": lambda: F.embedding_bag(slots.flatten(), table, bags, mode="sum"),
        },
        bytes=2 * slots.numel() * table.shape[1] * table.element_size(),
        notes=["rows equal bit for bit", "cuEmbed: its source is not on this machine"],
    )


def _of_text(machine: Machine, table) -> Iterator[Row]:
    ids, source = token_ids(TOKENS)
    hasher = NgramHasher([1], 3, 8, [2_262_000] * 2, int(ids.max()) + 1, pad_id=2)
    made = constants(hasher, 1)
    ids = ids.reshape(-1, CONTEXT).cuda()
    compression = torch.arange(int(ids.max()) + 1, dtype=torch.int32, device="cuda")
    pad = torch.tensor([2], device="cuda")
    rows, slots = lookup_ngrams(table, ids, compression, *made, pad)
    row = _gathered(machine, f"{source}, 160 bytes a row", table, slots)
    yield row.goal("share of copy", row.share, 1.0)
    assert torch.equal(rows, F.embedding(slots, table))
    layers = [made]
    yield machine.row(
        "gather",
        f"{source}, ids to rows in one kernel",
        {
            "ours": lambda: lookup_ngrams(table, ids, compression, *made, pad),
            "eager hash, F.embedding": lambda: F.embedding(eager_slots(ids, layers, 2)[0], table),
        },
        bytes=2 * slots.numel() * 160 + slots.numel() * 8,
    )


def constant_time(machine: Machine) -> Iterator[Row]:
    """The same number of lookups in tables of 10^5 to 3 x 10^8 rows of 160 bytes."""
    first = None
    for rows in (100_000, 1_000_000, 10_000_000, 36_000_000, 100_000_000, 300_000_000):
        if rows * 160 > torch.cuda.mem_get_info()[0] - 2e9:
            return
        table = torch.zeros(rows, 80, dtype=torch.bfloat16, device="cuda")
        slots = torch.randint(0, rows, (TOKENS, COLUMNS), device="cuda")
        row = machine.row(
            "constant_time",
            f"{rows:,} rows, {rows * 160 / 1e9:.2f} GB",
            {"ours": partial(lookup, table, slots)},
            bytes=2 * slots.numel() * 160,
        )
        beyond_cache = rows * 160 > 4 * torch.cuda.get_device_properties(0).L2_cache_size
        first = first or (row.times["ours"] if beyond_cache else None)
        if first and beyond_cache:
            row.goal("x the smallest beyond L2", row.times["ours"] / first, 1.5, at_least=False)
        yield row
        del table, slots, row  # the next one needs the memory
