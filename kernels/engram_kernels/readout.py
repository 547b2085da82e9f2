"""A layer's logits against the final ones: every number of the logit lens in two passes over them.

Plain torch makes a tensor as large as the logits for every step; on a GPU that takes longer than
the matrix product which gave the logits. The kernel reads both and writes a few numbers a token.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from engram_kernels.backend import choose_backend, operator, power_of_two
from engram_kernels.jit import COMPILED, append

BLOCK, WARPS = 512, 4
SPAN = 512  # tokens of which the largest logit is found first
TINY = tl.constexpr(1.2e-38)  # float32 still has it at full precision
LEAST = tl.constexpr(-1e30)  # below all logits; less itself it is a number, as -inf is not
BITS = tl.constexpr(1.4426950408889634)  # in a nat
NATS = tl.constexpr(0.6931471805599453)  # in a bit


class Comparison(NamedTuple):
    """Of T tokens: q a layer's prediction, p the final one; [T] float32 where not said otherwise.

    kl: KL(p || q); kl_reverse: KL(q || p); js: Jensen-Shannon divergence; entropy: of q; in nats.
    log_prob: ln q(target). rank: 1 + number of tokens likelier than the target, int64.
    overlap: share of the final top tokens than which fewer than k tokens are likelier in q.
    top1, top1_prob: likeliest token of q, int64, and its probability.
    final_rank, final_prob: of the final likeliest token in q.
    log_sum: ln of the sum of the layer's powers, by which its logits become ln q.
    """

    kl: Tensor
    kl_reverse: Tensor
    js: Tensor
    entropy: Tensor
    log_prob: Tensor
    rank: Tensor
    overlap: Tensor
    top1: Tensor
    top1_prob: Tensor
    final_rank: Tensor
    final_prob: Tensor
    log_sum: Tensor


def top_tokens(logits: Tensor, k: int) -> Tensor:
    """Ids of the k largest logits of each token, the largest first: [T, vocabulary] -> [T, k].

    They are in the k spans of the vocabulary with the largest maxima, which are found in one pass
    where `torch.topk` makes several.
    """
    vocabulary = logits.shape[1]
    spans = vocabulary // SPAN
    if spans <= k:
        return logits.topk(k).indices
    first = torch.arange(vocabulary, device=logits.device)
    rest = first[spans * SPAN :].expand(len(logits), -1)
    largest = logits[:, : spans * SPAN].unflatten(1, (spans, SPAN)).amax(-1).topk(k).indices
    ids = torch.cat([(largest[..., None] * SPAN + first[:SPAN]).flatten(1), rest], 1)
    return ids.gather(1, logits.gather(1, ids).topk(k).indices)


def compare_logits(
    logits: Tensor,
    final: Tensor,
    final_log_sum: Tensor | None,
    targets: Tensor,
    final_top: Tensor,
    backend: str = "auto",
) -> Comparison:
    """Compare a layer's logits with the final ones.

    Args:
        logits, final: [T, vocabulary], of one dtype.
        final_log_sum: [T] `log_sum` of `final`, the same for all layers; None: `logits` is `final`.
        targets: [T] int64, the true next tokens.
        final_top: [T, k] int64, the k likeliest tokens of `final`, the likeliest first.
        backend: see `choose_backend`.
    """
    if choose_backend(backend, logits, final) == "triton":
        return _compare_triton(logits, final, final_log_sum, targets, final_top)
    log_sum = logits.float().logsumexp(-1)
    log = logits.float() - log_sum[:, None]
    final_log = final.float() - (log_sum if final_log_sum is None else final_log_sum)[:, None]
    probs, final_probs = log.exp(), final_log.exp()
    mixed = torch.special.entr((probs + final_probs) / 2).sum(-1)
    entropy, final_entropy = (-(p * q).sum(-1) for p, q in ((probs, log), (final_probs, final_log)))
    marked = log.gather(1, torch.cat([targets[:, None], final_top], 1))
    likelier = torch.stack([(log > mark[:, None]).sum(-1) for mark in marked[:, :2].unbind(1)], 1)
    top = log.topk(final_top.shape[1])
    return Comparison(
        kl=(final_probs * (final_log - log)).sum(-1),
        kl_reverse=(probs * (log - final_log)).sum(-1),
        js=mixed - (entropy + final_entropy) / 2,
        entropy=entropy,
        log_prob=marked[:, 0],
        rank=likelier[:, 0] + 1,
        overlap=(marked[:, 1:] >= top.values[:, -1:]).float().mean(-1),
        top1=top.indices[:, 0],
        top1_prob=top.values[:, 0].exp(),
        final_rank=likelier[:, 1] + 1,
        final_prob=marked[:, 1].exp(),
        log_sum=log_sum,
    )


def _compare_triton(logits, final, final_log_sum, targets, final_top) -> Comparison:
    marks = torch.cat([targets[:, None], final_top], 1)
    k = final_top.shape[1]
    known = None if final_log_sum is None else final_log_sum.float().contiguous()
    sums, likelier, top1 = compare_triton(logits.contiguous(), final.contiguous(), known, marks)
    marked = logits.gather(1, marks).float() - sums[:, 4:5]
    return Comparison(
        kl=sums[:, 0],
        kl_reverse=sums[:, 1],
        js=sums[:, 2],
        entropy=sums[:, 3],
        log_prob=marked[:, 0],
        rank=likelier[:, 0] + 1,
        overlap=(likelier[:, 1:] < k).float().mean(-1),
        top1=top1,
        top1_prob=(logits.gather(1, top1[:, None])[:, 0].float() - sums[:, 4]).exp(),
        final_rank=likelier[:, 1] + 1,
        final_prob=marked[:, 1].exp(),
        log_sum=sums[:, 4],
    )


@triton.jit
def _log2(x):
    """Of normal numbers, to 2^-22. That of `tl.log2` is a polynomial of twenty instructions."""
    if COMPILED:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.log2(x)


@triton.jit
def _compare_kernel(
    logits,
    final,
    final_log_sum,
    marks,
    sums,
    likelier,
    top1,
    vocabulary,
    SAME: tl.constexpr,
    MARKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token: log-sum, likeliest token and ranks in a first pass, divergences in a second."""
    token = tl.program_id(0).to(tl.int64)
    logits += token * vocabulary
    final += token * vocabulary
    columns = tl.arange(0, BLOCK)
    # Each lane counts for itself: a sum over lanes in every step would take most of the time.
    at, above = (), ()
    for mark in tl.static_range(MARKS):
        marked = tl.load(marks + token * MARKS + mark)
        at = append(at, tl.load(logits + marked).to(tl.float32))
        above = append(above, tl.zeros([BLOCK], tl.float32))
    largest = tl.full([BLOCK], LEAST, tl.float32)
    where = tl.zeros([BLOCK], tl.int32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocabulary, BLOCK):
        inside = start + columns < vocabulary
        z = tl.load(logits + start + columns, mask=inside, other=float("-inf")).to(tl.float32)
        counted = ()
        for mark in tl.static_range(MARKS):
            counted = append(counted, above[mark] + (z > at[mark]).to(tl.float32))
        above = counted
        larger = z > largest
        highest = tl.where(larger, z, largest)
        total = total * tl.exp2((largest - highest) * BITS) + tl.exp2((z - highest) * BITS)
        where = tl.where(larger, start + columns, where)
        largest = highest
    peak = tl.max(largest, 0)
    first = tl.min(tl.where(largest == peak, where, vocabulary), 0)
    log_sum = peak + tl.log(tl.sum(total * tl.exp2((largest - peak) * BITS), 0))
    final_sum = log_sum
    if not SAME:
        final_sum = tl.load(final_log_sum + token)
    kl = tl.zeros([BLOCK], tl.float32)
    reverse = tl.zeros([BLOCK], tl.float32)
    shared = tl.zeros([BLOCK], tl.float32)
    entropy = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocabulary, BLOCK):
        inside = start + columns < vocabulary
        z = tl.load(logits + start + columns, mask=inside, other=0.0).to(tl.float32)
        f = tl.load(final + start + columns, mask=inside, other=0.0).to(tl.float32)
        z, f = (z - log_sum) * BITS, (f - final_sum) * BITS
        q = tl.where(inside, tl.exp2(z), 0.0)
        p = tl.where(inside, tl.exp2(f), 0.0)
        half = (p + q) / 2
        # p ln p + q ln q less twice the mean's, term by term: no large sums are subtracted.
        mean = _log2(tl.maximum(half, TINY))
        kl += p * (f - z)
        reverse += q * (z - f)
        shared += p * (f - mean) + q * (z - mean)
        entropy -= q * z
    tl.store(sums + token * 5, tl.sum(kl, 0) * NATS)
    tl.store(sums + token * 5 + 1, tl.sum(reverse, 0) * NATS)
    tl.store(sums + token * 5 + 2, tl.sum(shared, 0) * NATS / 2)
    tl.store(sums + token * 5 + 3, tl.sum(entropy, 0) * NATS)
    tl.store(sums + token * 5 + 4, log_sum)
    for mark in tl.static_range(MARKS):
        tl.store(likelier + token * MARKS + mark, tl.sum(above[mark], 0).to(tl.int64))
    tl.store(top1 + token, first.to(tl.int64))


def _launch(logits: Tensor, final: Tensor, final_log_sum: Tensor | None, marks: Tensor):
    made = _fake(logits, final, final_log_sum, marks)
    tokens, vocabulary = logits.shape
    if tokens:
        _compare_kernel[(tokens,)](
            logits,
            final,
            marks if final_log_sum is None else final_log_sum,
            marks,
            *made,
            vocabulary,
            SAME=final_log_sum is None,
            MARKS=marks.shape[1],
            BLOCK=min(BLOCK, power_of_two(vocabulary)),
            num_warps=WARPS,
        )
    return made


def _fake(logits: Tensor, final: Tensor, final_log_sum: Tensor | None, marks: Tensor):
    tokens = logits.shape[0]
    return (
        logits.new_empty(tokens, 5, dtype=torch.float32),
        torch.empty_like(marks),
        logits.new_empty(tokens, dtype=torch.int64),
    )


compare_triton = operator(
    "compare_logits(Tensor logits, Tensor final, Tensor? final_log_sum, Tensor marks)"
    " -> (Tensor, Tensor, Tensor)",
    _launch,
    _fake,
)
