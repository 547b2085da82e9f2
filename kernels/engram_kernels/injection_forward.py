"""Forward pass of `injection`: the numbers of each token and stream and the output.

With a convolution and enough tokens one kernel walks over them (`_walk_forward`); otherwise the
numbers are one launch, the output another.

The four numbers of a token and stream are its score, 1/rms of hidden, 1/rms of key, and the scale
of the convolution's input. Tiles are the best of those tried on an H200.
"""

# mypy: disable-error-code="assignment,misc,var-annotated"

import torch
import triton
import triton.language as tl
from torch import Tensor

from engram_kernels.backend import power_of_two
from engram_kernels.gating import SCORE_FLOOR
from engram_kernels.jit import COMPILED

FLOOR = tl.constexpr(SCORE_FLOOR)
CONV_ROWS, CONV_CHANNELS = 32, 64  # tile of `_conv_forward`
# Of `_walk_forward`: how many programs at most, how many steps each at least, from how many tokens
# times streams on, channels times taps a warp has registers for, and at most so many warps, tiles.
WALK_PROGRAMS, WALK_STEPS, WALK_FROM = 1056, 16, 8192
WALK_WEIGHTS, WALK_WARPS, WALK_TILES = 2560, 8, 8


@triton.jit
def sigmoid(x):
    """In 5 instructions instead of the 12 of `tl.sigmoid`, which cares for denormal numbers and
    divides exactly; the convolution kernels are bound by arithmetic."""
    if COMPILED:
        return tl.inline_asm_elementwise(
            """{
            .reg .f32 t;
            mul.f32 t, $1, 0fBFB8AA3B;
            ex2.approx.ftz.f32 t, t;
            add.f32 t, t, 0f3F800000;
            rcp.approx.ftz.f32 $0, t;
            }""",
            "=f,f",
            [x],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    return tl.sigmoid(x)


@triton.jit
def sigmoid_of_root(score, LINEAR: tl.constexpr, COPYSIGN: tl.constexpr):
    """The gate, and the derivative of the root by the score."""
    if LINEAR:
        root = score
        slope = score * 0 + 1.0
    else:
        size = tl.sqrt(tl.maximum(tl.abs(score), FLOOR))
        if COPYSIGN:
            negative = score.to(tl.uint32, bitcast=True) >> 31 != 0
            root = tl.where(negative, -size, size)
        else:
            root = tl.where(score > 0, size, tl.where(score < 0, -size, 0.0))
        slope = tl.where(tl.abs(score) > FLOOR, 0.5 / size, 0.0)
    return tl.sigmoid(root), slope


@triton.jit
def _prepare(
    q_weight,
    k_weight,
    conv_weight,
    norm_weight,
    prepared,
    SIZE: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Products of weights as the later kernels read them, float32 [1 + TAPS, M*d]: of the two
    norms, then of the convolution's norm and each tap, newest token first. Each program does a
    part."""
    for start in range(tl.program_id(0) * BLOCK, SIZE, tl.num_programs(0) * BLOCK):
        index = start + tl.arange(0, BLOCK)
        real = index < SIZE
        wq = tl.load(q_weight + index, mask=real, other=0.0).to(tl.float32)
        wk = tl.load(k_weight + index, mask=real, other=0.0).to(tl.float32)
        tl.store(prepared + index, wq * wk, mask=real)
        if TAPS > 0:
            norm = tl.load(norm_weight + index, mask=real, other=0.0).to(tl.float32)
            for back in tl.static_range(TAPS):
                w = tl.load(conv_weight + index * TAPS + (TAPS - 1 - back), mask=real, other=0.0)
                tl.store(prepared + (1 + back) * SIZE + index, w.to(tl.float32) * norm, mask=real)


@triton.jit
def _store_numbers(
    hh, kk, hk, vv, text, where, mask, gates, numbers, eps, conv_eps, D, CONV: tl.constexpr,
    LINEAR: tl.constexpr, COPYSIGN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The gate and the convolution's scale, of sums of squares and products over the channels."""
    rstd_hidden = tl.rsqrt(hh / D + eps)
    rstd_key = tl.rsqrt(kk / D + eps)
    score = hk * rstd_hidden * rstd_key / tl.sqrt(D * 1.0)
    gate_, _ = sigmoid_of_root(score, LINEAR, COPYSIGN)
    if MASKED:
        gate_ = tl.where(text, gate_, 0.0)
    scale = gate_
    tl.store(gates + where, gate_, mask=mask)
    tl.store(numbers + where * 4, score, mask=mask)
    tl.store(numbers + where * 4 + 1, rstd_hidden, mask=mask)
    tl.store(numbers + where * 4 + 2, rstd_key, mask=mask)
    if CONV:
        scale = gate_ * tl.rsqrt(gate_ * gate_ * vv / D + conv_eps)
        tl.store(numbers + where * 4 + 3, scale, mask=mask)
    return gate_, scale


@triton.jit
def _gate_forward(
    hidden,
    keys_value,
    q_weight,
    k_weight,
    conv_weight,
    norm_weight,
    prepared,
    ids,
    out,
    gates,
    numbers,
    tokens,
    eps,
    conv_eps,
    M: tl.constexpr,
    D: tl.constexpr,
    TAPS: tl.constexpr,
    LINEAR: tl.constexpr,
    COPYSIGN: tl.constexpr,
    MASKED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """The numbers of a few tokens of one stream; for a memory without convolution, its output too.
    `hidden` then stays in registers, or is read again from the nearest cache."""
    _prepare(q_weight, k_weight, conv_weight, norm_weight, prepared, M * D, TAPS, 128)
    stream = tl.program_id(0) % M
    token = (tl.program_id(0) // M).to(tl.int64) * BT + tl.arange(0, BT)
    inside = token < tokens
    hidden_row = (token * M + stream)[:, None] * D
    key_row = (token * (M + 1) + stream)[:, None] * D
    value_row = (token * (M + 1) + M)[:, None] * D
    hh = tl.zeros([BT, BD], tl.float32)
    kk = tl.zeros([BT, BD], tl.float32)
    hk = tl.zeros([BT, BD], tl.float32)
    vv = tl.zeros([BT, BD], tl.float32)
    kept = tl.zeros([BT, BD], hidden.dtype.element_ty)
    for start in range(0, D, BD):
        channel = start + tl.arange(0, BD)
        real = channel < D
        mask = inside[:, None] & real[None, :]
        kept = tl.load(hidden + hidden_row + channel[None, :], mask=mask, other=0.0)
        k = tl.load(keys_value + key_row + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        wq = tl.load(q_weight + stream * D + channel, mask=real, other=0.0).to(tl.float32)
        wk = tl.load(k_weight + stream * D + channel, mask=real, other=0.0).to(tl.float32)
        h = kept.to(tl.float32)
        hh += h * h
        kk += k * k
        hk += h * k * (wq * wk)[None, :]
        if TAPS > 0:
            v = tl.load(keys_value + value_row + channel[None, :], mask=mask, other=0.0)
            v = v.to(tl.float32)
            vv += v * v
    text = inside
    if MASKED:
        text = tl.load(ids + token, mask=inside, other=-1) >= 0
    gate_, _ = _store_numbers(
        tl.sum(hh, 1), tl.sum(kk, 1), tl.sum(hk, 1), tl.sum(vv, 1), text, token * M + stream,
        inside, gates, numbers, eps, conv_eps, D, TAPS > 0, LINEAR, COPYSIGN, MASKED,
    )  # fmt: skip
    if TAPS == 0:
        for start in range(0, D, BD):
            channel = start + tl.arange(0, BD)
            mask = inside[:, None] & (channel < D)[None, :]
            v = tl.load(keys_value + value_row + channel[None, :], mask=mask, other=0.0)
            result = gate_[:, None] * v.to(tl.float32)
            if RESIDUAL:
                if BD < D:
                    kept = tl.load(hidden + hidden_row + channel[None, :], mask=mask, other=0.0)
                result += kept.to(tl.float32)
            tl.store(
                out + hidden_row + channel[None, :], result.to(out.dtype.element_ty), mask=mask
            )


@triton.jit
def _add_each(a0, a1, a2, a3, b0, b1, b2, b3):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3


@triton.jit
def _rows(hidden, keys_value, token, stream, there, M, D: tl.constexpr, BD: tl.constexpr):
    """Tiles of hidden, key and value of a token and stream, in turn."""
    channel = tl.arange(0, BD)
    mask = channel < tl.where(there, BD, 0)
    hidden_row = hidden + (token * M + stream) * D
    key_row = keys_value + (token * (M + 1) + stream) * D
    value_row = keys_value + (token * (M + 1) + M) * D
    rows = ()
    for start in tl.static_range(0, D, BD):
        rows = rows + (
            tl.load(hidden_row + start + channel, mask=mask, other=0.0),
            tl.load(key_row + start + channel, mask=mask, other=0.0),
            tl.load(value_row + start + channel, mask=mask, other=0.0),
        )
    return rows


@triton.jit
def _walk_forward(
    hidden,
    keys_value,
    q_weight,
    k_weight,
    conv_weight,
    norm_weight,
    prepared,
    ids,
    out,
    gates,
    numbers,
    positions,
    chunks,
    length,
    eps,
    conv_eps,
    M: tl.constexpr,
    D: tl.constexpr,
    TAPS: tl.constexpr,
    DILATION: tl.constexpr,
    LINEAR: tl.constexpr,
    COPYSIGN: tl.constexpr,
    MASKED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BD: tl.constexpr,
):
    """Numbers and output of one stream for every `DILATION`th token of a stretch, all channels:
    hidden is read once, and the weights stay in registers.

    So does what earlier tokens add to the convolution's coming outputs (`pending`): each step adds
    its normed input to all of them, and the first is then complete. A walk begins the convolution's
    reach before its stretch to make up for what the walk before it knows. `BD` divides `D`.
    """
    _prepare(q_weight, k_weight, conv_weight, norm_weight, prepared, M * D, TAPS, 128)
    stream = tl.program_id(0) % M
    walk = tl.program_id(0) // M
    first_place = walk % DILATION
    chunk = walk // DILATION % chunks
    row = (walk // (DILATION * chunks)).to(tl.int64)
    first = chunk * length
    begin = tl.maximum(first - (TAPS - 1), 0)
    end = tl.minimum(first + length, (positions - first_place + DILATION - 1) // DILATION)
    channel = tl.arange(0, BD)
    nothing = tl.zeros([BD], tl.float32)
    gate_weights = ()
    weights = ()  # index tile * TAPS + tokens back
    pending = ()  # index tile * (TAPS-1) + tokens ahead - 1
    for start in tl.static_range(0, D, BD):
        index = stream * D + start + channel
        wq = tl.load(q_weight + index).to(tl.float32)
        wk = tl.load(k_weight + index).to(tl.float32)
        gate_weights = gate_weights + (wq * wk,)
        norm = tl.load(norm_weight + index).to(tl.float32)
        for back in tl.static_range(TAPS):
            w = tl.load(conv_weight + index * TAPS + (TAPS - 1 - back)).to(tl.float32)
            weights = weights + (w * norm,)
            if back > 0:
                pending = pending + (nothing,)

    token = row * positions + first_place + begin * DILATION
    coming = _rows(hidden, keys_value, token, stream, begin < end, M, D, BD)
    for step in range(begin, end):
        token = row * positions + first_place + step * DILATION
        mine = step >= first
        rows = coming
        coming = _rows(  # read while this step is computed
            hidden, keys_value, token + DILATION, stream, step + 1 < end, M, D, BD
        )
        hh = nothing
        kk = nothing
        hk = nothing
        vv = nothing
        for tile in tl.static_range(D // BD):
            h = rows[3 * tile].to(tl.float32)
            k = rows[3 * tile + 1].to(tl.float32)
            v = rows[3 * tile + 2].to(tl.float32)
            hh += h * h
            kk += k * k
            hk += h * k * gate_weights[tile]
            vv += v * v
        hh, kk, hk, vv = tl.reduce((hh, kk, hk, vv), 0, _add_each)
        text = True
        if MASKED:
            text = tl.load(ids + token) >= 0
        gate_, scale = _store_numbers(
            hh, kk, hk, vv, text, token * M + stream, mine, gates, numbers, eps, conv_eps, D, True,
            LINEAR, COPYSIGN, MASKED,
        )  # fmt: skip
        next_pending = ()
        for tile in tl.static_range(D // BD):
            v = rows[3 * tile + 2].to(tl.float32)
            normed = scale * v
            conv = weights[tile * TAPS] * normed
            if TAPS > 1:
                conv += pending[tile * (TAPS - 1)]
            for ahead in tl.static_range(1, TAPS):
                part = weights[tile * TAPS + ahead] * normed
                if ahead < TAPS - 1:
                    part += pending[tile * (TAPS - 1) + ahead]
                next_pending = next_pending + (part,)
            silu = conv * sigmoid(conv)
            if MASKED:
                silu = tl.where(text, silu, 0.0)
            result = gate_ * v
            if RESIDUAL:
                result += rows[3 * tile].to(tl.float32)
            at = out + (token * M + stream) * D + tile * BD + channel
            mask = channel < tl.where(mine, BD, 0)
            tl.store(at, (result + silu).to(out.dtype.element_ty), mask=mask)
        pending = next_pending


@triton.jit
def _conv_forward(
    hidden,
    value,
    scale,
    gates,
    ids,
    prepared,
    out,
    tokens,
    positions,
    window,
    value_token,
    value_row,
    scale_token,
    scale_row,
    SCALE_STEP: tl.constexpr,
    M: tl.constexpr,
    D: tl.constexpr,
    TAPS: tl.constexpr,
    DILATION: tl.constexpr,
    MASKED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Output of a tile of tokens by channels, all streams: each value is read once for them all.

    Everything is read before anything is written: a compiler that cannot know that the tensors do
    not overlap would keep reads behind writes, and the memory would idle.
    """
    slices: tl.constexpr = (D + BD - 1) // BD
    token = (tl.program_id(0) // slices).to(tl.int64) * BT + tl.arange(0, BT)
    channel = tl.program_id(0) % slices * BD + tl.arange(0, BD)
    inside = token < tokens
    real = channel < D
    mask = inside[:, None] & real[None, :]
    row = token // positions
    place = token - row * positions + window
    values = ()
    streams = ()
    for back in tl.static_range(TAPS):
        there = inside & (place >= back * DILATION)
        at = (row * value_row + (place - back * DILATION) * value_token)[:, None] + channel[None, :]
        values = values + (tl.load(value + at, mask=there[:, None] & real[None, :], other=0.0),)
    if RESIDUAL:
        for stream in tl.static_range(M):
            at = (token * M + stream)[:, None] * D + channel[None, :]
            streams = streams + (tl.load(hidden + at, mask=mask, other=0.0),)
    if MASKED:
        text = tl.load(ids + token, mask=inside, other=-1) >= 0
    results = ()
    for stream in tl.static_range(M):
        conv = tl.zeros([BT, BD], tl.float32)
        for back in tl.static_range(TAPS):
            there = inside & (place >= back * DILATION)
            at = row * scale_row + (place - back * DILATION) * scale_token + stream * SCALE_STEP
            s = tl.load(scale + at, mask=there, other=0.0)
            w = tl.load(prepared + ((1 + back) * M + stream) * D + channel, mask=real, other=0.0)
            conv += (s[:, None] * values[back].to(tl.float32)) * w[None, :]
        silu = conv * sigmoid(conv)
        if MASKED:
            silu = tl.where(text[:, None], silu, 0.0)
        g = tl.load(gates + token * M + stream, mask=inside, other=0.0)
        result = g[:, None] * values[0].to(tl.float32) + silu
        if RESIDUAL:
            result += streams[stream].to(tl.float32)
        results = results + (result.to(out.dtype.element_ty),)
    for stream in tl.static_range(M):
        at = (token * M + stream)[:, None] * D + channel[None, :]
        tl.store(out + at, results[stream], mask=mask)


def tile_width(width: int, most: int) -> int:
    """Channels at a time: the power of two up to `most` that leaves the fewest lanes idle."""
    sizes = [size for size in (1024, 512, 256, 128, 64, 32, 16) if size <= most]
    return min(sizes, key=lambda size: (-(-width // size) * size, -size))


def contiguous(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor if tensor is None else tensor.contiguous() for tensor in tensors]


def forward(
    hidden: Tensor,
    keys_value: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    conv_weight: Tensor | None,
    norm_weight: Tensor | None,
    ids: Tensor | None,
    dilation: int,
    eps: float,
    conv_eps: float,
    linear: bool,
    copysign: bool,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden, keys_value, ids = contiguous(hidden, keys_value, ids)
    batch, positions, streams, width = hidden.shape
    tokens = batch * positions
    out, gates, numbers, prepared = empty_forward(
        hidden, keys_value, q_weight, k_weight, conv_weight
    )
    if not tokens:
        return out, gates, numbers, prepared.zero_()
    weights = (q_weight, k_weight, conv_weight, norm_weight)
    if conv_weight is not None and tokens * streams >= WALK_FROM:
        shape = _walk_shape(width, conv_weight.shape[-1])
        if shape is not None:
            _launch_walk(
                hidden, keys_value, weights, prepared, ids, out, gates, numbers, dilation, eps,
                conv_eps, linear, copysign, residual, *shape,
            )  # fmt: skip
            return out, gates, numbers, prepared
    _launch_gate(
        hidden, keys_value, weights, prepared, ids, out, gates, numbers, eps, conv_eps, linear,
        copysign, residual,
    )  # fmt: skip
    if conv_weight is not None:
        step = (streams + 1) * width
        value, scale = keys_value[..., -1, :], numbers[..., 3]
        _launch_conv(
            hidden, value, (step, positions * step), scale,
            (4, 4 * streams, positions * 4 * streams), gates, ids, prepared, out, 0, dilation,
            residual,
        )  # fmt: skip
    return out, gates, numbers, prepared


def _walk_shape(width: int, taps: int) -> tuple[int, int] | None:
    """Channels of a walk's tile and its warps; None if its weights would not fit in registers."""
    warps = max(2, power_of_two(triton.cdiv(width * taps, WALK_WEIGHTS)))
    channels = tile_width(width, max(512, 128 * warps))
    fits = warps <= WALK_WARPS and width % channels == 0 and width // channels <= WALK_TILES
    return (channels, warps) if fits else None


def _launch_walk(
    hidden, keys_value, weights, prepared, ids, out, gates, numbers, dilation, eps, conv_eps,
    linear, copysign, residual, channels, warps,
) -> None:  # fmt: skip
    batch, positions, streams, width = hidden.shape
    steps, walks = triton.cdiv(positions, dilation), batch * dilation * streams
    chunks = max(1, min(WALK_PROGRAMS // walks, steps // WALK_STEPS))
    _walk_forward[(walks * chunks,)](
        hidden, keys_value, *contiguous(*weights), prepared, gates if ids is None else ids, out,
        gates, numbers, positions, chunks, triton.cdiv(steps, chunks), eps, conv_eps, M=streams,
        D=width, TAPS=prepared.shape[0] - 1, DILATION=dilation, LINEAR=linear, COPYSIGN=copysign,
        MASKED=ids is not None, RESIDUAL=residual, BD=channels, num_warps=warps,
    )  # fmt: skip


def _launch_gate(
    hidden, keys_value, weights, prepared, ids, out, gates, numbers, eps, conv_eps, linear,
    copysign, residual,
) -> None:  # fmt: skip
    *_, streams, width = hidden.shape
    weights = [(weights[0] if weight is None else weight).contiguous() for weight in weights]
    tokens = numbers[..., 0, 0].numel()
    taps = prepared.shape[0] - 1
    channels, warps = _gate_shape(width, taps > 0)
    rows = 2 if taps and width <= 512 else 1
    _gate_forward[(triton.cdiv(tokens, rows) * streams,)](
        hidden, keys_value, *weights, prepared, gates if ids is None else ids, out, gates, numbers,
        tokens, eps, conv_eps, M=streams, D=width, TAPS=taps, LINEAR=linear,
        COPYSIGN=copysign, MASKED=ids is not None, RESIDUAL=residual, BT=rows, BD=channels,
        num_warps=warps,
    )  # fmt: skip


def _launch_conv(
    hidden, value, value_steps, scale, scale_steps, gates, ids, prepared, out, window, dilation,
    residual,
) -> None:  # fmt: skip
    batch, positions, streams, width = hidden.shape
    tokens, rows, channels = batch * positions, CONV_ROWS, tile_width(width, CONV_CHANNELS)
    _conv_forward[(triton.cdiv(tokens, rows) * triton.cdiv(width, channels),)](
        hidden, value, scale, gates, gates if ids is None else ids, prepared, out, tokens,
        positions, window, *value_steps, *scale_steps[1:], SCALE_STEP=scale_steps[0], M=streams,
        D=width, TAPS=prepared.shape[0] - 1, DILATION=dilation, MASKED=ids is not None,
        RESIDUAL=residual, BT=rows, BD=channels, num_warps=4,
    )  # fmt: skip


def empty_forward(hidden, keys_value, q_weight, k_weight, conv_weight, *rest):
    float32 = dict(dtype=torch.float32, device=hidden.device)
    gates = torch.empty(hidden.shape[:-1], **float32)
    numbers = torch.empty((*hidden.shape[:-1], 4), **float32)
    taps = 0 if conv_weight is None else conv_weight.shape[-1]
    prepared = torch.empty((1 + taps, *q_weight.shape), **float32)
    return torch.empty_like(hidden), gates, numbers, prepared


def _gate_shape(width: int, conv: bool) -> tuple[int, int]:
    """Channels of a gate program's tile and its warps, the best of those tried on an H200.

    Without a convolution the whole row, so that hidden stays in registers.
    """
    if conv or width <= 512:
        return tile_width(width, 512), 1
    return power_of_two(width), 4


def numbers_only(
    hidden, keys_value, q_weight, k_weight, conv_weight, norm_weight, ids, eps, conv_eps, linear,
    copysign,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    hidden, keys_value, ids = contiguous(hidden, keys_value, ids)
    weights = (q_weight, k_weight, conv_weight, norm_weight)
    gates, numbers, prepared = empty_numbers(hidden, keys_value, *weights)
    if gates.numel():
        _launch_gate(
            hidden, keys_value, weights, prepared, ids, hidden, gates, numbers, eps, conv_eps,
            linear, copysign, False,
        )  # fmt: skip
    return gates, numbers, prepared


def empty_numbers(hidden, keys_value, q_weight, k_weight, conv_weight, *rest):
    return empty_forward(hidden, keys_value, q_weight, k_weight, conv_weight)[1:]


def convolve_window(hidden, window, gates, ids, prepared, dilation, residual) -> Tensor:
    hidden, window, ids = contiguous(hidden, window, ids)
    positions, width = hidden.shape[1], hidden.shape[-1]
    out = torch.empty_like(hidden)
    if not hidden.numel():
        return out
    step, row = window.stride(1), window.stride(0)
    _launch_conv(
        hidden, window, (step, row), window[..., width:], (1, step, row), gates, ids, prepared, out,
        window.shape[1] - positions, dilation, residual,
    )  # fmt: skip
    return out
