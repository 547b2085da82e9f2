"""Ids -> slots -> rows: the kernels equal the exact hash and `F.embedding`, bit for bit."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_kernels.gather import dequantise, lookup, lookup_ngrams, lookup_unique
from engram_kernels.hashing import ngram_slots

VOCAB, COMPRESSED = 300, 200


def constants(orders: int, heads: int, layers: int, seed: int, device, base: int = 997):
    """Multipliers, primes and offsets of several layers, as a model's hasher gives them."""
    from engram_model import NgramHasher

    ids = list(range(layers))
    hasher = NgramHasher(ids, orders, heads, [base] * (orders - 1), COMPRESSED, 2, seed)
    stacked = [
        torch.stack([torch.as_tensor(getattr(hasher, name)(layer).copy()) for layer in ids])
        for name in ("multipliers", "primes", "offsets")
    ]
    return hasher, [tensor.to(device) for tensor in stacked]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    batch=st.integers(0, 3),
    positions=st.sampled_from([1, 2, 17, 33]),
    orders=st.integers(2, 4),
    heads=st.sampled_from([1, 2, 3, 8]),
    layers=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_slots_of_all_layers_in_one_launch(batch, positions, orders, heads, layers, seed, device):
    hasher, made = constants(orders, heads, layers, seed, device)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, COMPRESSED, (batch, positions), generator=generator).to(device)
    window = F.pad(ids, (orders - 1, 0), value=-1)
    slots = ngram_slots(window, *made, 2, backend="triton")
    for layer in range(layers):
        expected = hasher.slots(ids.cpu().numpy(), layer)
        assert torch.equal(slots[layer].cpu(), torch.as_tensor(expected))
    for backend in ("torch", "triton"):
        assert torch.equal(ngram_slots(ids, *made, 2, backend=backend, history=False), slots)
    one = [tensor[0] for tensor in made]
    assert torch.equal(ngram_slots(window, *one, 2, backend="triton"), slots[0])


def test_remainder_is_exact_where_the_quotient_is_hardest(device):
    """Products just below 2^63 and beside multiples of the prime, for primes up to 2^31."""
    primes = torch.tensor([[2, 3, 99_991, 2_147_483_629]])
    offsets = torch.zeros(4, dtype=torch.int64)
    near = [(2**62 // int(p)) * int(p) + d for p in primes[0] for d in (-1, 0, 1)]
    wanted = torch.tensor([*near, 2**63 - 1, 2**63 - 2, 0, 1])
    window = torch.stack([torch.zeros_like(wanted), wanted], -1).to(device)
    multipliers = torch.tensor([1, 1])
    made = [tensor.to(device) for tensor in (multipliers, primes, offsets)]
    got = ngram_slots(window, *made, 0, backend="triton")
    assert torch.equal(got.cpu()[:, 0], wanted[:, None] % primes)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    positions=st.sampled_from([1, 5, 21]),
    heads=st.sampled_from([1, 3, 4]),
    width=st.sampled_from([8, 24, 80]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 9),
)
def test_ids_to_rows_in_one_kernel(positions, heads, width, dtype, seed, device):
    hasher, made = constants(3, heads, 1, seed, device, base=53)  # small: rows are shared
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(hasher.rows(0), width, generator=generator).to(device, dtype)
    compression = torch.randint(0, COMPRESSED, (VOCAB,), generator=generator, dtype=torch.int32)
    ids = torch.randint(-1, VOCAB, (2, positions), generator=generator).to(device)
    given_ = (table, ids, compression.to(device), *(m[0] for m in made))
    pad = torch.tensor([2], device=device)
    rows, slots = lookup_ngrams(*given_, pad, backend="triton")
    expected_rows, expected_slots = lookup_ngrams(*given_, pad, backend="torch")
    assert torch.equal(slots, expected_slots) and torch.equal(rows, expected_rows)
    assert torch.equal(lookup(table, slots, backend="triton"), expected_rows)
    assert torch.equal(lookup_unique(table, slots), expected_rows)


@pytest.mark.parametrize("kind", ["exponents", "floats"])
def test_float8_rows_with_block_scales(kind, device):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(50, 64, generator=generator).to(torch.float8_e4m3fn).to(device)
    scales = torch.randint(118, 136, (50, 2), generator=generator, dtype=torch.uint8)
    if kind == "floats":
        scales = torch.exp2(scales.float() - 127)
    scales = scales.to(device)
    slots = torch.randint(0, 50, (3, 7), generator=generator).to(device)
    expected = dequantise(table.view(torch.uint8)[slots].view(table.dtype), scales[slots])
    for backend in ("torch", "triton"):
        got = lookup(table, slots, scales, backend=backend)
        assert got.dtype == torch.bfloat16 and torch.equal(got, expected)
    one = (
        table[:1].float() * torch.exp2(scales[:1].float() - 127).repeat_interleave(32, 1)
        if kind == "exponents"
        else table[:1].float() * scales[:1].repeat_interleave(32, 1)
    )
    assert torch.equal(
        lookup(table, torch.zeros(1, dtype=torch.int64, device=device), scales), one.bfloat16()
    )


def test_gradient_is_that_of_an_embedding(device, assert_close):
    slots = torch.tensor([[3, 3, 1], [0, 3, 9]], device=device)
    grads = []
    for function in (lambda t: lookup(t, slots, backend="triton"), lambda t: F.embedding(slots, t)):
        table = torch.randn(10, 16, device=device, generator=None).requires_grad_()
        out = function(table)
        out.backward(torch.arange(out.numel(), device=device).reshape(out.shape).float())
        grads.append(table.grad)
    assert_close(*grads)


def test_operators_are_registered_right(device):
    table = torch.randn(20, 8, device=device).requires_grad_()
    slots = torch.randint(0, 20, (3, 4), device=device)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.engram.lookup.default, (table, slots, None), test_utils=tests)


