"""Backward pass of `mixing`: of a block's output, of the coefficients, of streams and weights."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engram_kernels.backend import INTERPRETED, power_of_two
from engram_kernels.jit import append
from engram_kernels.mixing_forward import (
    PROGRAMS,
    _count,
    _divisor,
    _dot,
    _padded,
    _sigmoid_gates,
    _softmax_matrix,
    _vector,
)


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
        weights = append(weights, weight)
        sums = append(sums, tl.zeros([TOKENS, LANES], tl.float32))
    for index in tl.static_range(SQUARE):
        weight = tl.load(comb + token * SQUARE + index, mask=live, other=0.0).to(tl.float32)
        weights = append(weights, weight)
        sums = append(sums, tl.zeros([TOKENS, LANES], tl.float32))
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
            grads = append(grads, tile)
            total += weights[target][:, None] * tile
            added = _lane_sums(written * tile, TOKENS, LANES, VECTOR)
            updated = append(updated, sums[target] + added)
        tl.store(grad_out + single, total.to(grad_out.dtype.element_ty), mask=mask)
        for source in tl.static_range(STREAMS):
            tile = tl.load(x + offset + source * WIDTH, mask=mask, other=0.0).to(tl.float32)
            total = tl.zeros([TOKENS, SPAN], tl.float32)
            for target in tl.static_range(STREAMS):
                total += weights[STREAMS + source * STREAMS + target][:, None] * grads[target]
                added = _lane_sums(tile * grads[target], TOKENS, LANES, VECTOR)
                updated = append(updated, sums[STREAMS + source * STREAMS + target] + added)
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
        divisors = append(append(divisors, rows), columns)
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
            lanes = append(lanes, tl.zeros([TOKENS, LANES], tl.float32))
        for start in range(0, WIDTH, SPAN):
            place = start + tl.arange(0, SPAN)
            address = grad + first * WIDTH + (token[:, None] * WIDTH + place[None, :])
            pulled = tl.load(address, mask=mask, other=0.0).to(tl.float32)
            address = x + first * LENGTH + (token[:, None] * LENGTH + place[None, :])
            updated = ()
            for stream in tl.static_range(STREAMS):
                read = tl.load(address + stream * WIDTH, mask=mask, other=0.0).to(tl.float32)
                added = _lane_sums(read * pulled, TOKENS, LANES, VECTOR)
                updated = append(updated, lanes[stream] + added)
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


def new_mix_out_backward(grad: Tensor, streams: Tensor, out: Tensor, post, comb):
    layout = torch.contiguous_format
    return tuple(
        torch.empty_like(tensor, memory_format=layout) for tensor in (streams, out, post, comb)
    )


def launch_mix_out_backward(grad: Tensor, streams: Tensor, out: Tensor, post, comb):
    results = new_mix_out_backward(grad, streams, out, post, comb)
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


def new_mix_in_backward(grad, grad_post, grad_comb, streams, fn, base, scale, *kept):
    layout = torch.contiguous_format
    return tuple(
        torch.empty_like(tensor, memory_format=layout) for tensor in (streams, fn, base, scale)
    )


def launch_mix_in_backward(
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
    results = new_mix_in_backward(grad, grad_post, grad_comb, streams, *parameters)
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
