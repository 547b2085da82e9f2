"""Hyper-connections: a block reads one collapse of M residual streams, writes to all, mixes them.

One token, streams x_1..x_M of width d, their concatenation x, block f:

    mixes      = fn (x / sqrt(mean(x^2) + norm_eps))             (2 + M) M numbers
    pre        = sigmoid(scale_0 mixes_pre + base_pre) + hc_eps
    post       = 2 sigmoid(scale_1 mixes_post + base_post)
    comb       = sinkhorn(softmax_rows(scale_2 mixes_comb + base_comb) + hc_eps)
    collapsed  = sum_m pre_m x_m
    streams'_m = post_m f(collapsed) + sum_j comb_jm x_j

`sinkhorn` divides by the sums of the columns, then `iterations - 1` times by those of the rows and
of the columns; every sum gets `hc_eps` added. `mix_in` is all before the block, `mix_out` the last
line, `collapse_head` the collapse alone at the end of the model.

The norm commutes with the projection, so a kernel projects the raw streams and sums their squares
in one pass. All arithmetic between load and store is float32, under autocast too; the matrix
products take float32 numbers as two bfloat16 each and lose 2^-18 of the result.

Backward through the rounds, exactly: with H the gradient with respect to the logarithm of the
matrix, a division of the rows of X by n = (their sums + eps) into Y gives

    H_X = H_Y - (row sums of H_Y) Y,    X = n Y

and likewise for columns. Only the divisors are remembered, in registers.

Source: arXiv 2512.24880, and `DeepseekV4HyperConnection`, `DeepseekV4HyperHead` in transformers.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from engram_kernels.backend import INTERPRETED, choose_backend, operator, power_of_two

MAX_STREAMS = 8
PROGRAMS = 1056  # of kernels that walk over the tokens: eight to each of 132 multiprocessors


def stream_coefficients(
    streams: Tensor,
    fn: Tensor,
    base: Tensor,
    scale: Tensor,
    iterations: int,
    hc_eps: float,
    norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights with which streams are read, written and mixed.

    Args:
        streams: [batch, positions, M, d].
        fn: [(2 + M) * M, M * d]; rows of pre, of post, then of comb row by row.
        base: [(2 + M) * M].
        scale: [3], of pre, post and comb.
        iterations: Sinkhorn rounds, at least 1.
        hc_eps: added to pre, to the matrix before the rounds and to every sum in them.
        norm_eps: of the norm over all streams.

    Returns:
        pre, post [batch, positions, M] and comb [batch, positions, M (from), M (to)], float32.
    """
    count = streams.shape[-2]
    sizes = [count, count, count * count]
    groups = _mixes(streams, fn, norm_eps).split(sizes, -1), scale, base.split(sizes)
    pre, post, comb = (mix * factor + bias for mix, factor, bias in zip(*groups, strict=True))
    matrix = comb.unflatten(-1, (count, count)).softmax(-1) + hc_eps
    comb = sinkhorn(matrix, iterations, hc_eps)
    return torch.sigmoid(pre) + hc_eps, 2 * torch.sigmoid(post), comb


