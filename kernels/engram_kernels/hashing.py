"""Suffix n-grams of compressed ids -> rows of the flat table.

With `x_k` the id `k` tokens back, `mix_n = x_0*m_0 ^ x_1*m_1 ^ ... ^ x_{n-1}*m_{n-1}` and head
`h` of order `n` reads row `mix_n mod prime[n, h]` of its own part of the table.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from engram_kernels.backend import choose_backend, operator, power_of_two

NO_TOKEN = -1  # a position without text: an image, padding, or before the start
BLOCK = 64  # tokens a program


def ngram_slots(
    ids: Tensor,
    multipliers: Tensor,
    primes: Tensor,
    offsets: Tensor,
    pad_id: int | Tensor,
    backend: str = "auto",
    history: bool = True,
) -> Tensor:
    """Slots of every n-gram that ends at each position.

    A look-back that meets a position without text (-1), or the start, becomes the pad id, and so do
    all older ones.

    Args:
        ids: [..., N-1 + positions] compressed ids; the first N-1 are the history (-1: none).
            Without `history` [..., positions], from the start of a text.
        multipliers: [N] odd int64; small enough that no product wraps. Or [layers, N], and so the
            next two: the slots of several layers in one launch.
        primes: [N-1, heads] int64.
        offsets: [(N-1)*heads] int64, first row of each order and head in the flat table.
        pad_id: compressed id that stands for a missing token.
        backend: see `choose_backend`.

    Returns:
        [..., positions, (N-1)*heads] int64, order-major, offsets included; with several layers
        [layers, ..., positions, (N-1)*heads].

    Source: arXiv 2601.07372 section 2.2 and its public code; the -1 rule is DeepSeek-V4.1's.
    """
    if multipliers.ndim == 1:
        constants = multipliers[None], primes[None], offsets[None]
        return _slots(ids, *constants, pad_id, backend, history)[0]
    return _slots(ids, multipliers, primes, offsets, pad_id, backend, history)


def _slots(ids, multipliers, primes, offsets, pad_id, backend, history):
    if choose_backend(backend, ids) == "triton":
        pad = torch.as_tensor(pad_id, device=ids.device).reshape(1)
        return ngram_slots_triton(ids, multipliers, primes, offsets, pad, history)
    if not history:
        ids = F.pad(ids, (multipliers.shape[-1] - 1, 0), value=NO_TOKEN)
    layers = zip(multipliers, primes, offsets, strict=True)
    slots = [_slots_of_layer(ids, *constants, pad_id) for constants in layers]
    return torch.stack(slots) if len(slots) > 1 else slots[0][None]  # stacking copies


def _slots_of_layer(ids, multipliers, primes, offsets, pad_id) -> Tensor:
    """The reference, which is also the fast way on a CPU: no copy, few passes over the result."""
    orders, positions = multipliers.numel(), ids.shape[-1] - (multipliers.numel() - 1)
    slots = ids.new_empty((*ids.shape[:-1], positions, *primes.shape), dtype=torch.int64)
    gone, mix = None, None
    for back in range(orders):
        start = orders - 1 - back
        token = ids[..., start : start + positions]
        missing = token == NO_TOKEN
        gone = missing if gone is None else gone | missing
        product = torch.where(gone, pad_id * multipliers[back], token.long() * multipliers[back])
        mix = product if mix is None else product.bitwise_xor_(mix)
        if back:
            torch.remainder(mix.unsqueeze(-1), primes[back - 1], out=slots[..., back - 1, :])
    return _add_offsets(slots.flatten(-2), offsets)


def _add_offsets(slots: Tensor, offsets: Tensor) -> Tensor:
    """In place, in lines of many tokens where they come out even: CPUs add short lines slowly."""
    columns = offsets.numel()
    tokens = slots.numel() // columns
    line = BLOCK if tokens % BLOCK == 0 else 1
    slots.view(tokens // line, line * columns).add_(offsets.repeat(line))
    return slots


@triton.jit
def remainder(mix, prime):
    """`mix mod prime` for 0 <= mix < 2^63 and 1 <= prime < 2^31, by a reciprocal: exact.

    floor(mix * floor((2^64-1)/prime) / 2^64) is the quotient or one less; the division is one a
    program, as it does not depend on `mix`.
    """
    reciprocal = ((prime * 0 - 1).to(tl.uint64) // prime.to(tl.uint64)).to(tl.int64)
    quotient = tl.umulhi(mix.to(tl.uint64), reciprocal.to(tl.uint64)).to(tl.int64)
    rest = mix - quotient * prime
    return tl.where(rest >= prime, rest - prime, rest)


@triton.jit
def token_at(ids, compression, row_start, place, back, inside, pad, alive, HAS_MAP: tl.constexpr):
    """Id `back` positions before `place`, or the pad id once something older than text is met."""
    there = inside & (place >= back)
    token = tl.load(ids + row_start + place - back, mask=there, other=-1).to(tl.int64)
    alive = alive & (token >= 0)
    if HAS_MAP:
        token = tl.load(compression + tl.where(alive, token, 0), mask=alive, other=0).to(tl.int64)
    return tl.where(alive, token, pad), alive


@triton.jit
def _slots_kernel(
    ids,
    multipliers,
    primes,
    offsets,
    pad,
    out,
    tokens,
    positions,
    ORDERS: tl.constexpr,
    HEADS: tl.constexpr,
    HEADS_P: tl.constexpr,
    LAYERS: tl.constexpr,
    HISTORY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.arange(0, HEADS_P)
    inside = token < tokens
    row = token // positions
    place = token - row * positions + HISTORY
    row_start = row.to(tl.int64) * (positions + HISTORY)
    pad_id = tl.load(pad).to(tl.int64)
    columns = (ORDERS - 1) * HEADS
    for layer in tl.static_range(LAYERS):
        mix = tl.zeros([BLOCK], tl.int64)
        alive = inside
        for back in tl.static_range(ORDERS):
            id_, alive = token_at(ids, ids, row_start, place, back, inside, pad_id, alive, False)
            mix = mix ^ (id_ * tl.load(multipliers + layer * ORDERS + back))
            if back > 0:
                column = (back - 1) * HEADS + head
                real = head < HEADS
                prime = tl.load(primes + layer * columns + column, mask=real, other=3)
                offset = tl.load(offsets + layer * columns + column, mask=real, other=0)
                slot = remainder(mix[:, None], prime[None, :]) + offset[None, :]
                where = (layer * tokens + token).to(tl.int64)[:, None] * columns + column[None, :]
                tl.store(out + where, slot, mask=inside[:, None] & real[None, :])


def _launch(
    ids: Tensor, multipliers: Tensor, primes: Tensor, offsets: Tensor, pad: Tensor, history: bool
) -> Tensor:
    layers, orders = multipliers.shape
    out = _empty(ids, multipliers, primes, offsets, pad, history)
    tokens = out[0, ..., 0].numel()
    if tokens:
        _slots_kernel[(triton.cdiv(tokens, BLOCK),)](
            ids.contiguous(),
            multipliers.contiguous(),
            primes.contiguous(),
            offsets.contiguous(),
            pad,
            out,
            tokens,
            out.shape[-2],
            ORDERS=orders,
            HEADS=primes.shape[-1],
            HEADS_P=power_of_two(primes.shape[-1]),
            LAYERS=layers,
            HISTORY=orders - 1 if history else 0,
            BLOCK=BLOCK,
            num_warps=2,
        )
    return out


def _empty(ids, multipliers, primes, offsets, pad, history) -> Tensor:
    layers, orders = multipliers.shape
    positions = ids.shape[-1] - (orders - 1 if history else 0)
    shape = (layers, *ids.shape[:-1], positions, offsets.shape[-1])
    return torch.empty(shape, dtype=torch.int64, device=ids.device)


ngram_slots_triton = operator(
    "ngram_slots(Tensor ids, Tensor multipliers, Tensor primes, Tensor offsets, Tensor pad,"
    " bool history) -> Tensor",
    _launch,
    _empty,
)