def test_refuses_a_table_that_is_not_contiguous(device):
    table = torch.randn(9, 16, device=device)[:, :8]
    with pytest.raises(ValueError, match="not contiguous"):
        lookup(table, torch.zeros(1, dtype=torch.int64, device=device), backend="triton")


@pytest.mark.gpu
def test_offsets_beyond_31_bits():
    """A table of more than 2^31 elements: the last rows are read right."""
    rows, width = 30_000_000, 80
    table = torch.zeros(rows, width, dtype=torch.bfloat16, device="cuda")
    last = torch.arange(rows - 64, rows, device="cuda")
    table[last] = torch.randn(64, width, device="cuda").bfloat16()
    assert torch.equal(lookup(table, last, backend="triton"), table[last])


POINTERS = dict(multipliers="*i64", primes="*i64", offsets="*i64", pad="*i64")
NGRAMS = dict(
    table="*bf16", scales="*bf16", ids="*i64", compression="*i32", **POINTERS, out="*bf16",
    slots="*i64", tokens="i32", positions="i32",
)  # fmt: skip
ALIGNED = ["table", "ids", "compression", "multipliers", "primes", "offsets", "out", "slots"]
KERNELS = [
    (
        "engram_kernels.gather",
        "_lookup_kernel",
        dict(table="*bf16", slots="*i64", scales="*bf16", out="*bf16", chunks="i32"),
        dict(WIDTH=80, CHUNK=8, SCALE_BLOCK=0, EXPONENTS=False, CHUNKS=512),
        ["table", "slots", "out"],
        dict(num_warps=4),
    ),
    (
        "engram_kernels.gather",
        "_lookup_ngrams_kernel",
        NGRAMS,
        dict(ORDERS=3, HEADS=8, HEADS_P=8, WIDTH=80, WIDTH_P=128, SCALE_BLOCK=0, EXPONENTS=False,
             BLOCK=4),
        ALIGNED,
        dict(num_warps=4),
    ),
    (
        "engram_kernels.gather",
        "_lookup_ngrams_kernel",
        NGRAMS | dict(table="*fp8e4nv", scales="*u8"),
        dict(ORDERS=4, HEADS=8, HEADS_P=8, WIDTH=256, WIDTH_P=256, SCALE_BLOCK=32, EXPONENTS=True,
             BLOCK=4),
        ALIGNED,
        dict(num_warps=4),
    ),
]  # fmt: skip


def test_compiles_for_hopper_with_wide_loads_and_no_spills(compile_ahead):
    for kernel, report in zip(KERNELS, compile_ahead(KERNELS), strict=True):
        assert report["cubin"] > 0 and report["wide_loads"] > 0, (kernel[1], report)
        assert report["local"] == 0, (kernel[1], report)


def test_slots_kernel_compiles_for_hopper_without_spills(compile_ahead):
    names = ("ids", "multipliers", "primes", "offsets", "pad", "out")
    signature = dict.fromkeys(names, "*i64") | dict(tokens="i32", positions="i32")
    shape = dict(ORDERS=3, HEADS=8, HEADS_P=8, LAYERS=2, HISTORY=2, BLOCK=64)
    kernel = ("engram_kernels.hashing", "_slots_kernel", signature, shape, names, {"num_warps": 2})
    [report] = compile_ahead([kernel])
    assert report["cubin"] > 0 and report["local"] == 0, report
