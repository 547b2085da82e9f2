"""Backward pass of `injection`: convolution and value, then hidden and key, then the weights.

Tiles and stretches are the best of those tried on an H200.
"""

# mypy: disable-error-code="assignment,attr-defined,misc,var-annotated"

import torch
import triton
import triton.language as tl
from torch import Tensor

from engram_kernels.backend import power_of_two
from engram_kernels.injection_forward import contiguous, sigmoid, sigmoid_of_root, tile_width

WALK_CHANNELS, WALK_STREAMS, WALK_STEPS = 128, 2, 64  # what one walk of `_conv_backward` covers
WALK_PROGRAMS = 2048  # walks are shortened until there are so many
WALK_AHEAD = 4  # steps that are read before they are computed
GATE_ROWS, GATE_CHANNELS, GATE_TILES, GATE_WARPS = 2, 512, 8, 2  # of `_gate_backward`


@triton.jit
def _through_silu(grad, conv):
    share = sigmoid(conv)
    return grad * (share + share * (conv - conv * share))


@triton.jit
def _convolve(weights, normed, of_weights, of_normed, TAPS: tl.constexpr):
    """Sum over the taps, from places `of_weights` and `of_normed` of the two tuples on."""
    conv = weights[of_weights] * normed[of_normed]
    for back in tl.static_range(1, TAPS):
        conv += weights[of_weights + back] * normed[of_normed + back]
    return conv


