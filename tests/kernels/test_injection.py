"""Gate, convolution and residual in two kernels: equal to the plain operations, both ways."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_kernels import injection_forward
from engram_kernels.injection import conv_of_window, conv_scale, inject, inject_after

ROOT = 4  # the gate's root has a slope without bound at zero: scores near it lose digits
TWO = settings(max_examples=8, deadline=None, derandomize=True)


@st.composite
def cases(draw):
    taps = draw(st.sampled_from([0, 1, 2, 4, 5]))
    return dict(
        batch=draw(st.integers(1, 2)),
        positions=draw(st.sampled_from([1, 2, 7, 11])),
        streams=draw(st.sampled_from([1, 2, 3, 4, 5, 8])),
        width=draw(st.sampled_from([16, 32, 48])),
        taps=taps,
        dilation=draw(st.sampled_from([1, 2, 3])),
        masked=draw(st.booleans()),
        residual=draw(st.booleans()),
        form=draw(st.sampled_from(["sqrt", "linear"])),
        zero=draw(st.sampled_from(["sign", "copysign"])),
        seed=draw(st.integers(0, 99)),
    )


def tensors(case, device, dtype=torch.float32):
    """hidden, keys_value and weights; ids."""
    generator = torch.Generator().manual_seed(case["seed"])
    batch, positions, streams, width, taps = (
        case[name] for name in ("batch", "positions", "streams", "width", "taps")
    )
    shapes = [
        (batch, positions, streams, width),
        (batch, positions, streams + 1, width),
        (streams, width),
        (streams, width),
    ]
    if taps:
        shapes += [(streams * width, 1, taps), (streams, width)]
    made = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    made += [None] * (6 - len(made))
    ids = torch.randint(-1, 3, (batch, positions), generator=generator).to(device)
    return made, ids if case["masked"] else None


def options(case) -> dict:
    kept = ("dilation", "form", "zero", "residual")
    return {name: case[name] for name in kept} | dict(conv_eps=1e-3)


def run(case, given, ids, backend, grad):
    leaves = [None if x is None else x.clone().requires_grad_() for x in given]
    out, gates = inject(*leaves, ids, **options(case), backend=backend)
    out.backward(grad.to(out.dtype))
    return [out, gates, *(leaf.grad for leaf in leaves if leaf is not None)]


@TWO
@given(case=cases())
def test_inject_equals_its_reference(case, device, assert_close):
    given, ids = tensors(case, device)
    grad = torch.randn_like(given[0])
    expected = run(case, given, ids, "torch", grad)
    for got, want in zip(run(case, given, ids, "triton", grad), expected, strict=True):
        assert_close(got, want, factor=ROOT)


@TWO
@given(case=cases())
def test_a_walk_equals_the_reference(case, device, assert_close):
    """Many tokens go through one kernel, which these few would not."""
    case["taps"] = case["taps"] or 3
    given, ids = tensors(case, device)
    grad = torch.randn_like(given[0])
    expected = run(case, given, ids, "torch", grad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(injection_forward, "WALK_FROM", 0)
        patch.setattr(injection_forward, "WALK_STEPS", 2)
        found = run(case, given, ids, "triton", grad)
    for got, want in zip(found, expected, strict=True):
        assert_close(got, want, factor=ROOT)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(case=cases())
def test_inject_in_bfloat16(case, device, assert_close):
    given, ids = tensors(case, device, torch.bfloat16)
    grad = torch.randn_like(given[0])
    exact = [None if x is None else x.float() for x in given]
    expected = run(case, exact, ids, "torch", grad.float())
    for got, want in zip(run(case, given, ids, "triton", grad), expected, strict=True):
        assert_close(got, want, torch.bfloat16)


def test_mixed_precision_is_that_of_each_tensor(device, assert_close):
    """Under autocast the streams are float32, keys and value bfloat16."""
    case = dict(batch=1, positions=9, streams=4, width=32, taps=4, dilation=3, masked=False)
    case |= dict(residual=True, form="sqrt", zero="sign", seed=0)
    given, ids = tensors(case, device)
    given[1] = given[1].bfloat16()
    grad = torch.randn_like(given[0])
    expected = run(case, given, ids, "torch", grad)
    got = run(case, given, ids, "triton", grad)
    assert got[0].dtype == torch.float32 and got[3].dtype == torch.bfloat16
    for one, want in zip(got, expected, strict=True):
        assert_close(one, want, factor=4)


@pytest.mark.parametrize("taps", [0, 4])
def test_empty_batch(device, taps):
    case = dict(batch=0, positions=5, streams=2, width=16, taps=taps, dilation=1, masked=True)
    case |= dict(residual=True, form="sqrt", zero="sign", seed=0)
    given, ids = tensors(case, device)
    results = run(case, given, ids, "triton", torch.zeros_like(given[0]))
    assert results[0].shape == given[0].shape
    assert not any(x.detach().any() for x in results)


def test_positions_that_are_all_padding_add_nothing(device):
    case = dict(batch=2, positions=6, streams=3, width=32, taps=4, dilation=2, masked=True)
    case |= dict(residual=False, form="sqrt", zero="sign", seed=1)
    given, ids = tensors(case, device)
    out, gates, *grads = run(case, given, torch.full_like(ids, -1), "triton", given[0])
    assert not any(x.detach().any() for x in (out, gates, *grads))


def plainly(hidden, keys_value, wq, wk, conv_weight, norm_weight, ids):
    """The formula of the file's docstring in the dtype of its inputs; dilation 1, residual."""
    key, value = keys_value[..., :-1, :], keys_value[..., -1, :]

    def rms(x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    score = (rms(hidden) * wq * rms(key) * wk).sum(-1) / hidden.shape[-1] ** 0.5
    gates = torch.sigmoid(score.abs().sqrt() * score.sign()) * (ids >= 0).unsqueeze(-1)
    scale = gates * torch.rsqrt(gates.square() * value.square().mean(-1, keepdim=True) + 1e-3)
    past = (0, 0, conv_weight.shape[-1] - 1, 0)
    window, scales = (torch.nn.functional.pad(x, past) for x in (value, scale))
    conv = conv_of_window(window, scales, conv_weight, norm_weight, 1)
    return hidden + gates.unsqueeze(-1) * value.unsqueeze(-2) + conv * (ids >= 0)[..., None, None]


SMALL = dict(batch=1, positions=4, streams=2, taps=2, dilation=1, masked=True, seed=3)


def test_gradient_of_the_formula_in_float64():
    given, ids = tensors(SMALL | dict(width=3), "cpu", torch.float64)
    leaves = [x.requires_grad_() for x in given]
    assert torch.autograd.gradcheck(lambda *x: plainly(*x, ids), leaves)


def test_gradients_equal_those_of_the_formula_in_float64(device):
    given, ids = tensors(SMALL | dict(width=32), "cpu", torch.float64)
    exact = [x.clone().requires_grad_() for x in given]
    single = [x.float().to(device).requires_grad_() for x in given]
    out, _ = inject(*single, ids.to(device), eps=1e-6, conv_eps=1e-3, residual=True,
                    backend="triton")  # fmt: skip
    grad = torch.randn_like(out)
    out.backward(grad)
    plainly(*exact, ids).backward(grad.cpu().double())
    for got, want in zip(single, exact, strict=True):
        assert (got.grad.cpu().double() - want.grad).norm() < 2e-5 * want.grad.norm()


def test_norm_of_the_gated_value_is_a_scale():
    """`norm(gate * value)` without ever making gate * value for every stream."""
    gates, value = torch.rand(3, 4), torch.randn(3, 24)
    gated = gates.unsqueeze(-1) * value.unsqueeze(-2)
    normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + 1e-5)
    scale = conv_scale(gates, value, 1e-5)
    assert torch.allclose(normed, scale.unsqueeze(-1) * value.unsqueeze(-2), atol=1e-6)


