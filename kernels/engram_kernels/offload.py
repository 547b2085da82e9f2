"""Rows of a table in host memory, fetched ahead of the layer that reads them.

    rows = table[slots]        bit for bit, wherever the table is

A batch's slots are de-duplicated on the device: n-grams of text repeat, and only one copy of a row
should cross the bus. Rows of a small hot set are on the device already. The others come over in one
of two ways:

- "zero_copy": a kernel reads the pinned table through unified addressing, in the order of the rows.
  Nothing of it runs on the host and nothing waits, so a CUDA graph can hold it; it takes a few
  multiprocessors. The default for tables in memory.
- "gather": a thread gathers into pinned buffers, which the copy engine takes over. It reads any
  memory, a mapped file too, and leaves the multiprocessors alone, but takes the host's cores and
  has to learn how many rows there are. The default for mapped files; on a CPU, without a thread,
  the only way.

Both run on a side stream. Reading only: a table that is trained belongs on the device.
"""

import mmap
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from engram_kernels.backend import choose_backend, operator, power_of_two
from engram_kernels.gather import lookup
from engram_kernels.pages import advise

WAYS = ("auto", "gather", "zero_copy")
DEDUPLICATE_FROM = 4096  # slots; sorting fewer costs more than fetching a row twice
PROGRAMS = 16  # of the zero-copy kernel: some 260 kB in flight, on 16 multiprocessors at most
BLOCK_WORDS = 4096  # words (of 4 bytes) that a program moves at a time
STAGING_BYTES, STAGING_BUFFERS = 4 << 20, 4  # one is filled while others are copied
REGISTER_FLAGS = 1 | 2  # cudaHostRegisterPortable | cudaHostRegisterMapped


