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
from torch import Tensor

from engram_kernels.backend import choose_backend, operator
from engram_kernels.mixing_backward import (
    launch_mix_in_backward,
    launch_mix_out_backward,
    new_mix_in_backward,
    new_mix_out_backward,
)
from engram_kernels.mixing_forward import (
    launch_collapse_head,
    launch_mix_in,
    launch_mix_out,
    new_collapse_head,
    new_mix_in,
    new_mix_out,
)

MAX_STREAMS = 8


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


def unsupported(streams: Tensor) -> str | None:
    """Why the Triton versions do not take these streams, if so."""
    count, width = streams.shape[-2:]
    if not 1 <= count <= MAX_STREAMS or width % 16:
        return (
            f"{count} streams of width {width}: the Triton version takes 1 to {MAX_STREAMS} "
            "streams of a width that is a multiple of 16"
        )
    if streams.dtype not in (torch.float32, torch.bfloat16):
        return f"streams of {streams.dtype}: the Triton version takes float32, bfloat16"
    return None


def _check(streams: Tensor, fn: Tensor | None = None, groups: int = 1) -> None:
    why = unsupported(streams)
    if why is not None:
        raise ValueError(why)
    count, width = streams.shape[-2:]
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
    launch_mix_in_backward,
    new_mix_in_backward,
)
MIX_IN = operator(
    "mix_in(Tensor streams, Tensor fn, Tensor base, Tensor scale, int iterations, float hc_eps, "
    "float norm_eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    launch_mix_in,
    new_mix_in,
    _backward_mix_in,
    _keep_mix_in,
)
COLLAPSE_HEAD = operator(
    "collapse_head(Tensor streams, Tensor fn, Tensor base, Tensor scale, float hc_eps, "
    "float norm_eps) -> (Tensor, Tensor, Tensor)",
    launch_collapse_head,
    new_collapse_head,
    _backward_collapse_head,
    _keep_collapse_head,
)
MIX_OUT_BACKWARD = operator(
    "mix_out_backward(Tensor grad, Tensor streams, Tensor out, Tensor post, Tensor comb) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    launch_mix_out_backward,
    new_mix_out_backward,
)
MIX_OUT = operator(
    "mix_out(Tensor streams, Tensor out, Tensor post, Tensor comb) -> Tensor",
    launch_mix_out,
    new_mix_out,
    _backward_mix_out,
    _keep_mix_out,
)