@pytest.mark.parametrize("cuts", [[7], [1, 1, 1, 4], [3, 4], [6, 1]])
def test_in_pieces_equals_whole(device, cuts, assert_close):
    case = dict(batch=2, positions=7, streams=3, width=32, taps=3, dilation=2, masked=True)
    case |= dict(residual=True, form="sqrt", zero="sign", seed=5)
    given, ids = tensors(case, device)
    whole, _ = inject(*given, ids, **options(case), eps=1e-20, backend="torch")
    past = torch.zeros(2, 4, 32 + 3, device=device)

    def remember(read):
        nonlocal past
        window = torch.cat([past, read], 1)
        past = window[:, -4:]
        return window

    pieces, start = [], 0
    for length in cuts:
        part = slice(start, start + length)
        out, _ = inject_after(
            given[0][:, part], given[1][:, part], *given[2:], ids[:, part], remember,
            **options(case), eps=1e-20,
        )  # fmt: skip
        pieces.append(out)
        start += length
    assert_close(torch.cat(pieces, 1), whole)


def test_strided_weights_and_forward_mode(device, assert_close):
    case = SMALL | dict(width=16, form="sqrt", zero="sign", residual=True)
    given, ids = tensors(case, device)
    strided = list(given)
    strided[2] = torch.stack([given[2], given[2]], -1)[..., 0]
    whole, _ = inject(*given, ids, **options(case), backend="triton")
    assert_close(inject(*strided, ids, **options(case), backend="triton")[0], whole)
    with torch.autograd.forward_ad.dual_level(), pytest.raises((RuntimeError, NotImplementedError)):
        dual = torch.autograd.forward_ad.make_dual(given[0], torch.ones_like(given[0]))
        inject(dual, *given[1:], ids, **options(case), backend="triton")