@triton.jit
def _step_inputs(
    grad, keys_value, numbers, ids, token, place, first, channel, M, D, BACK,
    MASKED: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """What one step of `_conv_backward` reads: the value `BACK` positions before; for each stream
    the scale there and the gradient; last the id. Before the row: zero, and of the others anything.
    """
    inside = place >= 0
    reached = place >= BACK
    before = (token - BACK) * (M + 1) + M
    mask = channel < tl.where(reached, D, 0)
    inputs = (tl.load(keys_value + before * D + channel, mask=mask, other=0.0),)
    for index in tl.static_range(GROUP):
        stream = token * M + first + index
        inputs = inputs + (
            tl.load(numbers + (stream - BACK * M) * 4 + 3, mask=reached, other=0.0),
            tl.load(grad + stream * D + channel, mask=channel < tl.where(inside, D, 0)),
        )
    if MASKED:
        inputs = inputs + (tl.load(ids + token, mask=inside),)
    return inputs


@triton.jit
def _moved_on(window, newest, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """A window of `COUNT`, from `FIRST` on in a tuple of several, without its first element."""
    moved = ()
    for index in tl.static_range(1, COUNT):
        moved = moved + (window[FIRST + index],)
    return moved + (newest,)


@triton.jit
def _step(
    state, weights, grad, keys_value, numbers, ids, grad_value, sums, token, place, first, channel,
    M, D, TAPS: tl.constexpr, DILATION, MASKED: tl.constexpr, GROUP: tl.constexpr,
    SLICES: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """One token of `_conv_backward`: reads for a later step, writes its own sums and value's
    gradient, moves the windows on. To rename their elements is free where steps are unrolled."""
    coming, values, scales, normed, later, weight_grads = state
    inputs = coming[0]
    coming = _moved_on(
        coming,
        _step_inputs(
            grad, keys_value, numbers, ids, token - AHEAD * DILATION, place - AHEAD * DILATION,
            first, channel, M, D, TAPS * DILATION, MASKED, GROUP,
        ),
        0, AHEAD,
    )  # fmt: skip
    value = values[0].to(tl.float32)
    values = _moved_on(values, inputs[0], 0, TAPS)
    of_value = ()
    next_scales = ()
    next_normed = ()
    next_later = ()
    next_grads = ()
    for index in tl.static_range(GROUP):
        oldest_scale = inputs[1 + 2 * index]
        go = inputs[2 + 2 * index].to(tl.float32)
        now = _through_silu(go, _convolve(weights, normed, index * TAPS, index * TAPS, TAPS))
        if MASKED:
            now = tl.where(inputs[1 + 2 * GROUP] >= 0, now, 0.0)
        of_normed = weights[index * TAPS] * now
        for back in tl.static_range(TAPS):
            ahead = now
            if back > 0:
                ahead = later[index * (TAPS - 1) + back - 1]
                of_normed += weights[index * TAPS + back] * ahead
            if back < TAPS - 1:
                next_later = next_later + (ahead,)
            total = weight_grads[index * TAPS + back] + ahead * normed[index * TAPS]
            next_grads = next_grads + (total,)
        if index == 0:
            of_value = scales[0] * of_normed
        else:
            of_value += scales[index * TAPS] * of_normed
        at_sums = sums + (token * M + first + index) * (SLICES * 2)
        tl.store(at_sums, tl.sum(go * value, 0))
        tl.store(at_sums + 1, tl.sum(of_normed * value, 0))
        oldest = inputs[0].to(tl.float32) * oldest_scale
        next_normed = next_normed + _moved_on(normed, oldest, index * TAPS, TAPS)
        next_scales = next_scales + _moved_on(scales, oldest_scale, index * TAPS, TAPS)
    tl.store(grad_value + token * D + channel, of_value.to(grad_value.dtype.element_ty))
    return coming, values, next_scales, next_normed, next_later, next_grads


@triton.jit
def _conv_backward(
    grad,
    keys_value,
    numbers,
    ids,
    prepared,
    grad_value,
    sums,
    partial,
    tokens,
    positions,
    chunks,
    length,
    M: tl.constexpr,
    D: tl.constexpr,
    TAPS: tl.constexpr,
    DILATION: tl.constexpr,
    MASKED: tl.constexpr,
    GROUP: tl.constexpr,
    BD: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Walk back over every `DILATION`th token of a stretch: among these the convolution has no
    holes, so that what later tokens need of earlier ones, and the reverse, stays in registers.

    Of a group of streams and a slice of channels, writes: the value's gradient through the normed
    input, its mean square held fixed; for each token and stream the sums of grad * value
    and of the normed input's gradient * value; the share of the weights' gradients.
    """
    slices: tl.constexpr = D // BD
    groups: tl.constexpr = M // GROUP
    slice_ = tl.program_id(0) % slices
    group = tl.program_id(0) // slices % groups
    walk = tl.program_id(0) // (slices * groups)
    chunk = walk % chunks
    row = (walk // (chunks * DILATION)).to(tl.int64)
    first = group * GROUP
    channel = slice_ * BD + tl.arange(0, BD)
    begin = (walk // chunks) % DILATION + chunk * length * DILATION
    steps = tl.minimum(length, tl.cdiv(positions - begin, DILATION))
    place = begin + (steps - 1) * DILATION

    values = ()  # index tokens back
    weights = ()  # index stream * TAPS + tokens back, as in the next three
    weight_grads = ()
    scales = ()
    normed = ()  # scale * value
    later = ()  # gradient of the convolution's output; stream * (TAPS-1) + tokens ahead - 1
    for index in tl.static_range(GROUP):
        stream = first + index
        window = ()
        for back in tl.static_range(TAPS):
            weight_at = prepared + ((1 + back) * M + stream) * D + channel
            weights = weights + (tl.load(weight_at),)
            weight_grads = weight_grads + (tl.zeros([BD], tl.float32),)
        for back in tl.static_range(2 * TAPS - 1):  # from the last token that reaches back here
            at = place + (TAPS - 1 - back) * DILATION
            token = row * positions + at
            here = (at >= 0) & (at < positions)
            value_at = keys_value + (token * (M + 1) + M) * D + channel
            value = tl.load(value_at, mask=channel < tl.where(here, D, 0), other=0.0)
            scale = tl.load(numbers + (token * M + stream) * 4 + 3, mask=here, other=0.0)
            window = window + (value.to(tl.float32) * scale,)
            if back >= TAPS - 1:
                normed = normed + (window[back],)
                scales = scales + (scale,)
                if index == 0:
                    values = values + (value,)
        ahead = ()
        for back in tl.static_range(TAPS - 1):
            at = place + (TAPS - 1 - back) * DILATION
            token = row * positions + at
            here = at < positions
            if MASKED:
                here = tl.load(ids + token, mask=here, other=-1) >= 0
            grad_at = grad + (token * M + stream) * D + channel
            go = tl.load(grad_at, mask=channel < tl.where(here, D, 0), other=0.0).to(tl.float32)
            now = _through_silu(go, _convolve(weights, window, index * TAPS, back, TAPS))
            ahead = (now,) + ahead
        later = later + ahead

    token = row * positions + place
    coming = ()
    for step in tl.static_range(AHEAD):
        coming = coming + (
            _step_inputs(
                grad, keys_value, numbers, ids, token - step * DILATION, place - step * DILATION,
                first, channel, M, D, TAPS * DILATION, MASKED, GROUP,
            ),
        )  # fmt: skip
    grad_value += group.to(tl.int64) * tokens * D
    sums += slice_ * 2
    state = (coming, values, scales, normed, later, weight_grads)
    for _ in range(steps // TAPS):
        for _unrolled in tl.static_range(TAPS):
            state = _step(
                state, weights, grad, keys_value, numbers, ids, grad_value, sums, token, place,
                first, channel, M, D, TAPS, DILATION, MASKED, GROUP, slices, AHEAD,
            )  # fmt: skip
            token -= DILATION
            place -= DILATION
    for _ in range(steps % TAPS):
        state = _step(
            state, weights, grad, keys_value, numbers, ids, grad_value, sums, token, place, first,
            channel, M, D, TAPS, DILATION, MASKED, GROUP, slices, AHEAD,
        )  # fmt: skip
        token -= DILATION
        place -= DILATION

    for index in tl.static_range(GROUP):
        for back in tl.static_range(TAPS):
            where = ((walk.to(tl.int64) * TAPS + back) * M + first + index) * D + channel
            tl.store(partial + where, state[5][index * TAPS + back])


@triton.jit
def _store_coefficients(
    coefficients,
    numbers,
    ids,
    grad_gate,
    grad_scale,
    token,
    stream,
    mask,
    conv_eps,
    M,
    D,
    LINEAR: tl.constexpr,
    COPYSIGN: tl.constexpr,
    MASKED: tl.constexpr,
    CONV: tl.constexpr,
):
    """Of a token and stream, [5]: gate, what multiplies weight * key in the gradient of hidden (and
    weight * hidden in the key's), what multiplies hidden and key in their own gradients, and the
    stream's part in the gradient through the mean square of the value."""
    where = token * M + stream
    score = tl.load(numbers + where * 4, mask=mask, other=0.0)
    rstd_hidden = tl.load(numbers + where * 4 + 1, mask=mask, other=0.0)
    rstd_key = tl.load(numbers + where * 4 + 2, mask=mask, other=0.0)
    g, slope = sigmoid_of_root(score, LINEAR, COPYSIGN)
    if MASKED:
        g = tl.where(tl.load(ids + token, mask=mask, other=-1) >= 0, g, 0.0)
    of_mean = grad_gate * 0.0
    if CONV:
        scale = tl.load(numbers + where * 4 + 3, mask=mask, other=0.0)
        inverse = tl.where(g > 0, scale / tl.where(g > 0, g, 1.0), 0.0)
        grad_gate += grad_scale * conv_eps * inverse * inverse * inverse
        of_mean = grad_scale * scale * scale * scale / D
    grad_score = grad_gate * g * (1.0 - g) * slope
    at = coefficients + where * 5
    tl.store(at, g, mask=mask)
    tl.store(at + 1, grad_score * rstd_hidden * rstd_key / tl.sqrt(D * 1.0), mask=mask)
    tl.store(at + 2, grad_score * score * rstd_hidden * rstd_hidden / D, mask=mask)
    tl.store(at + 3, grad_score * score * rstd_key * rstd_key / D, mask=mask)
    tl.store(at + 4, of_mean, mask=mask)


@triton.jit
def _coefficients_of_sums(
    sums,
    numbers,
    ids,
    coefficients,
    count,
    conv_eps,
    M: tl.constexpr,
    D: tl.constexpr,
    SLICES: tl.constexpr,
    SLICES_P: tl.constexpr,
    LINEAR: tl.constexpr,
    COPYSIGN: tl.constexpr,
    MASKED: tl.constexpr,
    BT: tl.constexpr,
):
    """With a convolution: from what `_conv_backward` summed over each slice of channels."""
    where = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    part = tl.arange(0, SLICES_P * 2)
    mask = where < count
    at = where[:, None] * (SLICES * 2) + part[None, :]
    found = tl.load(sums + at, mask=mask[:, None] & (part < SLICES * 2)[None, :], other=0.0)
    grad_gate = tl.sum(tl.where(part % 2 == 0, found, 0.0), 1)
    grad_scale = tl.sum(tl.where(part % 2 == 1, found, 0.0), 1)
    _store_coefficients(
        coefficients, numbers, ids, grad_gate, grad_scale, where // M, where % M, mask, conv_eps, M,
        D, LINEAR, COPYSIGN, MASKED, True,
    )  # fmt: skip


@triton.jit
def _coefficients_of_rows(
    grad,
    keys_value,
    numbers,
    ids,
    coefficients,
    tokens,
    M: tl.constexpr,
    D: tl.constexpr,
    LINEAR: tl.constexpr,
    COPYSIGN: tl.constexpr,
    MASKED: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Without a convolution: the gate's gradient is the sum of grad * value over the channels."""
    stream = tl.program_id(0) % M
    token = (tl.program_id(0) // M).to(tl.int64) * BT + tl.arange(0, BT)
    inside = token < tokens
    total = tl.zeros([BT, BD], tl.float32)
    for start in tl.static_range(0, D, BD):
        channel = start + tl.arange(0, BD)
        mask = inside[:, None] & (channel < D)[None, :]
        grad_at = (token * M + stream)[:, None] * D + channel[None, :]
        value_at = (token * (M + 1) + M)[:, None] * D + channel[None, :]
        go = tl.load(grad + grad_at, mask=mask, other=0.0).to(tl.float32)
        total += go * tl.load(keys_value + value_at, mask=mask, other=0.0).to(tl.float32)
    grad_gate = tl.sum(total, 1)
    _store_coefficients(
        coefficients, numbers, ids, grad_gate, grad_gate, token, stream, inside, 0.0, M, D, LINEAR,
        COPYSIGN, MASKED, False,
    )  # fmt: skip


@triton.jit
def _gate_backward(
    grad,
    hidden,
    keys_value,
    prepared,
    coefficients,
    grad_value,
    grad_hidden,
    grad_keys_value,
    partial,
    tokens,
    M: tl.constexpr,
    D: tl.constexpr,
    GROUPS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    TILES: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Gradients of hidden, keys and value of a stretch of tokens in a slice of channels, and its
    share of the norm weights'. GROUPS: parts of the value's gradient that came before."""
    slices: tl.constexpr = (D + BD - 1) // BD
    stretch = tl.program_id(0) // slices
    channel = (tl.program_id(0) % slices) * BD + tl.arange(0, BD)
    real = channel < D
    of_weights = ()
    for _stream in tl.static_range(M):
        of_weights = of_weights + (tl.zeros([BD], tl.float32),)
    for tile in range(TILES):
        token = (stretch.to(tl.int64) * TILES + tile) * BT + tl.arange(0, BT)
        inside = token < tokens
        mask = inside[:, None] & real[None, :]
        of_value = tl.zeros([BT, BD], tl.float32)
        of_mean = tl.zeros([BT], tl.float32)
        next_weights = ()
        for stream in tl.static_range(M):
            at = coefficients + (token * M + stream) * 5
            g = tl.load(at, mask=inside, other=0.0)
            both = tl.load(at + 1, mask=inside, other=0.0)
            own_hidden = tl.load(at + 2, mask=inside, other=0.0)
            own_key = tl.load(at + 3, mask=inside, other=0.0)
            if GROUPS > 0:
                of_mean += tl.load(at + 4, mask=inside, other=0.0)
            hidden_at = (token * M + stream)[:, None] * D + channel[None, :]
            key_at = (token * (M + 1) + stream)[:, None] * D + channel[None, :]
            go = tl.load(grad + hidden_at, mask=mask, other=0.0).to(tl.float32)
            h = tl.load(hidden + hidden_at, mask=mask, other=0.0).to(tl.float32)
            k = tl.load(keys_value + key_at, mask=mask, other=0.0).to(tl.float32)
            w = tl.load(prepared + stream * D + channel, mask=real, other=0.0)
            weighted = both[:, None] * w[None, :]
            of_hidden = weighted * k - own_hidden[:, None] * h
            of_key = weighted * h - own_key[:, None] * k
            if RESIDUAL:
                of_hidden += go
            of_value += g[:, None] * go
            tl.store(grad_hidden + hidden_at, of_hidden.to(grad_hidden.dtype.element_ty), mask=mask)
            tl.store(
                grad_keys_value + key_at, of_key.to(grad_keys_value.dtype.element_ty), mask=mask
            )
            of_weight = tl.sum(both[:, None] * h * k, 0)
            next_weights = next_weights + (of_weights[stream] + of_weight,)
        of_weights = next_weights
        value_at = (token * (M + 1) + M)[:, None] * D + channel[None, :]
        if GROUPS > 0:
            v = tl.load(keys_value + value_at, mask=mask, other=0.0).to(tl.float32)
            of_value -= of_mean[:, None] * v
            for group in tl.static_range(GROUPS):
                at_value = (group * tokens + token)[:, None] * D + channel[None, :]
                part = tl.load(grad_value + at_value, mask=mask, other=0.0)
                of_value += part.to(tl.float32)
        tl.store(
            grad_keys_value + value_at, of_value.to(grad_keys_value.dtype.element_ty), mask=mask
        )
    for stream in tl.static_range(M):
        at_weight = partial + (stretch.to(tl.int64) * M + stream) * D + channel
        tl.store(at_weight, of_weights[stream], mask=real)


@triton.jit
def _add_up(partial, rows, channel, real, step, BR: tl.constexpr, BC: tl.constexpr):
    """Sum of `rows` rows of a column slice, in a fixed order."""
    total = tl.zeros([BR, BC], tl.float32)
    for start in range(0, rows, BR):
        row = start + tl.arange(0, BR)
        at = row.to(tl.int64)[:, None] * step + channel[None, :]
        total += tl.load(partial + at, mask=(row < rows)[:, None] & real[None, :], other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _weight_gradients(
    gate_partial,
    conv_partial,
    q_weight,
    k_weight,
    conv_weight,
    norm_weight,
    grad_q,
    grad_k,
    grad_conv,
    grad_norm,
    gate_rows,
    conv_rows,
    SIZE: tl.constexpr,
    TAPS: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """Add up what the programs of the two backward kernels left of each weight's gradient."""
    channel = tl.program_id(0) * BC + tl.arange(0, BC)
    real = channel < SIZE
    both = _add_up(gate_partial, gate_rows, channel, real, SIZE, BR, BC)
    wq = tl.load(q_weight + channel, mask=real, other=0.0).to(tl.float32)
    wk = tl.load(k_weight + channel, mask=real, other=0.0).to(tl.float32)
    tl.store(grad_q + channel, (both * wk).to(grad_q.dtype.element_ty), mask=real)
    tl.store(grad_k + channel, (both * wq).to(grad_k.dtype.element_ty), mask=real)
    if TAPS > 0:
        norm = tl.load(norm_weight + channel, mask=real, other=0.0).to(tl.float32)
        of_norm = tl.zeros([BC], tl.float32)
        for back in tl.static_range(TAPS):
            at = channel * TAPS + (TAPS - 1 - back)
            source = conv_partial + back * SIZE
            total = _add_up(source, conv_rows, channel, real, TAPS * SIZE, BR, BC)
            of_norm += total * tl.load(conv_weight + at, mask=real, other=0.0).to(tl.float32)
            tl.store(grad_conv + at, (total * norm).to(grad_conv.dtype.element_ty), mask=real)
        tl.store(grad_norm + channel, of_norm.to(grad_norm.dtype.element_ty), mask=real)


def backward(
    grad: Tensor,
    hidden: Tensor,
    keys_value: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    conv_weight: Tensor | None,
    norm_weight: Tensor | None,
    ids: Tensor | None,
    numbers: Tensor,
    prepared: Tensor,
    dilation: int,
    conv_eps: float,
    linear: bool,
    copysign: bool,
    residual: bool,
) -> list[Tensor]:
    grad, hidden, keys_value, ids = contiguous(grad, hidden, keys_value, ids)
    weights = contiguous(q_weight, k_weight, conv_weight, norm_weight)
    q_weight, k_weight, conv_weight, norm_weight = weights
    *_, streams, width = hidden.shape
    tokens = numbers[..., 0, 0].numel()
    conv = conv_weight is not None
    results = empty_backward(grad, hidden, keys_value, q_weight, k_weight, conv_weight, norm_weight)
    if not tokens:
        return [result.zero_() for result in results]
    settings = dict(LINEAR=linear, COPYSIGN=copysign, MASKED=ids is not None)
    given = (numbers, numbers if ids is None else ids)
    coefficients = torch.empty((tokens, streams, 5), dtype=torch.float32, device=grad.device)
    if conv:
        grad_value, sums, conv_partial = _walk_back(grad, keys_value, *given, prepared, dilation)
        slices = sums.shape[-2]
        _coefficients_of_sums[(triton.cdiv(tokens * streams, 32),)](
            sums, *given, coefficients, tokens * streams, conv_eps, M=streams, D=width,
            SLICES=slices, SLICES_P=power_of_two(slices), **settings, BT=32, num_warps=4,
        )  # fmt: skip
    else:
        grad_value = conv_partial = coefficients
        _coefficients_of_rows[(triton.cdiv(tokens, 2) * streams,)](
            grad, keys_value, *given, coefficients, tokens, M=streams, D=width, **settings, BT=2,
            BD=tile_width(width, 512), num_warps=2,
        )  # fmt: skip
    rows, channels = GATE_ROWS, tile_width(width, GATE_CHANNELS)
    tiles = power_of_two(min(GATE_TILES, triton.cdiv(tokens * triton.cdiv(width, channels), 1024)))
    stretches = triton.cdiv(tokens, rows * tiles)
    gate_partial = torch.empty(stretches, streams * width, dtype=torch.float32, device=grad.device)
    _gate_backward[(stretches * triton.cdiv(width, channels),)](
        grad, hidden, keys_value, prepared, coefficients, grad_value, *results[:2], gate_partial,
        tokens, M=streams, D=width, GROUPS=len(grad_value) if conv else 0, RESIDUAL=residual,
        TILES=tiles, BT=rows, BD=channels, num_warps=GATE_WARPS,
    )  # fmt: skip
    size, block = streams * width, 16
    _weight_gradients[(triton.cdiv(size, block),)](
        gate_partial, conv_partial, q_weight, k_weight, conv_weight if conv else q_weight,
        norm_weight if conv else q_weight, *results[2:], gate_partial.shape[0],
        conv_partial.shape[0], SIZE=size, TAPS=prepared.shape[0] - 1, BR=256,
        BC=block, num_warps=4,
    )  # fmt: skip
    return results


def empty_backward(
    grad, hidden, keys_value, q_weight, k_weight, conv_weight, norm_weight, *rest
) -> list[Tensor]:
    weights = (q_weight, k_weight, conv_weight, norm_weight)
    of_weights = [torch.empty_like(w) if w is not None else q_weight.new_empty(0) for w in weights]
    return [torch.empty_like(hidden), torch.empty_like(keys_value), *of_weights]


def _walk_back(grad, keys_value, numbers, ids, prepared, dilation) -> tuple[Tensor, Tensor, Tensor]:
    batch, positions, streams, width = grad.shape
    taps, channels = prepared.shape[0] - 1, tile_width(width, WALK_CHANNELS)
    slices, steps = triton.cdiv(width, channels), triton.cdiv(positions, dilation)
    group = max(size for size in range(1, WALK_STREAMS + 1) if streams % size == 0)
    groups = streams // group
    parts = batch * positions * slices * groups
    length = min(steps, WALK_STEPS, max(8, parts // WALK_PROGRAMS))
    chunks = triton.cdiv(steps, length)
    walks = batch * dilation * chunks
    float32 = dict(dtype=torch.float32, device=grad.device)
    grad_value = keys_value.new_empty(groups, batch * positions, width)
    sums = torch.empty((batch * positions, streams, slices, 2), **float32)
    partial = torch.empty((walks, taps, streams * width), **float32)
    _conv_backward[(walks * groups * slices,)](
        grad, keys_value, numbers, ids, prepared, grad_value, sums, partial, batch * positions,
        positions, chunks, length, M=streams, D=width, TAPS=taps, DILATION=dilation,
        MASKED=ids is not numbers, GROUP=group, BD=channels, AHEAD=WALK_AHEAD, num_warps=1,
    )  # fmt: skip
    return grad_value, sums, partial