def sinkhorn(matrix: Tensor, iterations: int, eps: float) -> Tensor:
    """[.., M, M] of positive numbers -> nearly doubly stochastic, columns last."""
    matrix = matrix / (matrix.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        matrix = matrix / (matrix.sum(-1, keepdim=True) + eps)
        matrix = matrix / (matrix.sum(-2, keepdim=True) + eps)
    return matrix


def collapse(streams: Tensor, pre: Tensor) -> Tensor:
    """`sum_m pre_m streams_m`: [.., M, d] and [.., M] -> [.., d] in the dtype of `streams`."""
    return (pre.unsqueeze(-1) * _wide(streams)).sum(-2).to(streams.dtype)


def _mixes(streams: Tensor, fn: Tensor, norm_eps: float) -> Tensor:
    flat = _wide(streams).flatten(-2)
    flat = flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + norm_eps)
    with torch.autocast(flat.device.type, enabled=False):
        return F.linear(flat, fn.to(flat.dtype))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mix_in(
    streams: Tensor,
    fn: Tensor,
    base: Tensor,
    scale: Tensor,
    iterations: int,
    hc_eps: float,
    norm_eps: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """What a block reads, and the weights with which `mix_out` brings back what it wrote.

    Args: as of `stream_coefficients`; the Triton version takes 1 to 8 streams, float32 or bfloat16,
        of a width that is a multiple of 16.

    Returns:
        post [batch, positions, M] float32, comb [batch, positions, M (from), M (to)] float32,
        collapsed [batch, positions, d] in the dtype of `streams`.

    Raises:
        ValueError: no round at all, or shapes or dtypes that the Triton version does not take; see
            also `choose_backend`.
    """
    if iterations < 1:
        raise ValueError(f"{iterations} Sinkhorn rounds: at least one is needed")
    if choose_backend(backend, streams, fn, base, scale) == "torch":
        settings = iterations, hc_eps, norm_eps
        pre, post, comb = stream_coefficients(streams, fn, base, scale, *settings)
        return post, comb, collapse(streams, pre)
    _check(streams, fn, 2 + streams.shape[-2])
    return MIX_IN(streams, fn, base, scale, iterations, hc_eps, norm_eps)[:3]


def mix_out(
    streams: Tensor, out: Tensor, post: Tensor, comb: Tensor, backend: str = "auto"
) -> Tensor:
    """`post_m out + sum_j comb_jm streams_j`, the residual connection of M streams.

    Args:
        streams: [batch, positions, M, d], what `mix_in` read.
        out: [batch, positions, d], what the block made of it.
        post, comb: [batch, positions, M] and [batch, positions, M (from), M (to)].

    Returns:
        [batch, positions, M, d] in the dtype of `streams`.

    Raises:
        ValueError: as `mix_in`.
    """
    if choose_backend(backend, streams, out, post, comb) == "triton":
        _check(streams)
        _check_weights(streams, out, post, comb)
        return MIX_OUT(streams, out, post, comb)
    wide = _wide(streams)
    written = _wide(post).unsqueeze(-1) * _wide(out).unsqueeze(-2)
    with torch.autocast(wide.device.type, enabled=False):
        return (written + _wide(comb).transpose(-1, -2) @ wide).to(streams.dtype)


def collapse_head(
    streams: Tensor,
    fn: Tensor,
    base: Tensor,
    scale: Tensor,
    hc_eps: float,
    norm_eps: float,
    backend: str = "auto",
) -> Tensor:
    """Streams at the end of the model -> one.

    Args:
        streams: [batch, positions, M, d].
        fn, base, scale: [M, M * d], [M] and [1], of pre alone.
        hc_eps, norm_eps: as in `stream_coefficients`.

    Returns:
        [batch, positions, d] in the dtype of `streams`.

    Raises:
        ValueError: as `mix_in`.
    """
    if choose_backend(backend, streams, fn, base, scale) == "triton":
        _check(streams, fn, 1)
        return COLLAPSE_HEAD(streams, fn, base, scale, hc_eps, norm_eps)[0]
    pre = torch.sigmoid(_mixes(streams, fn, norm_eps) * scale + base) + hc_eps
    return collapse(streams, pre)


def _check(streams: Tensor, fn: Tensor | None = None, groups: int = 1) -> None:
    count, width = streams.shape[-2:]
    if not 1 <= count <= MAX_STREAMS or width % 16:
        raise ValueError(
            f"{count} streams of width {width}: the Triton version takes 1 to {MAX_STREAMS} "
            "streams of a width that is a multiple of 16"
        )
    if streams.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"streams of {streams.dtype}: the Triton version takes float32, bfloat16")
    if fn is not None and fn.shape != (groups * count, count * width):
        raise ValueError(
            f"fn {list(fn.shape)}: {count} streams of width {width} need "
            f"{[groups * count, count * width]}"
        )


def _check_weights(streams: Tensor, out: Tensor, post: Tensor, comb: Tensor) -> None:
    *places, count, width = streams.shape
    expected = [*places, width], [*places, count], [*places, count, count]
    given = tuple(list(tensor.shape) for tensor in (out, post, comb))
    if given != expected:
        raise ValueError(f"out, post, comb {given}: streams {list(streams.shape)} need {expected}")


