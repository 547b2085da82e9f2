"""Slots -> rows of the memory table; or compressed ids -> slots -> rows in one kernel.

Rows of 1-byte floats come with one scale a block of them: `row[i] = stored[i] * scale[i // block]`,
the scales stored as exponents (e8m0, `2^(byte - 127)`) as in DeepSeek-V4.1-Flash, or as floats.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from engram_kernels.backend import choose_backend, operator, power_of_two
from engram_kernels.hashing import ngram_slots, remainder, token_at
from engram_kernels.pages import advise

CHUNK_BYTES = 16  # what one thread reads at a time
CHUNKS = 1024  # chunks a program
MAPPED_BYTES = 32 << 20  # glibc maps every larger allocation, and unmaps it


def lookup(
    table: Tensor, slots: Tensor, scales: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Read rows.

    Args:
        table: [rows, width] float32, bfloat16, float16 or float8_e4m3fn.
        slots: [...] int32 or int64.
        scales: [rows, width / block] uint8 exponents (e8m0) or floats, for float8 tables.
        backend: see `choose_backend`.

    Returns:
        [..., width] in the table's dtype; bfloat16 for float8 tables.
    """
    if choose_backend(backend, table, slots) == "triton":
        _check_contiguous(table, scales)
        return lookup_triton(table, slots, scales)
    if scales is None:
        return _rows(table, slots)
    stored = table.view(torch.uint8)[slots].view(table.dtype)
    return dequantise(stored, scales[slots])


def dequantise(stored: Tensor, scales: Tensor) -> Tensor:
    """`stored * scale of its block`: [.., width] float8, [.., blocks] -> [.., width] bfloat16."""
    if scales.dtype == torch.uint8:
        scales = torch.exp2(scales.float() - 127)
    blocks = stored.float().unflatten(-1, (scales.shape[-1], -1))
    return (blocks * scales.float().unsqueeze(-1)).flatten(-2).bfloat16()


def lookup_unique(table: Tensor, slots: Tensor) -> Tensor:
    """`lookup` that reads every row once, in ascending order: for tables that are slow to read.

    In memory sorting costs more than it saves, even where n-grams repeat as in text.
    """
    distinct, inverse = torch.unique(slots, return_inverse=True)
    return _rows(_rows(table, distinct), inverse)


def _rows(table: Tensor, slots: Tensor) -> Tensor:
    """`F.embedding`, with a large result on huge pages.

    An allocator takes large results anew from the system each time, and by pages of 4 KiB that
    takes a CPU longer than reading the rows.
    """
    size = slots.numel() * table.shape[1] * table.element_size()
    plain = torch.compiler.is_compiling() or (table.requires_grad and torch.is_grad_enabled())
    if plain or size < MAPPED_BYTES or table.device.type != "cpu" or _is_traced(table, slots):
        return F.embedding(slots, table)
    rows = torch.empty((*slots.shape, table.shape[1]), dtype=table.dtype)
    advise(rows, "MADV_HUGEPAGE")
    torch.index_select(table, 0, slots.reshape(-1), out=rows.view(-1, table.shape[1]))
    return rows


def _is_traced(*tensors: Tensor) -> bool:
    """Whether one of them stands for a tensor without being one with memory of its own."""
    return any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors)