def distinct_slots(slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every slot once, in ascending order, without asking the device how many there are.

    Args:
        slots: [n] int32 or int64, n >= 1.

    Returns:
        distinct [n], of which the first `count` are meant and the others zero;
        inverse [n] int64, `slots == distinct[inverse]`; count [1] int64.
    """
    ordered, order = slots.sort()
    rank = F.pad((ordered[1:] != ordered[:-1]).cumsum(0), (1, 0))
    distinct = torch.zeros_like(slots).scatter_(0, rank, ordered)
    inverse = torch.empty_like(rank).scatter_(0, order, rank)
    return distinct, inverse, rank[-1:] + 1


def most_frequent(slots: Tensor, rows: int) -> Tensor:
    """The `rows` slots that occur most often (of equally frequent ones the lowest), int64."""
    distinct, counts = torch.unique(slots, return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    return distinct[order[:rows]]


def _nearest(slots: Tensor, hot_slots: Tensor) -> Tensor:
    """Index of each slot in the sorted `hot_slots`, if it is one of them; else any index."""
    return torch.searchsorted(hot_slots, slots).clamp_(max=hot_slots.numel() - 1)


@triton.jit(do_not_specialize=["lookups"])
def _zero_copy_kernel(
    table,
    slots,
    count,
    near,
    hot_slots,
    hot_rows,
    rows,
    tally,
    lookups,
    HOT: tl.constexpr,
    WORDS: tl.constexpr,
    WORDS_P: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A few programs walk over the sorted slots side by side: at any time they read one narrow
    stretch of the table, whose pages stay in the translation buffers."""
    limit = tl.load(count).to(tl.int32)
    word = tl.arange(0, WORDS_P)
    hits = tl.zeros([ROWS], tl.int32)
    for start in range(tl.program_id(0) * ROWS, limit, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        inside = row < limit
        slot = tl.load(slots + row, mask=inside, other=0)
        real = (word < WORDS)[None, :]
        miss = inside
        if HOT:
            place = tl.load(near + row, mask=inside, other=0)
            hit = inside & (tl.load(hot_slots + place, mask=inside, other=-1) == slot)
            miss = inside & (hit == 0)
            hits += hit.to(tl.int32)
            kept = hot_rows + place[:, None] * WORDS + word[None, :]
            cached = tl.load(kept, mask=hit[:, None] & real, other=0)
        far = table + slot.to(tl.int64)[:, None] * WORDS + word[None, :]
        found = tl.load(far, mask=miss[:, None] & real, other=0)
        if HOT:
            found = tl.where(hit[:, None], cached, found)
        target = rows + row.to(tl.int64)[:, None] * WORDS + word[None, :]
        tl.store(target, found, mask=inside[:, None] & real)
    tl.atomic_add(tally + 2, tl.sum(hits).to(tl.int64))
    if tl.program_id(0) == 0:
        tl.atomic_add(tally, lookups.to(tl.int64))
        tl.atomic_add(tally + 1, limit.to(tl.int64))


def _words(rows: Tensor) -> Tensor:
    """The same bytes as integers of 4 bytes, or of fewer where a row has an odd size."""
    size = rows.shape[1] * rows.element_size()
    return rows.view({0: torch.int32, 2: torch.int16}.get(size % 4, torch.uint8))


def _launch(table, slots, count, hot_slots, hot_rows, tally, lookups: int, programs: int) -> Tensor:
    rows = _empty(table, slots)
    if not slots.numel():
        return rows
    hot = hot_slots is not None
    near = _nearest(slots, hot_slots) if hot else slots
    source = _words(table)
    words_padded = power_of_two(source.shape[1])
    block = max(1, BLOCK_WORDS // words_padded)
    _zero_copy_kernel[(min(programs, triton.cdiv(slots.numel(), block)),)](
        source,
        slots,
        count,
        near,
        hot_slots if hot else slots,
        _words(hot_rows) if hot else source,
        _words(rows),
        tally,
        lookups,
        HOT=hot,
        WORDS=source.shape[1],
        WORDS_P=words_padded,
        ROWS=block,
        num_warps=8,
    )
    return rows


def _empty(table, slots, *_) -> Tensor:
    return torch.empty((slots.numel(), table.shape[1]), dtype=table.dtype, device=slots.device)


# The table is pinned host memory, the rest is on the device. Rows from `count` on are not written.
# tally [3] int64 grows by lookups, count and the slots found among hot_slots [h], sorted.
zero_copy_triton = operator(
    "zero_copy(Tensor table, Tensor slots, Tensor count, Tensor? hot_slots, Tensor? hot_rows,"
    " Tensor(a!) tally, int lookups, int programs) -> Tensor",
    _launch,
    _empty,
)


class HostTable:
    """A table in host memory.

    Attributes:
        rows: [rows, width] on the CPU, contiguous, of any dtype.
        mapped: it is a file's pages, read when they are touched.
    """

    def __init__(self, rows: Tensor, mapped: bool = False) -> None:
        if rows.ndim != 2 or rows.device.type != "cpu" or not rows.is_contiguous():
            raise ValueError(
                f"a host table is a contiguous matrix on the CPU, not {list(rows.shape)} on "
                f"{rows.device}"
            )
        self.rows, self.mapped = rows.detach(), mapped
        if mapped:
            advise(self.rows, "MADV_RANDOM")  # else every miss reads 128 KiB around a row

    @classmethod
    def empty(cls, rows: int, width: int, dtype: torch.dtype = torch.bfloat16) -> "HostTable":
        """Room for a table of zeros, on huge pages where the system has them.

        Costs nothing yet: memory is taken when it is first written, by all threads in `fill`. With
        pages of 4 KiB every row read at random misses the translation buffers of host and device.
        """
        pages = mmap.mmap(-1, rows * width * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory = torch.frombuffer(pages, dtype=dtype).view(rows, width)
        advise(memory, "MADV_HUGEPAGE")
        return cls(memory)

    @classmethod
    def copy_of(cls, rows: Tensor) -> "HostTable":
        """A copy, made by all threads: of a mapped file, or of a table on a device."""
        table = cls.empty(rows.shape[0], rows.shape[1], rows.dtype)
        table.rows.copy_(rows)
        return table

    @classmethod
    def from_file(cls, path: str | Path, name: str | None = None) -> "HostTable":
        """Map a table; nothing is read before it is looked up.

        Args:
            path: a `.safetensors` file, or a `.npy` file of a matrix.
            name: of the tensor in a safetensors file.
        """
        if Path(path).suffix == ".npy":
            rows = torch.from_numpy(np.load(path, mmap_mode="c"))
        else:
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                rows = file.get_tensor(name)
        return cls(rows, mapped=True)

    def fill(self, block: Tensor) -> None:
        """Repeat `block` [n, width] over all rows, by all threads: test data by the gigabyte."""
        for start in range(0, self.rows.shape[0], block.shape[0]):
            part = self.rows[start : start + block.shape[0]]
            part.copy_(block[: part.shape[0]])

    def __deepcopy__(self, memo: dict) -> "HostTable":
        return self  # tens of gigabytes, only ever read

    def pin(self) -> None:
        """Lock the table's memory where it is and let GPUs read it; undone with the object.

        Raises:
            ValueError: a mapped file, which `copy_of` brings into memory.
        """
        if self.mapped:
            raise ValueError("a mapped file cannot be pinned: make a HostTable.copy_of(its rows)")
        if self.rows.is_pinned():
            return
        runtime, address = torch.cuda.cudart(), self.rows.data_ptr()
        torch.cuda.check_error(runtime.cudaHostRegister(address, self.rows.nbytes, REGISTER_FLAGS))
        weakref.finalize(self, _unpin, self.rows)


def _unpin(rows: Tensor) -> None:
    torch.cuda.synchronize()  # a kernel may still be reading
    torch.cuda.cudart().cudaHostUnregister(rows.data_ptr())


@dataclass(frozen=True)
class Traffic:
    """What was asked of a table, and what it took.

    Attributes:
        lookups: rows delivered.
        distinct: rows left of them after de-duplication within each batch.
        hits: of these, rows that were on the device already.
        row_bytes: size of a row.
    """

    lookups: int
    distinct: int
    hits: int
    row_bytes: int

    @property
    def bytes_delivered(self) -> int:
        return self.lookups * self.row_bytes

    @property
    def bytes_moved(self) -> int:
        """From host to device."""
        return (self.distinct - self.hits) * self.row_bytes


class Pending:
    """Rows under way.

    Attributes:
        fetched: resolves to the rows and the event after which they are there (None on a CPU).
    """

    def __init__(self, fetched: Future) -> None:
        self.fetched = fetched

    @torch.compiler.disable
    def wait(self) -> Tensor:
        """The rows [..., width]; the current stream waits for them, the host does not."""
        rows, done = self.fetched.result()
        if done is not None:
            stream = torch.cuda.current_stream(rows.device)
            stream.wait_event(done)
            rows.record_stream(stream)
        return rows


class OffloadedTable:
    """Looks up rows of a host table for a device.

    Args:
        table: a `HostTable`; it is pinned if the way needs it.
        device: where slots come from and rows go to.
        way: "zero_copy", "gather" or "auto".
        deduplicate: None: batches from `DEDUPLICATE_FROM` slots on.
        programs: of the zero-copy kernel: more fetch faster and leave less to other kernels.

    Raises:
        ValueError: an unknown way, or zero-copy from a mapped file or without a GPU.
    """

    def __init__(
        self,
        table: HostTable,
        device: torch.device | str,
        way: str = "auto",
        deduplicate: bool | None = None,
        programs: int = PROGRAMS,
    ) -> None:
        self.table, self.deduplicate, self.programs = table, deduplicate, programs
        self._index = torch.int32 if table.rows.shape[0] < 2**31 else torch.int64
        self._hot: tuple[Tensor, Tensor] | None = None
        with torch.inference_mode(False):  # they are written later, by another thread
            self._tally = torch.zeros(3, dtype=torch.int64, device=device)
            self.device = self._tally.device
            self.way = self._choose_way(way)
            self._ring = _Ring(table, self.device, STAGING_BUFFERS if self.way == "gather" else 0)

    def _choose_way(self, way: str) -> str:
        if way not in WAYS:
            raise ValueError(f"way {way!r}: choose from {', '.join(WAYS)}")
        if way == "auto":
            on_gpu = self.device.type == "cuda"
            way = "zero_copy" if on_gpu and not self.table.mapped else "gather"
        if way == "zero_copy":
            choose_backend("triton", self._tally)
            if self.table.mapped or self.device.type == "cuda":
                self.table.pin()
        return way

    def keep(self, slots: Tensor) -> None:
        """Hold these rows on the device from now on; none: only what is fetched."""
        slots = slots.flatten().unique()  # sorted
        if not slots.numel():
            self._hot = None
            return
        rows = self.table.rows.index_select(0, slots.cpu()).to(self.device)
        slots = slots.to(self.device, self._index)
        if self.device.type == "cuda":
            for tensor in (slots, rows):
                tensor.record_stream(_side_stream(self.device.index))
        self._hot = (slots, rows)

    def fetch(self, slots: Tensor) -> Tensor:
        """Rows of slots [...] -> [..., width], equal to `table.rows[slots]`, without haste."""
        return self.prefetch(slots).wait()

    @torch.compiler.disable
    def prefetch(self, slots: Tensor) -> Pending:
        """Start to fetch the rows of slots [...], int32 or int64, once they are computed.

        Raises:
            ValueError: slots on another device, or a gather inside a CUDA graph.
        """
        if slots.device != self.device:
            raise ValueError(f"slots on {slots.device} of a table for {self.device}")
        if self.device.type != "cuda":
            return Pending(_resolved((self._fetch(slots), None)))
        if self.way == "gather" and torch.cuda.is_current_stream_capturing():
            raise ValueError("a gather on the host cannot be part of a CUDA graph: use zero_copy")
        stream = _side_stream(self.device.index)
        slots.record_stream(stream)
        ready = torch.cuda.current_stream(self.device).record_event()
        if self.way == "zero_copy":
            return Pending(_resolved(self._fetch_aside(slots, stream, ready)))
        return Pending(_worker().submit(self._fetch_aside, slots, stream, ready))

    def statistics(self, reset: bool = False) -> Traffic:
        """Counts since the last reset; waits for what is under way."""
        if self.device.type == "cuda":
            _worker().submit(_side_stream(self.device.index).synchronize).result()
        lookups, distinct, hits = self._tally.tolist()
        if reset:
            self._tally.zero_()
        rows = self.table.rows
        return Traffic(lookups, distinct, hits, rows.shape[1] * rows.element_size())

    def _fetch_aside(self, slots: Tensor, stream, ready) -> tuple[Tensor, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            stream.wait_event(ready)
            return self._fetch(slots), stream.record_event()

    @torch.no_grad()
    def _fetch(self, slots: Tensor) -> Tensor:
        if not slots.numel():
            flat = _empty(self.table.rows, slots)
        else:
            fetch = self._zero_copy if self.way == "zero_copy" else self._gather
            flat = fetch(slots.flatten().to(self._index))
        return flat.view(*slots.shape, flat.shape[-1])

    def _distinct(self, slots: Tensor) -> tuple[Tensor, Callable, Tensor]:
        """Slots to fetch, how many of them, and what makes all rows from theirs."""
        wanted = self.deduplicate
        if wanted is None:
            wanted = slots.numel() >= DEDUPLICATE_FROM
        if not wanted:
            count = torch.full((1,), slots.numel(), dtype=torch.int64, device=self.device)
            return slots, lambda rows: rows, count
        distinct, inverse, count = distinct_slots(slots)
        return distinct, lambda rows: lookup(rows, inverse), count

    def _zero_copy(self, slots: Tensor) -> Tensor:
        distinct, expand, count = self._distinct(slots)
        hot = self._hot or (None, None)
        lookups, programs = slots.numel(), self.programs
        return expand(
            zero_copy_triton(self.table.rows, distinct, count, *hot, self._tally, lookups, programs)
        )

    def _gather(self, slots: Tensor) -> Tensor:
        distinct, expand, count = self._distinct(slots)
        distinct = distinct[: int(count)]
        hot = self._hot  # another thread may replace it
        if hot is None:
            missing, rows = distinct, self._ring.bring(distinct.cpu())
        else:
            hot_slots, hot_rows = hot
            near = _nearest(distinct, hot_slots)
            places = (hot_slots[near] != distinct).nonzero().squeeze(1)
            missing, rows = distinct[places], hot_rows[near]
            rows.index_copy_(0, places, self._ring.bring(missing.cpu()))
        counts = (slots.numel(), distinct.numel(), distinct.numel() - missing.numel())
        for total, more in zip(self._tally, counts, strict=True):
            total += more
        return expand(rows)


class _Ring:
    """Pinned buffers between a host table and a device."""

    def __init__(self, table: HostTable, device: torch.device, buffers: int) -> None:
        rows, self.device, self.table = table.rows, device, table
        height = max(1, STAGING_BYTES // (rows.shape[1] * rows.element_size()))
        on_gpu = device.type == "cuda"
        shape = (buffers, height, rows.shape[1])
        self.buffers = torch.empty(shape, dtype=rows.dtype, pin_memory=on_gpu)
        self.free = [torch.cuda.Event() if on_gpu else None for _ in self.buffers]

    def bring(self, slots: Tensor) -> Tensor:
        """Rows of slots [n] on the CPU -> [n, width] on the device, on the current stream."""
        source = self.table.rows
        rows = torch.empty((slots.numel(), source.shape[1]), dtype=source.dtype, device=self.device)
        count, height = self.buffers.shape[:2]
        for turn, start in enumerate(range(0, slots.numel(), height)):
            part = slots[start : start + height]
            buffer = self.buffers[turn % count, : part.numel()]
            free = self.free[turn % count]
            if free is not None:
                free.synchronize()
            torch.index_select(source, 0, part, out=buffer)
            rows[start : start + part.numel()].copy_(buffer, non_blocking=True)
            if free is not None:
                free.record()
        return rows


def _resolved(value) -> Future:
    future: Future = Future()
    future.set_result(value)
    return future


@cache
def _side_stream(device_index: int) -> torch.cuda.Stream:
    """One for all tables: the rows of the first layer come first. A layer waits for them, so they
    go before other work."""
    return torch.cuda.Stream(device_index, priority=-1)


@cache
def _worker() -> ThreadPoolExecutor:
    """One thread for all tables; a gather itself uses all of torch's."""
    return ThreadPoolExecutor(1, "engram-offload")
