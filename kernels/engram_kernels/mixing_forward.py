"""Forward pass of `mixing`: coefficients with the collapse, and the mixing of a block's output."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engram_kernels.backend import INTERPRETED
from engram_kernels.jit import append

PROGRAMS = 1056  # of kernels that walk over the tokens: eight to each of 132 multiprocessors


@triton.jit
def _halves(x):
    """Two bfloat16 whose sum is x but for 2^-17 of it; rounded by bits, as a cast costs more."""
    bits = x.to(tl.uint32, bitcast=True)
    high = ((bits + 0x8000) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return high.to(tl.bfloat16), (x - high).to(tl.bfloat16)


@triton.jit
def _dot(left, right, total, EXACT: tl.constexpr, SPLIT: tl.constexpr):
    """total + left @ right: `right` float32, `left` too unless EXACT, which says it is bfloat16."""
    if SPLIT:
        high, low = _halves(right)
        if EXACT:
            total = tl.dot(left, low, total)
            total = tl.dot(left, high, total)
        else:
            left_high, left_low = _halves(left)
            total = tl.dot(left_low, high, total)
            total = tl.dot(left_high, low, total)
            total = tl.dot(left_high, high, total)
    else:
        total = tl.dot(left.to(tl.float32), right, total, input_precision="ieee")
    return total


@triton.jit
def _column(tile, column, index):
    """Column `index` of tile [tokens, columns], as a vector."""
    return tl.sum(tl.where(column[None, :] == index, tile, 0.0), 1)


@triton.jit
def _sigmoid_gates(mixes, base, scale, column, used, STREAMS: tl.constexpr):
    """Sigmoids of pre (first STREAMS columns) and post, and the scale of each column."""
    bias = tl.load(base + column, mask=used, other=0.0).to(tl.float32)
    factor = tl.load(scale + (column >= STREAMS).to(tl.int32), mask=used, other=0.0).to(tl.float32)
    return tl.sigmoid(mixes * factor[None, :] + bias[None, :]), factor


@triton.jit
def _softmax_matrix(mixes, base, scale, eps, row, to, used, STREAMS: tl.constexpr):
    """Softmax of mixes [tokens, from, to], and the matrix with which the rounds begin.

    Its padding is an identity, which the rounds leave almost as it is.
    """
    bias = tl.load(base + 2 * STREAMS + row * STREAMS + to, mask=used, other=0.0).to(tl.float32)
    logits = tl.where(used, mixes * tl.load(scale + 2).to(tl.float32) + bias, -1e30)
    power = tl.exp(logits - tl.max(logits, 2)[:, :, None])
    soft = power / tl.sum(power, 2)[:, :, None]
    return soft, tl.where(used, soft + eps, (row == to).to(tl.float32))


@triton.jit(do_not_specialize=["tokens"])
def mix_in_forward(
    x,
    fn,
    base,
    scale,
    post,
    comb,
    collapsed,
    mixes,
    roots,
    tokens,
    hc_eps,
    norm_eps,
    STREAMS: tl.constexpr,
    WIDTH: tl.constexpr,
    ITERATIONS: tl.constexpr,  # 0: the head's, pre alone
    PADDED: tl.constexpr,
    EXACT: tl.constexpr,
    SPLIT: tl.constexpr,
    TOKENS: tl.constexpr,
    SPAN: tl.constexpr,
    PIECE: tl.constexpr,
):
    """One tile of tokens: project SPAN numbers at a time, mix, collapse PIECE columns at a time."""
    LENGTH: tl.constexpr = STREAMS * WIDTH
    SQUARE: tl.constexpr = PADDED * PADDED
    MATRIX: tl.constexpr = 0 if ITERATIONS == 0 else SQUARE
    USED: tl.constexpr = STREAMS if ITERATIONS == 0 else 2 * STREAMS
    ROWS: tl.constexpr = STREAMS if ITERATIONS == 0 else (2 + STREAMS) * STREAMS
    first = tl.program_id(0).to(tl.int64) * TOKENS
    token = tl.arange(0, TOKENS)
    live = token < tokens - first
    mask = live[:, None]
    x += first * LENGTH
    collapsed += first * WIDTH
    mixes += first * ROWS
    column = tl.arange(0, SQUARE + MATRIX)  # the padded matrix, then pre and post
    gate = column - MATRIX
    row, to = column // PADDED, column % PADDED
    inside = (gate < 0) & (row < STREAMS) & (to < STREAMS)
    row = tl.where(gate < 0, 2 * STREAMS + row * STREAMS + to, gate)
    used = (inside | ((gate >= 0) & (gate < USED)))[:, None]
    total = tl.zeros([TOKENS, SQUARE + MATRIX], tl.float32)
    squares = tl.zeros([TOKENS, SPAN], tl.float32)
    for start in range(0, LENGTH, SPAN):
        place = start + tl.arange(0, SPAN)
        address = x + token[:, None] * LENGTH + place[None, :]
        tile = tl.load(address, mask=mask, other=0.0, eviction_policy="evict_last")
        weight = tl.load(fn + row[:, None] * LENGTH + place[None, :], mask=used, other=0.0)
        total = _dot(tile, tl.trans(weight.to(tl.float32)), total, EXACT, SPLIT)
        wide = tile.to(tl.float32)
        squares += wide * wide
    root = tl.rsqrt(tl.sum(squares, 1) / LENGTH + norm_eps)
    tl.store(roots + first + token, root, mask=live)
    total *= root[:, None]
    here = mask & tl.trans(used)
    tl.store(mixes + token[:, None] * ROWS + row[None, :], total, mask=here)

    if ITERATIONS > 0:
        pair = tl.permute(tl.reshape(total, [TOKENS, 2, SQUARE]), [0, 2, 1])
        matrix, gates = tl.split(pair)
    else:
        gates = total
    column = tl.arange(0, SQUARE)
    gates, _ = _sigmoid_gates(gates, base, scale, column, column < USED, STREAMS)
    if ITERATIONS > 0:
        here = mask & ((column >= STREAMS) & (column < USED))[None, :]
        address = post + first * STREAMS + token[:, None] * STREAMS + (column - STREAMS)[None, :]
        tl.store(address, 2 * gates, mask=here)
        row = tl.arange(0, PADDED)[None, :, None]
        to = tl.arange(0, PADDED)[None, None, :]
        inside = (row < STREAMS) & (to < STREAMS)
        matrix = tl.reshape(matrix, [TOKENS, PADDED, PADDED])
        _, matrix = _softmax_matrix(matrix, base, scale, hc_eps, row, to, inside, STREAMS)
        matrix *= (1 / (tl.sum(matrix, 1) + hc_eps))[:, None, :]
        for _ in range(ITERATIONS - 1):
            matrix *= (1 / (tl.sum(matrix, 2) + hc_eps))[:, :, None]
            matrix *= (1 / (tl.sum(matrix, 1) + hc_eps))[:, None, :]
        address = comb + first * (STREAMS * STREAMS)
        address += token[:, None, None] * (STREAMS * STREAMS) + row * STREAMS + to
        tl.store(address, matrix, mask=live[:, None, None] & inside)

    pre = ()
    for stream in tl.static_range(STREAMS):
        pre = append(pre, _column(gates, column, stream) + hc_eps)
    for piece in range(WIDTH // PIECE):  # backwards: what was read last is still in the cache
        place = WIDTH - (piece + 1) * PIECE + tl.arange(0, PIECE)
        offset = token[:, None] * LENGTH + place[None, :]
        read = tl.zeros([TOKENS, PIECE], tl.float32)
        for stream in tl.static_range(STREAMS):
            tile = tl.load(x + offset + stream * WIDTH, mask=mask, other=0.0)
            read += pre[stream][:, None] * tile.to(tl.float32)
        offset = token[:, None] * WIDTH + place[None, :]
        tl.store(collapsed + offset, read.to(collapsed.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def mix_out_forward(
    x,
    out,
    post,
    comb,
    mixed,
    tokens,
    STREAMS: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """One tile of tokens and SPAN columns."""
    BLOCKS: tl.constexpr = WIDTH // SPAN
    first = (tl.program_id(0) // BLOCKS).to(tl.int64) * TOKENS
    token = tl.arange(0, TOKENS)
    live = token < tokens - first
    mask = live[:, None]
    x += first * (STREAMS * WIDTH)
    out += first * WIDTH
    post += first * STREAMS
    comb += first * (STREAMS * STREAMS)
    mixed += first * (STREAMS * WIDTH)
    place = tl.program_id(0) % BLOCKS * SPAN + tl.arange(0, SPAN)
    offset = token[:, None] * (STREAMS * WIDTH) + place[None, :]
    written = tl.load(out + token[:, None] * WIDTH + place[None, :], mask=mask, other=0.0)
    written = written.to(tl.float32)
    streams = ()
    for source in tl.static_range(STREAMS):
        tile = tl.load(x + offset + source * WIDTH, mask=mask, other=0.0)
        streams = append(streams, tile.to(tl.float32))
    for target in tl.static_range(STREAMS):
        total = tl.zeros([TOKENS, SPAN], tl.float32)
        for source in tl.static_range(STREAMS):
            address = comb + token * (STREAMS * STREAMS) + source * STREAMS + target
            weight = tl.load(address, mask=live, other=0.0).to(tl.float32)
            total += weight[:, None] * streams[source]
        weight = tl.load(post + token * STREAMS + target, mask=live, other=0.0).to(tl.float32)
        total += weight[:, None] * written
        tl.store(mixed + offset + target * WIDTH, total.to(mixed.dtype.element_ty), mask=mask)


def _divisor(size: int, limit: int) -> int:
    """The largest power of two that divides `size`, at most `limit`."""
    return min(size & -size, limit)


def _vector(streams: Tensor) -> int:
    """Numbers in 16 bytes, what a thread loads at once; half for many bfloat16 streams."""
    return 16 // streams.element_size() if streams.shape[-2] <= 4 else 4


def _count(streams: Tensor) -> int:
    return streams.shape[0] * streams.shape[1]


def _padded(streams: Tensor, iterations: int) -> int:
    return 8 if iterations and streams.shape[-2] > 4 else 4


def new_mix_in(streams: Tensor, fn: Tensor, base, scale, iterations, hc_eps, norm_eps):
    """Post, comb, collapsed; mixes and roots, the norm's factors, for the backward."""
    batch, positions, count, width = streams.shape
    wide = torch.float32
    return (
        streams.new_empty([batch, positions, count], dtype=wide),
        streams.new_empty([batch, positions, count, count], dtype=wide),
        streams.new_empty([batch, positions, width]),
        streams.new_empty([batch, positions, fn.shape[0]], dtype=wide),
        streams.new_empty([batch, positions], dtype=wide),
    )


