"""Depthwise, dilated, causal convolution over positions, then SiLU."""

import torch.nn.functional as F
from torch import Tensor


def short_conv(window: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """`SiLU(sum_j weight[:, j] * window[t - (k-1-j)*dilation])` for every position.

    Args:
        window: [batch, channels, (k-1)*dilation + positions]; the first (k-1)*dilation columns are
            the past (zeros before the start).
        weight: [channels, 1, k].
        dilation: distance between taps, in positions.

    Returns:
        [batch, channels, positions] in the dtype of `window`.
    """
    return F.silu(
        F.conv1d(window, weight.to(window.dtype), dilation=dilation, groups=weight.shape[0])
    )
