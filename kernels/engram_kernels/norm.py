"""Root-mean-square normalisation in float32."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis, float32.

    Args:
        x: [..., d].
        weight: broadcastable to `x`, e.g. [streams, d].
        eps: added to the mean square.
    """
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()
