"""What a memory adds to the residual streams: gate, then norm, short convolution and SiLU.

    gate_m = sigmoid(root(<norm_q hidden_m, norm_k key_m> / sqrt(d)))
    scale_m = gate_m * rsqrt(gate_m^2 mean(value^2) + eps)
    out_m  = [hidden_m +] gate_m value + SiLU(sum_j weight_mj norm_weight_m (scale_m value)[t - j])

The input of the convolution, `norm(gate_m value)`, is `scale_m * value * norm_weight_m`: a number a
token and stream times a vector that all streams share. So the gated tensor [tokens, M, d] is never
made: the convolution reads the values of a few tokens back and their scales.

Forward: one kernel walks over the tokens; where these are few, one finds the numbers of each token
and stream and another the output. Backward: one kernel walks back over the tokens of a slice of
channels (convolution, value), one finishes the gradients of hidden and key, one adds up those of
the weights. Kept for it: hidden, key, value and four numbers a token and stream. The kernels are in
`injection_forward` and `injection_backward`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from engram_kernels.backend import choose_backend, operator
from engram_kernels.convolution import short_conv
from engram_kernels.gating import gate, gate_score
from engram_kernels.injection_backward import backward, empty_backward
from engram_kernels.injection_forward import (
    convolve_window,
    empty_forward,
    empty_numbers,
    forward,
    numbers_only,
)


def conv_scale(gates: Tensor, value: Tensor, eps: float) -> Tensor:
    """`gate * rsqrt(gate^2 mean(value^2) + eps)`: norm(gate * value) = scale * value * weight.

    Args:
        gates: [..., M].
        value: [..., d].

    Returns:
        [..., M] float32.
    """
    mean = value.float().square().mean(-1, keepdim=True)
    gates = gates.float()
    return gates * torch.rsqrt(gates.square() * mean + eps)


def conv_of_window(
    value: Tensor, scale: Tensor, weight: Tensor, norm_weight: Tensor, dilation: int
) -> Tensor:
    """The convolution's output, SiLU included.

    Args:
        value: [batch, window + positions, d]; the first (k-1)*dilation are the past.
        scale: [batch, window + positions, M]; zero where there is nothing.
        weight: [M*d, 1, k].
        norm_weight: [M, d].

    Returns:
        [batch, positions, M, d] float32.
    """
    normed = scale.unsqueeze(-1) * value.unsqueeze(-2).to(scale.dtype) * norm_weight
    channels = normed.flatten(-2).transpose(1, 2)
    conv = short_conv(channels, weight, dilation)
    return conv.transpose(1, 2).unflatten(-1, norm_weight.shape)


def inject(
    hidden: Tensor,
    keys_value: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    conv_weight: Tensor | None = None,
    norm_weight: Tensor | None = None,
    ids: Tensor | None = None,
    *,
    dilation: int = 1,
    eps: float = 1e-20,
    conv_eps: float = 1e-5,
    form: str = "sqrt",
    zero: str = "sign",
    residual: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Gate, and with `conv_weight` convolve, what was looked up; nothing before the first position.

    Args:
        hidden: [batch, positions, M, d] residual streams.
        keys_value: [batch, positions, M+1, d]: M keys, then the value.
        q_weight, k_weight: [M, d], norm weights of hidden and key.
        conv_weight: [M*d, 1, k]; None: no convolution.
        norm_weight: [M, d], of the norm before the convolution.
        ids: [batch, positions]; negative where there is no text and nothing is added. None: text
            everywhere.
        dilation: distance between the convolution's taps.
        eps, conv_eps: of the norms of hidden and key, and of the convolution's.
        form, zero: of the gate, see `gate`.
        residual: add to `hidden` instead of returning what is added.
        backend: see `choose_backend`.

    Returns:
        [batch, positions, M, d] in the dtype of `hidden`, and the gates [batch, positions, M]
        float32, which carry no gradient.
    """
    weights = (q_weight, k_weight, conv_weight, norm_weight)
    if choose_backend(backend, hidden, keys_value) == "triton":
        settings = (dilation, eps, conv_eps, form == "linear", zero == "copysign", residual)
        out, gates, *_ = inject_triton(hidden, keys_value, *weights, ids, *settings)
        return out, gates
    key, value = keys_value[..., :-1, :], keys_value[..., -1, :]
    gates = gate(gate_score(hidden, key, q_weight, k_weight, eps), form, zero)
    if ids is not None:
        gates = gates * (ids >= 0).unsqueeze(-1)
    added = gates.unsqueeze(-1) * value.unsqueeze(-2).to(gates.dtype)
    if conv_weight is not None:
        back = (conv_weight.shape[-1] - 1) * dilation
        past = (0, 0, back, 0)
        window = torch.nn.functional.pad(value, past)
        scale = torch.nn.functional.pad(conv_scale(gates, value, conv_eps), past)
        conv = conv_of_window(window, scale, conv_weight, norm_weight, dilation)
        added = added + (conv if ids is None else conv * (ids >= 0)[..., None, None])
    out = hidden + added if residual else added
    return out.to(hidden.dtype), gates.detach()