def test_operator_is_registered_right(device):
    case = dict(batch=1, positions=4, streams=2, width=16, taps=2, dilation=1, masked=True)
    case |= dict(residual=True, form="sqrt", zero="sign", seed=2)
    given, ids = tensors(case, device)
    settings_ = (1, 1e-20, 1e-5, False, False, True)
    leaves = [x.requires_grad_() for x in given]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.engram.inject.default, (*leaves, ids, *settings_),
                          test_utils=tests)  # fmt: skip


def test_refuses_triton_without_a_gpu_or_an_unknown_backend(monkeypatch):
    from engram_kernels import backend

    with pytest.raises(ValueError, match="choose from auto, torch, triton"):
        backend.choose_backend("cuda", torch.zeros(1))
    monkeypatch.setattr(backend, "INTERPRETED", False)
    with pytest.raises(ValueError, match="needs a GPU; the tensors are on cpu"):
        backend.choose_backend("triton", torch.zeros(1))


BF, F = "*bf16", "*fp32"
SHAPE = dict(M=4, D=2560)
FORWARD, BACKWARD = "engram_kernels.injection_forward", "engram_kernels.injection_backward"
KERNELS = [
    (
        FORWARD,
        "_gate_forward",
        dict(hidden=BF, keys_value=BF, q_weight=BF, k_weight=BF, conv_weight=BF, norm_weight=BF,
             prepared=F, ids="*i64", out=BF, gates=F, numbers=F, tokens="i32", eps="fp32",
             conv_eps="fp32"),
        dict(**SHAPE, TAPS=0, LINEAR=False, COPYSIGN=False, MASKED=True, RESIDUAL=True, BT=1,
             BD=4096),
        ["hidden", "keys_value", "q_weight", "k_weight", "out", "prepared"],
        dict(num_warps=4),
    ),
    (
        FORWARD,
        "_conv_forward",
        dict(hidden=BF, value=BF, scale=F, gates=F, ids="*i64", prepared=F, out=BF, tokens="i32",
             positions="i32", window="i32", value_token="i32", value_row="i32", scale_token="i32",
             scale_row="i32"),
        dict(**SHAPE, SCALE_STEP=4, TAPS=4, DILATION=3, MASKED=True, RESIDUAL=True, BT=32, BD=64),
        ["hidden", "value", "prepared", "out", "value_token", "value_row"],
        dict(num_warps=4),
    ),
    (
        BACKWARD,
        "_gate_backward",
        dict(grad=BF, hidden=BF, keys_value=BF, prepared=F, coefficients=F, grad_value=BF,
             grad_hidden=BF, grad_keys_value=BF, partial=F, tokens="i32"),
        dict(**SHAPE, GROUPS=2, RESIDUAL=True, TILES=8, BT=2, BD=512),
        ["grad", "hidden", "keys_value", "prepared", "grad_value", "grad_hidden",
         "grad_keys_value", "partial"],
        dict(num_warps=2),
    ),
]  # fmt: skip


