"""How much of what was looked up enters each residual stream."""

import math

import torch
from torch import Tensor

from engram_kernels.norm import rms_norm

SCORE_FLOOR = 1e-6  # keeps the derivative of the square root finite


def gate_score(
    hidden: Tensor, key: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float
) -> Tensor:
    """`<norm_q(hidden), norm_k(key)> / sqrt(d)` of every token and stream.

    Args:
        hidden, key: [..., M, d], one key per stream.
        q_weight, k_weight: [M, d] norm weights of hidden and key.
        eps: of both norms.

    Returns:
        [..., M] float32.
    """
    query = rms_norm(hidden, q_weight, eps)
    return (query * rms_norm(key, k_weight, eps)).sum(-1) / math.sqrt(hidden.shape[-1])


def gate(score: Tensor, form: str = "sqrt", zero: str = "sign") -> Tensor:
    """`sigmoid(root(score))`, the share of the value that is added.

    Args:
        score: any shape, float32.
        form: "sqrt", `root(s) = sign(s) * sqrt(max(|s|, 1e-6))` (public code, DeepSeek-V4.1), or
            "linear", `root(s) = s` (equation 4 of the paper as printed).
        zero: what a score of exactly zero gives in the "sqrt" form: "sign" 0.5 (public demo),
            "copysign" sigmoid(+-1e-3) (DeepSeek-V4.1).
    """
    if form == "linear":
        return torch.sigmoid(score)
    root = score.abs().clamp(min=SCORE_FLOOR).sqrt()
    return torch.sigmoid(torch.copysign(root, score) if zero == "copysign" else root * score.sign())