def inject_after(
    hidden: Tensor,
    keys_value: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    conv_weight: Tensor,
    norm_weight: Tensor,
    ids: Tensor | None,
    remember: Callable[[Tensor], Tensor],
    *,
    dilation: int,
    eps: float,
    conv_eps: float,
    form: str,
    zero: str,
    residual: bool,
) -> tuple[Tensor, Tensor]:
    """`inject` with a convolution that reaches back to earlier calls; Triton, without gradients.

    Args:
        remember: takes what the convolution reads at these positions, value and scales
            [batch, positions, d + M] float32, and gives it with what came before in front,
            [batch, window + positions, d + M]. The other arguments are those of `inject`.
    """
    gates, numbers, prepared = gate_numbers_triton(
        hidden, keys_value, q_weight, k_weight, conv_weight, norm_weight, ids, eps, conv_eps,
        form == "linear", zero == "copysign",
    )  # fmt: skip
    window = remember(torch.cat([keys_value[..., -1, :].float(), numbers[..., 3]], -1))
    out = conv_of_window_triton(hidden, window, gates, ids, prepared, dilation, residual)
    return out, gates


def _keep(ctx, inputs, output) -> None:
    *tensors, dilation, _eps, conv_eps, linear, copysign, residual = inputs
    _out, gates, numbers, prepared = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(gates, numbers, prepared)
    ctx.save_for_backward(*tensors, numbers, prepared)
    ctx.settings = (dilation, conv_eps, linear, copysign, residual)


def _differentiate(ctx, grad, *_numbers):
    if grad is None:
        return (None,) * 13
    results = inject_backward_triton(grad, *ctx.saved_tensors, *ctx.settings)
    conv = ctx.saved_tensors[4] is not None
    return *results[:4], *(results[4:] if conv else (None, None)), *[None] * 7


_SETTINGS = "int dilation, float eps, float conv_eps, bool linear, bool copysign, bool residual"
_TENSORS = (
    "Tensor hidden, Tensor keys_value, Tensor q_weight, Tensor k_weight, Tensor? conv_weight,"
    " Tensor? norm_weight, Tensor? ids"
)
inject_triton = operator(
    f"inject({_TENSORS}, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor)",
    forward,
    empty_forward,
    _differentiate,
    _keep,
)
inject_backward_triton = operator(
    f"inject_backward(Tensor grad, {_TENSORS}, Tensor numbers, Tensor prepared, "
    f"{_SETTINGS.replace('float eps, ', '')}) -> Tensor[]",
    backward,
    empty_backward,
)

gate_numbers_triton = operator(
    f"gate_numbers({_TENSORS}, float eps, float conv_eps, bool linear, bool copysign)"
    " -> (Tensor, Tensor, Tensor)",
    numbers_only,
    empty_numbers,
)
conv_of_window_triton = operator(
    "conv_of_window(Tensor hidden, Tensor window, Tensor gates, Tensor? ids, Tensor prepared,"
    " int dilation, bool residual) -> Tensor",
    convolve_window,
    lambda hidden, *rest: torch.empty_like(hidden),
)