def lookup_ngrams(
    table: Tensor,
    ids: Tensor,
    compression: Tensor,
    multipliers: Tensor,
    primes: Tensor,
    offsets: Tensor,
    pad: Tensor,
    scales: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Ids to rows: compression, n-grams, hash and gather in one kernel.

    Args:
        table, scales: as in `lookup`.
        ids: [batch, positions] raw ids from the start of a text; -1 where there is no text.
        compression: [vocab] int32, raw id -> compressed id.
        multipliers, primes, offsets: of one layer, as in `ngram_slots`.
        pad: [1] compressed id that stands for a missing token.

    Returns:
        rows [batch, positions, (N-1)*heads, width] and slots [batch, positions, (N-1)*heads] int64.
    """
    if choose_backend(backend, table, ids) == "triton":
        _check_contiguous(table, scales)
        constants = [x.contiguous() for x in (compression, multipliers, primes, offsets)]
        return lookup_ngrams_triton(table, ids, *constants, pad, scales)
    compressed = compression[ids.clamp(min=0)].long().masked_fill(ids < 0, -1)
    window = F.pad(compressed, (multipliers.numel() - 1, 0), value=-1)
    slots = ngram_slots(window, multipliers, primes, offsets, pad, backend="torch")
    return lookup(table, slots, scales, backend="torch"), slots


def _check_contiguous(*tables: Tensor | None) -> None:
    if not all(table is None or table.is_contiguous() for table in tables):
        raise ValueError("a table whose rows are not contiguous: copying it is left to the caller")


@triton.jit
def scale_of(scales, index, mask, EXPONENTS: tl.constexpr):
    """Scales as float32; an exponent becomes a float by its bits, as `exp2` is not exact."""
    if EXPONENTS:
        bits = tl.load(scales + index, mask=mask, other=127).to(tl.uint32) << 23
        return bits.to(tl.float32, bitcast=True)
    return tl.load(scales + index, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _lookup_kernel(
    table,
    slots,
    scales,
    out,
    chunks,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    EXPONENTS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Every thread moves 16 bytes: no lane idles whatever the width of a row."""
    chunk = tl.program_id(0).to(tl.int64) * CHUNKS + tl.arange(0, CHUNKS)
    inside = chunk < chunks
    PER_ROW: tl.constexpr = WIDTH // CHUNK
    position = chunk // PER_ROW
    place = (chunk - position * PER_ROW) * CHUNK
    slot = tl.load(slots + position, mask=inside, other=0).to(tl.int64)
    element = tl.arange(0, CHUNK)
    source = (slot * WIDTH + place)[:, None] + element[None, :]
    row = tl.load(table + source, mask=inside[:, None], other=0.0)
    if SCALE_BLOCK > 0:
        scale = scale_of(
            scales, slot * (WIDTH // SCALE_BLOCK) + place // SCALE_BLOCK, inside, EXPONENTS
        )
        row = row.to(tl.float32) * scale[:, None]
    target = (chunk * CHUNK)[:, None] + element[None, :]
    tl.store(out + target, row.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _lookup_ngrams_kernel(
    table,
    scales,
    ids,
    compression,
    multipliers,
    primes,
    offsets,
    pad,
    out,
    slots,
    tokens,
    positions,
    ORDERS: tl.constexpr,
    HEADS: tl.constexpr,
    HEADS_P: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_P: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    EXPONENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.arange(0, HEADS_P)
    element = tl.arange(0, WIDTH_P)
    inside = token < tokens
    row = token // positions
    place = token - row * positions
    row_start = row.to(tl.int64) * positions
    pad_id = tl.load(pad).to(tl.int64)
    mix = tl.zeros([BLOCK], tl.int64)
    alive = inside
    real = head < HEADS
    COLUMNS: tl.constexpr = (ORDERS - 1) * HEADS
    for back in tl.static_range(ORDERS):
        id_, alive = token_at(ids, compression, row_start, place, back, inside, pad_id, alive, True)
        mix = mix ^ (id_ * tl.load(multipliers + back))
        if back > 0:
            column = (back - 1) * HEADS + head
            prime = tl.load(primes + column, mask=real, other=3)
            offset = tl.load(offsets + column, mask=real, other=0)
            slot = remainder(mix[:, None], prime[None, :]) + offset[None, :]
            index = token.to(tl.int64)[:, None] * COLUMNS + column[None, :]
            mask = inside[:, None] & real[None, :]
            tl.store(slots + index, slot, mask=mask)
            flat = tl.reshape(slot, [BLOCK * HEADS_P])
            wanted = tl.reshape(mask, [BLOCK * HEADS_P])[:, None] & (element < WIDTH)[None, :]
            source = flat[:, None] * WIDTH + element[None, :]
            found = tl.load(table + source, mask=wanted, other=0.0)
            if SCALE_BLOCK > 0:
                which = flat[:, None] * (WIDTH // SCALE_BLOCK) + (element // SCALE_BLOCK)[None, :]
                found = found.to(tl.float32) * scale_of(scales, which, wanted, EXPONENTS)
            target = tl.reshape(index, [BLOCK * HEADS_P])[:, None] * WIDTH + element[None, :]
            tl.store(out + target, found.to(out.dtype.element_ty), mask=wanted)


def _launch(table: Tensor, slots: Tensor, scales: Tensor | None) -> Tensor:
    out = _empty(table, slots, scales)
    width = table.shape[1]
    chunk = _chunk(table)
    chunks = slots.numel() * width // chunk
    if chunks:
        _lookup_kernel[(triton.cdiv(chunks, CHUNKS),)](
            table,
            slots.contiguous(),
            table if scales is None else scales,
            out,
            chunks,
            WIDTH=width,
            CHUNK=chunk,
            SCALE_BLOCK=0 if scales is None else width // scales.shape[1],
            EXPONENTS=scales is not None and scales.dtype == torch.uint8,
            CHUNKS=CHUNKS,
            num_warps=8,
        )
    return out


def _chunk(table: Tensor) -> int:
    """Elements a thread: 16 bytes, or the largest power of two that divides the width."""
    width, most = table.shape[1], CHUNK_BYTES // table.element_size()
    return min(most, width & -width)


def _empty(table: Tensor, slots: Tensor, scales: Tensor | None) -> Tensor:
    dtype = table.dtype if scales is None else torch.bfloat16
    return torch.empty((*slots.shape, table.shape[1]), dtype=dtype, device=table.device)


def _launch_ngrams(table, ids, compression, multipliers, primes, offsets, pad, scales):
    rows, slots = _empty_ngrams(table, ids, compression, multipliers, primes, offsets, pad, scales)
    tokens, width = ids.numel(), table.shape[1]
    heads = primes.shape[1]
    block = max(1, 32 // power_of_two(heads))
    if tokens:
        _lookup_ngrams_kernel[(triton.cdiv(tokens, block),)](
            table,
            table if scales is None else scales,
            ids.contiguous(),
            compression,
            multipliers,
            primes,
            offsets,
            pad,
            rows,
            slots,
            tokens,
            ids.shape[-1],
            ORDERS=multipliers.numel(),
            HEADS=heads,
            HEADS_P=power_of_two(heads),
            WIDTH=width,
            WIDTH_P=power_of_two(width),
            SCALE_BLOCK=0 if scales is None else width // scales.shape[1],
            EXPONENTS=scales is not None and scales.dtype == torch.uint8,
            BLOCK=block,
            num_warps=4,
        )
    return rows, slots


def _empty_ngrams(table, ids, compression, multipliers, primes, offsets, pad, scales):
    slots = torch.empty((*ids.shape, offsets.numel()), dtype=torch.int64, device=ids.device)
    return _empty(table, slots, scales), slots


def _keep(ctx, inputs, output) -> None:
    table, slots, _ = inputs
    ctx.save_for_backward(slots)
    ctx.rows = table.shape[0]


def _backward(ctx, grad: Tensor):
    """Dense, as `nn.Embedding`'s: for any optimiser. `table_update` has the sparse way."""
    [slots] = ctx.saved_tensors
    return _dense(grad, slots, ctx.rows), None, None


def _dense(grad: Tensor, slots: Tensor, rows: int) -> Tensor:
    table = torch.zeros((rows, grad.shape[-1]), dtype=grad.dtype, device=grad.device)
    return table.index_add_(0, slots.flatten().long(), grad.reshape(-1, grad.shape[-1]))


def _keep_ngrams(ctx, inputs, output) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.rows = inputs[0].shape[0]


def _backward_ngrams(ctx, grad: Tensor, _slots):
    [slots] = ctx.saved_tensors
    return _dense(grad, slots, ctx.rows), *[None] * 7


lookup_triton = operator(
    "lookup(Tensor table, Tensor slots, Tensor? scales) -> Tensor",
    _launch,
    _empty,
    _backward,
    _keep,
)
lookup_ngrams_triton = operator(
    "lookup_ngrams(Tensor table, Tensor ids, Tensor compression, Tensor multipliers, Tensor primes,"
    " Tensor offsets, Tensor pad, Tensor? scales) -> (Tensor, Tensor)",
    _launch_ngrams,
    _empty_ngrams,
    _backward_ngrams,
    _keep_ngrams,
)