@triton.jit
def _append(items, item):
    return items + (item,)


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
        pre = _append(pre, _column(gates, column, stream) + hc_eps)
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
        streams = _append(streams, tile.to(tl.float32))
    for target in tl.static_range(STREAMS):
        total = tl.zeros([TOKENS, SPAN], tl.float32)
        for source in tl.static_range(STREAMS):
            address = comb + token * (STREAMS * STREAMS) + source * STREAMS + target
            weight = tl.load(address, mask=live, other=0.0).to(tl.float32)
            total += weight[:, None] * streams[source]
        weight = tl.load(post + token * STREAMS + target, mask=live, other=0.0).to(tl.float32)
        total += weight[:, None] * written
        tl.store(mixed + offset + target * WIDTH, total.to(mixed.dtype.element_ty), mask=mask)


@triton.jit
def _lane_sums(product, TOKENS: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """[tokens, span] -> [tokens, lanes]: each thread adds up what it holds, exchanges nothing."""
    return tl.sum(tl.reshape(product, [TOKENS, LANES, VECTOR]), 2)


@triton.jit(do_not_specialize=["tokens"])
def mix_out_backward(
    grad,
    x,
    out,
    post,
    comb,
    grad_x,
    grad_out,
    grad_post,
    grad_comb,
    tokens,
    STREAMS: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    SPAN: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """One tile of tokens, SPAN columns at a time."""
    LANES: tl.constexpr = SPAN // VECTOR
    SQUARE: tl.constexpr = STREAMS * STREAMS
    first = tl.program_id(0).to(tl.int64) * TOKENS
    token = tl.arange(0, TOKENS)
    live = token < tokens - first
    mask = live[:, None]
    grad += first * (STREAMS * WIDTH)
    x += first * (STREAMS * WIDTH)
    out += first * WIDTH
    post += first * STREAMS
    comb += first * SQUARE
    grad_x += first * (STREAMS * WIDTH)
    grad_out += first * WIDTH
    grad_post += first * STREAMS
    grad_comb += first * SQUARE
    weights = ()  # post, then comb row by row
    sums = ()  # their gradients
    for index in tl.static_range(STREAMS):
        weight = tl.load(post + token * STREAMS + index, mask=live, other=0.0).to(tl.float32)
        weights = _append(weights, weight)
        sums = _append(sums, tl.zeros([TOKENS, LANES], tl.float32))
    for index in tl.static_range(SQUARE):
        weight = tl.load(comb + token * SQUARE + index, mask=live, other=0.0).to(tl.float32)
        weights = _append(weights, weight)
        sums = _append(sums, tl.zeros([TOKENS, LANES], tl.float32))
    for start in range(0, WIDTH, SPAN):
        place = start + tl.arange(0, SPAN)
        offset = token[:, None] * (STREAMS * WIDTH) + place[None, :]
        single = token[:, None] * WIDTH + place[None, :]
        written = tl.load(out + single, mask=mask, other=0.0).to(tl.float32)
        total = tl.zeros([TOKENS, SPAN], tl.float32)
        grads = ()
        updated = ()
        for target in tl.static_range(STREAMS):
            tile = tl.load(grad + offset + target * WIDTH, mask=mask, other=0.0).to(tl.float32)
            grads = _append(grads, tile)
            total += weights[target][:, None] * tile
            added = _lane_sums(written * tile, TOKENS, LANES, VECTOR)
            updated = _append(updated, sums[target] + added)
        tl.store(grad_out + single, total.to(grad_out.dtype.element_ty), mask=mask)
        for source in tl.static_range(STREAMS):
            tile = tl.load(x + offset + source * WIDTH, mask=mask, other=0.0).to(tl.float32)
            total = tl.zeros([TOKENS, SPAN], tl.float32)
            for target in tl.static_range(STREAMS):
                total += weights[STREAMS + source * STREAMS + target][:, None] * grads[target]
                added = _lane_sums(tile * grads[target], TOKENS, LANES, VECTOR)
                updated = _append(updated, sums[STREAMS + source * STREAMS + target] + added)
            tl.store(grad_x + offset + source * WIDTH, total.to(grad_x.dtype.element_ty), mask=mask)
        sums = updated
    for index in tl.static_range(STREAMS):
        total = tl.sum(sums[index], 1).to(grad_post.dtype.element_ty)
        tl.store(grad_post + token * STREAMS + index, total, mask=live)
    for index in tl.static_range(SQUARE):
        total = tl.sum(sums[STREAMS + index], 1).to(grad_comb.dtype.element_ty)
        tl.store(grad_comb + token * SQUARE + index, total, mask=live)


@triton.jit
def _sinkhorn_backward(matrix, grad, eps, ITERATIONS: tl.constexpr):
    """Gradient with respect to the logarithm of `matrix`, from that of the result of the rounds."""
    start = matrix
    divisor = tl.sum(matrix, 1) + eps
    matrix *= (1 / divisor)[:, None, :]
    divisors = ()
    for _ in tl.static_range(ITERATIONS - 1):
        rows = tl.sum(matrix, 2) + eps
        matrix *= (1 / rows)[:, :, None]
        columns = tl.sum(matrix, 1) + eps
        matrix *= (1 / columns)[:, None, :]
        divisors = _append(_append(divisors, rows), columns)
    grad *= matrix
    for round in tl.static_range(ITERATIONS - 1):
        grad -= tl.sum(grad, 1)[:, None, :] * matrix
        matrix *= divisors[2 * (ITERATIONS - 2 - round) + 1][:, None, :]
        grad -= tl.sum(grad, 2)[:, :, None] * matrix
        matrix *= divisors[2 * (ITERATIONS - 2 - round)][:, :, None]
    return grad - tl.sum(grad, 1)[:, None, :] * (start * (1 / divisor)[:, None, :])


@triton.jit(do_not_specialize=["tokens"])
def coefficients_backward(
    x,
    grad,
    grad_post,
    grad_comb,
    mixes,
    roots,
    base,
    scale,
    weights,
    pre,
    pulls,
    sums,
    tokens,
    hc_eps,
    STREAMS: tl.constexpr,
    WIDTH: tl.constexpr,
    ITERATIONS: tl.constexpr,
    PADDED: tl.constexpr,
    TOKENS: tl.constexpr,
    SPAN: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Tile after tile: gradient of pre, then back through the coefficients to the projection.

    Per token: `weights`, root times the gradient of each of the mixes, pre, and `pulls`, what the
    norm takes back in units of x. Per program: `sums` over its tokens, of the gradient before scale
    and base, and of the same times the mixes.
    """
    LENGTH: tl.constexpr = STREAMS * WIDTH
    LANES: tl.constexpr = SPAN // VECTOR
    USED: tl.constexpr = STREAMS if ITERATIONS == 0 else 2 * STREAMS
    ROWS: tl.constexpr = STREAMS if ITERATIONS == 0 else (2 + STREAMS) * STREAMS
    GATES: tl.constexpr = 2 * PADDED
    column = tl.arange(0, GATES)
    used = column < USED
    row = tl.arange(0, PADDED)[None, :, None]
    to = tl.arange(0, PADDED)[None, None, :]
    inside = (row < STREAMS) & (to < STREAMS)
    gate_sum = tl.zeros([TOKENS, GATES], tl.float32)
    gate_dot = tl.zeros([TOKENS, GATES], tl.float32)
    matrix_sum = tl.zeros([TOKENS, PADDED, PADDED], tl.float32)
    matrix_dot = tl.zeros([TOKENS, PADDED, PADDED], tl.float32)
    token = tl.arange(0, TOKENS)
    step = tl.full([], TOKENS, tl.int64)
    for tile in range(tl.program_id(0), tl.cdiv(tokens, TOKENS), tl.num_programs(0)):
        live = token < tokens - tile * TOKENS
        mask = live[:, None]
        first = tile * step
        lanes = ()
        for _ in tl.static_range(STREAMS):
            lanes = _append(lanes, tl.zeros([TOKENS, LANES], tl.float32))
        for start in range(0, WIDTH, SPAN):
            place = start + tl.arange(0, SPAN)
            address = grad + first * WIDTH + (token[:, None] * WIDTH + place[None, :])
            pulled = tl.load(address, mask=mask, other=0.0).to(tl.float32)
            address = x + first * LENGTH + (token[:, None] * LENGTH + place[None, :])
            updated = ()
            for stream in tl.static_range(STREAMS):
                read = tl.load(address + stream * WIDTH, mask=mask, other=0.0).to(tl.float32)
                added = _lane_sums(read * pulled, TOKENS, LANES, VECTOR)
                updated = _append(updated, lanes[stream] + added)
            lanes = updated

        root = tl.load(roots + first + token, mask=live, other=0.0)
        here = mask & used[None, :]
        offset = token[:, None] * ROWS + column[None, :]
        mix = tl.load(mixes + first * ROWS + offset, mask=here, other=0.0)
        gates, factor = _sigmoid_gates(mix, base, scale, column, used, STREAMS)
        address = pre + first * STREAMS + (token[:, None] * STREAMS + column[None, :])
        tl.store(address, gates + hc_eps, mask=mask & (column < STREAMS)[None, :])
        pulled = tl.zeros([TOKENS, GATES], tl.float32)
        if ITERATIONS > 0:
            address = grad_post + first * STREAMS
            address += token[:, None] * STREAMS + (column - STREAMS)[None, :]
            second = here & (column >= STREAMS)[None, :]
            pulled = 2 * tl.load(address, mask=second, other=0.0).to(tl.float32)
        for stream in tl.static_range(STREAMS):
            total = tl.sum(lanes[stream], 1)
            pulled = tl.where(column[None, :] == stream, total[:, None], pulled)
        pulled *= gates * (1 - gates)
        gate_sum += pulled
        gate_dot += pulled * mix
        pulled *= factor[None, :] * root[:, None]
        tl.store(weights + first * ROWS + offset, pulled, mask=here)
        pull = tl.sum(pulled * mix, 1)

        if ITERATIONS > 0:
            here = live[:, None, None] & inside
            offset = token[:, None, None] * ROWS + 2 * STREAMS + row * STREAMS + to
            mix = tl.load(mixes + first * ROWS + offset, mask=here, other=0.0)
            soft, matrix = _softmax_matrix(mix, base, scale, hc_eps, row, to, inside, STREAMS)
            address = grad_comb + first * (STREAMS * STREAMS)
            address += token[:, None, None] * (STREAMS * STREAMS) + row * STREAMS + to
            pulled = tl.load(address, mask=here, other=0.0).to(tl.float32)
            pulled = _sinkhorn_backward(matrix, pulled, hc_eps, ITERATIONS)
            pulled *= soft / tl.maximum(matrix, 1e-30)
            pulled -= soft * tl.sum(pulled, 2)[:, :, None]
            matrix_sum += pulled
            matrix_dot += pulled * mix
            pulled *= tl.load(scale + 2).to(tl.float32) * root[:, None, None]
            tl.store(weights + first * ROWS + offset, pulled, mask=here)
            pull += tl.sum(tl.sum(pulled * mix, 2), 1)
        tl.store(pulls + first + token, pull * root / LENGTH, mask=live)

    sums += tl.program_id(0) * (2 * ROWS)
    tl.store(sums + column, tl.sum(gate_sum, 0), mask=used)
    tl.store(sums + ROWS + column, tl.sum(gate_dot, 0), mask=used)
    if ITERATIONS > 0:
        row = tl.arange(0, PADDED)[:, None]
        to = tl.arange(0, PADDED)[None, :]
        inside = (row < STREAMS) & (to < STREAMS)
        offset = 2 * STREAMS + row * STREAMS + to
        tl.store(sums + offset, tl.sum(matrix_sum, 0), mask=inside)
        tl.store(sums + ROWS + offset, tl.sum(matrix_dot, 0), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def streams_backward(
    x,
    grad,
    fn,
    weights,
    pre,
    pulls,
    grad_x,
    partial,
    tokens,
    STREAMS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED_ROWS: tl.constexpr,
    EXACT: tl.constexpr,
    SPLIT: tl.constexpr,
    TOKENS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """SPAN columns of one stream, tile after tile of tokens: gradient of x, a part of fn's."""
    LENGTH: tl.constexpr = STREAMS * WIDTH
    place = tl.program_id(0) * SPAN + tl.arange(0, SPAN)
    stream = tl.program_id(0) * SPAN // WIDTH
    row = tl.arange(0, PADDED_ROWS)
    used = (row < ROWS)[:, None]
    address = row[:, None] * LENGTH + place[None, :]
    projection = tl.load(fn + address, mask=used, other=0.0).to(tl.float32)
    total = tl.zeros([SPAN, PADDED_ROWS], tl.float32)
    token = tl.arange(0, TOKENS)
    step = tl.full([], TOKENS, tl.int64)
    offset = token[:, None] * LENGTH + place[None, :]
    single = token[:, None] * WIDTH + (place - stream * WIDTH)[None, :]
    for tile in range(tl.program_id(1), tl.cdiv(tokens, TOKENS), tl.num_programs(1)):
        first = tile * step
        live = token < tokens - tile * TOKENS
        mask = live[:, None]
        here = mask & (row < ROWS)[None, :]
        spot = token[:, None] * ROWS + row[None, :]
        weight = tl.load(weights + first * ROWS + spot, mask=here, other=0.0)
        read = tl.load(x + first * LENGTH + offset, mask=mask, other=0.0)
        total = _dot(tl.trans(read), weight, total, EXACT, SPLIT)
        result = tl.zeros([TOKENS, SPAN], tl.float32)
        result = _dot(weight, projection, result, False, SPLIT)
        pulled = tl.load(grad + first * WIDTH + single, mask=mask, other=0.0).to(tl.float32)
        part = tl.load(pre + first * STREAMS + token * STREAMS + stream, mask=live, other=0.0)
        pull = tl.load(pulls + first + token, mask=live, other=0.0)
        result += part[:, None] * pulled - pull[:, None] * read.to(tl.float32)
        result = result.to(grad_x.dtype.element_ty)
        tl.store(grad_x + first * LENGTH + offset, result, mask=mask)
    address += tl.program_id(1) * (ROWS * LENGTH)
    tl.store(partial + address, tl.trans(total), mask=used)


@triton.jit
def _add_rows(matrix, count, column, used, SIZE: tl.constexpr, HEIGHT: tl.constexpr):
    """Sum over the first `count` rows of a matrix whose rows have SIZE numbers."""
    mask = used[None, :]
    total = tl.zeros([HEIGHT, column.shape[0]], tl.float32)
    for start in range(0, count, HEIGHT):
        row = start + tl.arange(0, HEIGHT)
        address = matrix + row[:, None] * SIZE + column[None, :]
        total += tl.load(address, mask=mask & (row < count)[:, None], other=0.0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["parts", "programs"])
def parameters_backward(
    partial,
    sums,
    grad_fn,
    grad_base,
    grad_scale,
    parts,
    programs,
    STREAMS: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """Sums over programs: BLOCK numbers of fn's gradient; the last takes base's and scale's."""
    last = tl.num_programs(0) - 1
    if tl.program_id(0) < last:
        place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        total = _add_rows(partial, parts, place, place < SIZE, SIZE, PARTS)
        tl.store(grad_fn + place, total.to(grad_fn.dtype.element_ty), mask=place < SIZE)
    if tl.program_id(0) == last:
        row = tl.arange(0, PADDED_ROWS)
        base = _add_rows(sums, programs, row, row < ROWS, 2 * ROWS, HEIGHT)
        tl.store(grad_base + row, base.to(grad_base.dtype.element_ty), mask=row < ROWS)
        scale = _add_rows(sums + ROWS, programs, row, row < ROWS, 2 * ROWS, HEIGHT)
        group = (row >= STREAMS).to(tl.int32) + (row >= 2 * STREAMS).to(tl.int32)
        for index in tl.static_range(1 if ROWS == STREAMS else 3):
            share = tl.sum(tl.where(group == index, scale, 0.0), 0)
            tl.store(grad_scale + index, share.to(grad_scale.dtype.element_ty))


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


def _new_mix_in(streams: Tensor, fn: Tensor, base, scale, iterations, hc_eps, norm_eps):
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


def _launch_mix_in(streams: Tensor, fn: Tensor, base, scale, iterations, hc_eps, norm_eps):
    results = _new_mix_in(streams, fn, base, scale, iterations, hc_eps, norm_eps)
    _launch_forward(streams, (fn, base, scale), results, iterations, hc_eps, norm_eps)
    return results


def _new_collapse_head(streams: Tensor, fn: Tensor, base, scale, hc_eps, norm_eps):
    return _new_mix_in(streams, fn, base, scale, 0, hc_eps, norm_eps)[2:]


def _launch_collapse_head(streams: Tensor, fn: Tensor, base, scale, hc_eps, norm_eps):
    results = _new_collapse_head(streams, fn, base, scale, hc_eps, norm_eps)
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


def _new_mix_out(streams: Tensor, out, post, comb) -> Tensor:
    return torch.empty_like(streams, memory_format=torch.contiguous_format)


def _launch_mix_out(streams: Tensor, out: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    mixed = _new_mix_out(streams, out, post, comb)
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


def _new_mix_out_backward(grad: Tensor, streams: Tensor, out: Tensor, post, comb):
    layout = torch.contiguous_format
    return tuple(
        torch.empty_like(tensor, memory_format=layout) for tensor in (streams, out, post, comb)
    )


def _launch_mix_out_backward(grad: Tensor, streams: Tensor, out: Tensor, post, comb):
    results = _new_mix_out_backward(grad, streams, out, post, comb)
    tokens, (count, width) = _count(streams), streams.shape[-2:]
    vector = _vector(streams)
    span = _divisor(width, 8 * vector)
    tile = 32 * vector // span  # one warp a program: threads of one token meet without a barrier
    if tokens:
        mix_out_backward[(triton.cdiv(tokens, tile),)](
            *(tensor.contiguous() for tensor in (grad, streams, out, post, comb)),
            *results,
            tokens,
            STREAMS=count,
            WIDTH=width,
            TOKENS=tile,
            SPAN=span,
            VECTOR=vector,
            num_warps=1,
        )
    return results


def _new_mix_in_backward(grad, grad_post, grad_comb, streams, fn, base, scale, *kept):
    layout = torch.contiguous_format
    return tuple(
        torch.empty_like(tensor, memory_format=layout) for tensor in (streams, fn, base, scale)
    )


def _launch_mix_in_backward(
    grad: Tensor,
    grad_post: Tensor | None,
    grad_comb: Tensor | None,
    streams: Tensor,
    fn: Tensor,
    base: Tensor,
    scale: Tensor,
    mixes: Tensor,
    roots: Tensor,
    iterations: int,
    hc_eps: float,
):
    """Coefficients, then streams and the parts of fn's gradient, then the sums of the parts."""
    parameters = tuple(parameter.contiguous() for parameter in (fn, base, scale))
    results = _new_mix_in_backward(grad, grad_post, grad_comb, streams, *parameters)
    if not _count(streams):
        return results[0], *(result.zero_() for result in results[1:])
    streams = streams.contiguous()
    grads = [g if g is None else g.contiguous() for g in (grad, grad_post, grad_comb)]
    kept = mixes.contiguous(), roots.contiguous()
    *per_token, sums = _coefficients(grads, streams, parameters, kept, iterations, hc_eps)
    partial = _streams(grads[0], streams, parameters[0], per_token, results[0])
    _parameters(partial, sums, streams.shape[-2], results[1:])
    return results


def _coefficients(grads, streams, parameters, kept, iterations, hc_eps) -> tuple[Tensor, ...]:
    """Per token: weights, pre and pulls of `coefficients_backward`; its sums per program."""
    tokens, (count, width), rows = _count(streams), streams.shape[-2:], parameters[0].shape[0]
    padded = _padded(streams, iterations)
    tile = 8 if padded == 4 else 2  # what the divisors of 20 rounds leave in the registers
    vector = 16 // streams.element_size()
    programs = min(triton.cdiv(tokens, tile), PROGRAMS)
    sizes = ([tokens, rows], [tokens, count], [tokens], [programs, 2, rows])
    results = tuple(streams.new_empty(size, dtype=torch.float32) for size in sizes)
    coefficients_backward[(programs,)](
        streams,
        *grads,
        *kept,
        *parameters[1:],
        *results,
        tokens,
        hc_eps,
        STREAMS=count,
        WIDTH=width,
        ITERATIONS=iterations,
        PADDED=padded,
        TOKENS=tile,
        SPAN=_divisor(width, 64 * vector // tile),
        VECTOR=vector,
        num_warps=1,
    )
    return results


def _streams(grad, streams, fn, per_token, grad_streams) -> Tensor:
    """Fills `grad_streams`; returns the parts of fn's gradient [parts, rows, M * d]."""
    tokens, (count, width), rows = _count(streams), streams.shape[-2:], fn.shape[0]
    span, tile = _divisor(width, 64), 64 if count <= 4 else 16
    blocks = fn.shape[1] // span
    parts = min(triton.cdiv(tokens, tile), triton.cdiv(PROGRAMS, blocks))
    partial = fn.new_empty([parts, *fn.shape], dtype=torch.float32)
    streams_backward[(blocks, parts)](
        streams,
        grad,
        fn,
        *per_token,
        grad_streams,
        partial,
        tokens,
        STREAMS=count,
        WIDTH=width,
        ROWS=rows,
        PADDED_ROWS=max(16, power_of_two(rows)),
        EXACT=streams.dtype == torch.bfloat16,
        SPLIT=not INTERPRETED,
        TOKENS=tile,
        SPAN=span,
        num_warps=4,
        num_stages=2,
    )
    return partial


def _parameters(partial: Tensor, sums: Tensor, count: int, results) -> None:
    parts, rows, length = partial.shape
    padded = max(16, power_of_two(rows))
    parameters_backward[(triton.cdiv(rows * length, 128) + 1,)](
        partial,
        sums,
        *results,
        parts,
        sums.shape[0],
        STREAMS=count,
        SIZE=rows * length,
        ROWS=rows,
        PADDED_ROWS=padded,
        BLOCK=128,
        PARTS=16,
        HEIGHT=8192 // padded,
        num_warps=8,
    )


def _keep_mix_in(ctx, inputs, output) -> None:
    streams, fn, base, scale, ctx.iterations, ctx.hc_eps, _ = inputs
    _keep(ctx, (streams, fn, base, scale), output)


def _keep_collapse_head(ctx, inputs, output) -> None:
    *tensors, ctx.hc_eps, _ = inputs
    ctx.iterations = 0
    _keep(ctx, tensors, output)


def _keep(ctx, tensors, output) -> None:
    ctx.set_materialize_grads(False)  # those of mixes and roots would be zeros, filled for nothing
    ctx.mark_non_differentiable(*output[-2:])
    ctx.save_for_backward(*tensors, *output[-2:])


def _backward_mix_in(ctx, grad_post, grad_comb, grad, _, __):
    streams, *_, mixes, _ = ctx.saved_tensors
    shape = streams.shape
    grad = streams.new_zeros([*shape[:2], shape[3]]) if grad is None else grad
    grad_post = mixes.new_zeros(shape[:3]) if grad_post is None else grad_post
    grad_comb = mixes.new_zeros([*shape[:3], shape[2]]) if grad_comb is None else grad_comb
    grads = MIX_IN_BACKWARD(
        grad, grad_post, grad_comb, *ctx.saved_tensors, ctx.iterations, ctx.hc_eps
    )
    return *grads, None, None, None


def _backward_collapse_head(ctx, grad, _, __):
    if grad is None:
        return None, None, None, None, None, None
    return *MIX_IN_BACKWARD(grad, None, None, *ctx.saved_tensors, 0, ctx.hc_eps), None, None


def _keep_mix_out(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward_mix_out(ctx, grad):
    return MIX_OUT_BACKWARD(grad, *ctx.saved_tensors)


MIX_IN_BACKWARD = operator(
    "mix_in_backward(Tensor grad, Tensor? grad_post, Tensor? grad_comb, Tensor streams, Tensor fn, "
    "Tensor base, Tensor scale, Tensor mixes, Tensor roots, int iterations, float hc_eps) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _launch_mix_in_backward,
    _new_mix_in_backward,
)
MIX_IN = operator(
    "mix_in(Tensor streams, Tensor fn, Tensor base, Tensor scale, int iterations, float hc_eps, "
    "float norm_eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _launch_mix_in,
    _new_mix_in,
    _backward_mix_in,
    _keep_mix_in,
)
COLLAPSE_HEAD = operator(
    "collapse_head(Tensor streams, Tensor fn, Tensor base, Tensor scale, float hc_eps, "
    "float norm_eps) -> (Tensor, Tensor, Tensor)",
    _launch_collapse_head,
    _new_collapse_head,
    _backward_collapse_head,
    _keep_collapse_head,
)
MIX_OUT_BACKWARD = operator(
    "mix_out_backward(Tensor grad, Tensor streams, Tensor out, Tensor post, Tensor comb) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _launch_mix_out_backward,
    _new_mix_out_backward,
)
MIX_OUT = operator(
    "mix_out(Tensor streams, Tensor out, Tensor post, Tensor comb) -> Tensor",
    _launch_mix_out,
    _new_mix_out,
    _backward_mix_out,
    _keep_mix_out,
)