def launch_mix_in(streams: Tensor, fn: Tensor, base, scale, iterations, hc_eps, norm_eps):
    results = new_mix_in(streams, fn, base, scale, iterations, hc_eps, norm_eps)
    _launch_forward(streams, (fn, base, scale), results, iterations, hc_eps, norm_eps)
    return results


def new_collapse_head(streams: Tensor, fn: Tensor, base, scale, hc_eps, norm_eps):
    return new_mix_in(streams, fn, base, scale, 0, hc_eps, norm_eps)[2:]


def launch_collapse_head(streams: Tensor, fn: Tensor, base, scale, hc_eps, norm_eps):
    results = new_collapse_head(streams, fn, base, scale, hc_eps, norm_eps)
    _launch_forward(streams, (fn, base, scale), (None, None, *results), 0, hc_eps, norm_eps)
    return results


def _launch_forward(streams, parameters, results, iterations, hc_eps, norm_eps) -> None:
    tokens, (count, width) = _count(streams), streams.shape[-2:]
    if not tokens:
        return
    tile, span = (64, 64) if tokens >= 64 * PROGRAMS // 8 else (16, 128 if count <= 4 else 64)
    mix_in_forward[(triton.cdiv(tokens, tile),)](
        streams.contiguous(),
        *(parameter.contiguous() for parameter in parameters),
        *results,
        tokens,
        hc_eps,
        norm_eps,
        STREAMS=count,
        WIDTH=width,
        ITERATIONS=iterations,
        PADDED=_padded(streams, iterations),
        EXACT=streams.dtype == torch.bfloat16,
        SPLIT=not INTERPRETED,
        TOKENS=tile,
        SPAN=_divisor(count * width, span),
        PIECE=_divisor(width, 128 // streams.element_size()),
        num_warps=4,
        num_stages=3,
    )


def new_mix_out(streams: Tensor, out, post, comb) -> Tensor:
    return torch.empty_like(streams, memory_format=torch.contiguous_format)


def launch_mix_out(streams: Tensor, out: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    mixed = new_mix_out(streams, out, post, comb)
    tokens, (count, width) = _count(streams), streams.shape[-2:]
    span = _divisor(width, 128)
    tile = 128 * _vector(streams) // span
    if tokens:
        mix_out_forward[(triton.cdiv(tokens, tile) * (width // span),)](
            *(tensor.contiguous() for tensor in (streams, out, post, comb)),
            mixed,
            tokens,
            STREAMS=count,
            WIDTH=width,
            TOKENS=tile,
            SPAN=span,
            num_warps=4,
        )
    return mixed
