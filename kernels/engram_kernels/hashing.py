"""Suffix n-grams of compressed ids -> rows of the flat table."""

import torch
from torch import Tensor

NO_TOKEN = -1  # a position without text: an image, padding, or before the start


def ngram_slots(
    ids: Tensor, multipliers: Tensor, primes: Tensor, offsets: Tensor, pad_id: int | Tensor
) -> Tensor:
    """Slots of every n-gram that ends at each position.

    With `x_k` the id `k` tokens back, `mix_n = x_0*m_0 ^ x_1*m_1 ^ ... ^ x_{n-1}*m_{n-1}` and head
    `h` of order `n` reads row `mix_n mod prime[n, h]`. A look-back that meets a position without
    text (-1), or the start, becomes the pad id, and so do all older ones.

    Args:
        ids: [..., N-1 + positions] compressed ids; the first N-1 are the history (-1: none).
        multipliers: [N] odd int64; small enough that no product wraps.
        primes: [N-1, heads] int64.
        offsets: [(N-1)*heads] int64, first row of each order and head in the flat table.
        pad_id: compressed id that stands for a missing token.

    Returns:
        [..., positions, (N-1)*heads] int64, order-major, offsets included.

    Source: arXiv 2601.07372 section 2.2 and its public code; the -1 rule is DeepSeek-V4.1's.
    """
    orders = multipliers.numel()
    positions = ids.shape[-1] - (orders - 1)
    alive = torch.ones_like(ids[..., :positions], dtype=torch.bool)
    mix = torch.zeros_like(ids[..., :positions], dtype=torch.int64)
    slots = []
    for back in range(orders):
        start = orders - 1 - back
        token = ids[..., start : start + positions].long()
        alive = alive & (token != NO_TOKEN)
        mix = mix ^ (torch.where(alive, token, pad_id) * multipliers[back])
        if back:
            slots.append(mix.unsqueeze(-1) % primes[back - 1])
    return torch.cat(slots, -1) + offsets
