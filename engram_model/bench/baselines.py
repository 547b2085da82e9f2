"""What one would use without these kernels: the public demo's way in eager PyTorch, and peers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def eager_slots(ids: Tensor, layers: list[tuple], pad: int) -> list[Tensor]:
    """The public demo's hash in int64 operations: a shift per token back, a remainder per head."""
    found = []
    for multipliers, primes, offsets in layers:
        orders = len(multipliers)
        shifted = [F.pad(ids, (back, 0), value=pad)[:, : ids.shape[1]] for back in range(orders)]
        mix, columns = shifted[0] * multipliers[0], []
        for back in range(1, orders):
            mix = torch.bitwise_xor(mix, shifted[back] * multipliers[back])
            columns += [mix % prime for prime in primes[back - 1]]
        found.append(torch.stack(columns, -1) + offsets)
    return found


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def eager_gated(hidden, keys_value, q_weight, k_weight) -> Tensor:
    """gate * value, stream by stream as in the public demo."""
    width, streams = hidden.shape[-1], hidden.shape[-2]
    value, gates = keys_value[..., streams, :], []
    for stream in range(streams):
        key = rms_norm(keys_value[..., stream, :], k_weight[stream], 1e-6)
        query = rms_norm(hidden[..., stream, :], q_weight[stream], 1e-6)
        score = (key * query).sum(-1) / math.sqrt(width)
        root = score.abs().clamp_min(1e-6).sqrt() * score.sign()
        gates.append(root.sigmoid().unsqueeze(-1))
    return torch.stack(gates, 2) * value.unsqueeze(2)


def eager_gate(hidden, keys_value, q_weight, k_weight) -> Tensor:
    """hidden + gate * value."""
    return hidden + eager_gated(hidden, keys_value, q_weight, k_weight)


def eager_conv(gated: Tensor, weight: Tensor, norm_weight: Tensor, dilation: int) -> Tensor:
    """norm, depthwise causal convolution and SiLU of [batch, positions, M, d]."""
    _, positions, streams, width = gated.shape
    normed = torch.cat([rms_norm(gated[:, :, m], norm_weight[m], 1e-5) for m in range(streams)], -1)
    back = (weight.shape[-1] - 1) * dilation
    conv = F.conv1d(
        normed.transpose(1, 2), weight, padding=back, dilation=dilation, groups=streams * width
    )
    return F.silu(conv[..., :positions]).transpose(1, 2).reshape(gated.shape)


def eager_inject(
    hidden, keys_value, q_weight, k_weight, conv_weight, norm_weight, dilation: int
) -> Tensor:
    """hidden + gated + convolution of it."""
    gated = eager_gated(hidden, keys_value, q_weight, k_weight)
    return hidden + gated + eager_conv(gated, conv_weight, norm_weight, dilation)


def tile_kernels_gate():
    """DeepSeek's `tile_kernels.modeling.engram.engram_gate`, or why it is not there."""
    try:
        from tile_kernels.modeling.engram import engram_gate
    except Exception as error:  # it needs a compiler and libraries of its own
        return None, f"tile-kernels did not run: {type(error).__name__}: {str(error)[:120]}"
    return engram_gate, ""