def test_compiles_for_hopper_with_wide_loads_and_no_spills(compile_ahead):
    for kernel, report in zip(KERNELS, compile_ahead(KERNELS), strict=True):
        assert report["cubin"] > 0 and report["wide_loads"] > 0, (kernel[1], report)
        assert report["local"] == 0, (kernel[1], report)


# small, or with so much of each channel in registers that a thread has but two to four of them
OTHER_KERNELS = [
    (
        FORWARD,
        "_walk_forward",
        dict(hidden=BF, keys_value=BF, q_weight=BF, k_weight=BF, conv_weight=BF, norm_weight=BF,
             prepared=F, ids="*i64", out=BF, gates=F, numbers=F, positions="i32", chunks="i32",
             length="i32", eps="fp32", conv_eps="fp32"),
        dict(**SHAPE, TAPS=4, DILATION=3, LINEAR=False, COPYSIGN=False, MASKED=True, RESIDUAL=True,
             BD=512),
        ["hidden", "keys_value", "q_weight", "k_weight", "norm_weight", "prepared", "out"],
        dict(num_warps=4),
    ),
    (
        BACKWARD,
        "_conv_backward",
        dict(grad=BF, keys_value=BF, numbers=F, ids="*i64", prepared=F, grad_value=BF, sums=F,
             partial=F, tokens="i32", positions="i32", chunks="i32", length="i32"),
        dict(**SHAPE, TAPS=4, DILATION=3, MASKED=True, GROUP=2, BD=128, AHEAD=4),
        ["grad", "keys_value", "prepared", "grad_value", "partial"],
        dict(num_warps=1),
    ),
    (
        BACKWARD,
        "_coefficients_of_sums",
        dict(sums=F, numbers=F, ids="*i64", coefficients=F, count="i32", conv_eps="fp32"),
        dict(**SHAPE, SLICES=20, SLICES_P=32, LINEAR=False, COPYSIGN=False, MASKED=True, BT=32),
        ["sums", "numbers", "coefficients"],
        dict(num_warps=4),
    ),
    (
        BACKWARD,
        "_coefficients_of_rows",
        dict(grad=BF, keys_value=BF, numbers=F, ids="*i64", coefficients=F, tokens="i32"),
        dict(**SHAPE, LINEAR=False, COPYSIGN=False, MASKED=True, BT=2, BD=512),
        ["grad", "keys_value", "numbers", "coefficients"],
        dict(num_warps=2),
    ),
    (
        BACKWARD,
        "_weight_gradients",
        dict(gate_partial=F, conv_partial=F, q_weight=BF, k_weight=BF, conv_weight=BF,
             norm_weight=BF, grad_q=BF, grad_k=BF, grad_conv=BF, grad_norm=BF, gate_rows="i32",
             conv_rows="i32"),
        dict(SIZE=SHAPE["M"] * SHAPE["D"], TAPS=4, BR=256, BC=16),
        ["gate_partial", "conv_partial", "q_weight", "k_weight", "conv_weight", "norm_weight"],
        dict(num_warps=4),
    ),
]  # fmt: skip


def test_other_kernels_compile_for_hopper_without_spills(compile_ahead):
    for kernel, report in zip(OTHER_KERNELS, compile_ahead(OTHER_KERNELS), strict=True):
        assert report["cubin"] > 0, (kernel[1], report)
        assert report["local"] == 0, (kernel[1], report)
