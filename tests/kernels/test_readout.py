"""The lens' comparison of logits: the kernel gives the reference's numbers, that SciPy's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, logsumexp
from scipy.stats import entropy

from engram_kernels import compare_logits
from engram_kernels.readout import SPAN, Comparison, top_tokens


def compared(logits, final, targets, k, backend):
    top = final.float().topk(k).indices
    log_sum = compare_logits(final, final, None, targets, top, backend=backend).log_sum
    return compare_logits(logits, final, log_sum, targets, top, backend=backend)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    tokens=st.sampled_from([0, 1, 5]),
    vocabulary=st.sampled_from([7, 64, 2048, 2049, 5000]),
    k=st.sampled_from([1, 3, 5]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    wide=st.sampled_from([0.1, 3.0, 30.0]),
    seed=st.integers(0, 9),
)
def test_kernel_equals_reference(tokens, vocabulary, k, dtype, wide, seed, device):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(tokens, vocabulary, generator=generator) * wide for _ in range(2)]
    logits, final = (tensor.to(device, dtype) for tensor in made)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator).to(device)
    ours = compared(logits, final, targets, k, "triton")
    expected = compared(logits, final, targets, k, "torch")
    for name in Comparison._fields:
        a, b = getattr(ours, name), getattr(expected, name)
        assert a.shape == b.shape and a.dtype == b.dtype
        if name == "top1":  # of equal logits either may be named
            a, b = (logits.gather(1, one[:, None]) for one in (a, b))
        assert torch.allclose(a.float(), b.float(), rtol=2e-5, atol=2e-5), name


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_numbers_are_scipys(backend, device):
    rng = np.random.default_rng(0)
    logits, final = rng.normal(size=(2, 4, 300)).astype(np.float32) * 2
    targets = rng.integers(0, 300, 4)
    made = (torch.tensor(array, device=device) for array in (logits, final, targets))
    found = compared(*made, 5, backend)
    q, p = (np.exp(log_softmax(array.astype(np.float64), axis=-1)) for array in (logits, final))
    expected = {
        "kl": entropy(p, q, axis=-1),
        "kl_reverse": entropy(q, p, axis=-1),
        "js": jensenshannon(p, q, axis=-1) ** 2,
        "entropy": entropy(q, axis=-1),
        "log_prob": np.log(q[range(4), targets]),
        "rank": 1 + (q > q[range(4), targets][:, None]).sum(-1),
        "overlap": [
            len({*a} & {*b}) / 5
            for a, b in zip(np.argsort(-q)[:, :5], np.argsort(-p)[:, :5], strict=True)
        ],
        "top1": q.argmax(-1),
        "top1_prob": q.max(-1),
        "final_rank": 1 + (q > q[range(4), p.argmax(-1)][:, None]).sum(-1),
        "final_prob": q[range(4), p.argmax(-1)],
        "log_sum": logsumexp(logits.astype(np.float64), axis=-1),
    }
    for name, value in expected.items():
        assert np.allclose(getattr(found, name).cpu(), value, atol=1e-5), name


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_equal_logits_differ_by_nothing(backend, device):
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(1)).to(device) * 5
    found = compared(logits, logits.clone(), logits.argmax(-1), 5, backend)
    for name in ("kl", "kl_reverse", "js"):
        assert getattr(found, name).abs().max() < 1e-5
    same = compare_logits(logits, logits, None, logits.argmax(-1), logits.topk(5).indices, backend)
    for name in Comparison._fields:
        assert torch.allclose(getattr(same, name).float(), getattr(found, name).float(), atol=1e-5)
    assert (found.overlap == 1).all() and (found.rank == 1).all() and (found.final_rank == 1).all()


def test_ties_count_for_a_token(device):
    """A token is among the k likeliest where fewer than k are likelier."""
    logits = torch.zeros(1, 9, device=device)
    final = torch.arange(9.0, device=device)[None]
    for backend in ("torch", "triton"):
        found = compared(logits, final, torch.tensor([4], device=device), 3, backend)
        assert found.rank.item() == 1 and found.overlap.item() == 1


def test_compiles_for_an_h100(compile_ahead):
    signature = dict(
        logits="*fp32", final="*fp32", final_log_sum="*fp32", marks="*i64",
        sums="*fp32", likelier="*i64", top1="*i64", vocabulary="i32",
    )  # fmt: skip
    constants = {"SAME": False, "MARKS": 6, "BLOCK": 512}
    kernel = ("engram_kernels.readout", "_compare_kernel", signature, constants)
    aligned = [name for name in signature if name != "vocabulary"]
    [report] = compile_ahead([(*kernel, [*aligned, "vocabulary"], {"num_warps": 4})])
    assert report["local"] == 0 and report["wide_loads"] > 0


@pytest.mark.parametrize("vocabulary", [3, SPAN, 4 * SPAN, 4 * SPAN + 1, 9 * SPAN - 1])
@pytest.mark.parametrize("k", [1, 3])
def test_top_tokens_are_the_largest(vocabulary, k, device):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.rand(7, vocabulary, generator=generator).to(device)
    logits[0] = logits[0].sort().values  # the largest are the last
    logits[1] = logits[1].sort(descending=True).values  # all in one span
    assert torch.equal(top_tokens(logits, k), logits.topk(k).indices)
