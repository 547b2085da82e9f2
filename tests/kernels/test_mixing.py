"""Hyper-connections: kernels equal their references, the references transformers' modules."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.deepseek_v4.modeling_deepseek_v4 import (
    DeepseekV4HyperConnection,
    DeepseekV4HyperHead,
)

from engram_kernels import mixing
from engram_kernels.backend import INTERPRETED
from engram_kernels.mixing import collapse_head, mix_in, mix_out
from engram_model.config import EngramConfig

EPS = 1e-6, 1e-5  # of the mixing and of the norm
DTYPES = [torch.float32, torch.bfloat16]
EXAMPLES = 14 if INTERPRETED else 6  # on a GPU each compiles its kernels


def site(batch, positions, streams, width, dtype=torch.float32, device="cpu", seed=0, rows=None):
    """Streams and parameters of one site; the mixes have a spread of about 1."""
    torch.manual_seed(seed)
    rows = (2 + streams) * streams if rows is None else rows
    length = streams * width
    inputs = [
        torch.randn(batch, positions, streams, width).to(dtype),
        torch.randn(rows, length) / math.sqrt(length),
        torch.randn(rows),
        torch.rand(1 if rows == streams else 3) + 0.5,
    ]
    return [tensor.to(device) for tensor in inputs]


def results(op, inputs, settings, backend, grads=None):
    """Outputs, and the gradients with respect to every input, of random ones of the outputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    outputs = op(*leaves, *settings, backend=backend)
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    torch.autograd.backward(outputs, [g.to(o.dtype) for g, o in zip(grads, outputs, strict=True)])
    return [output.detach() for output in outputs], [leaf.grad for leaf in leaves]


def compare(op, inputs, settings, shapes, check):
    """Triton on these inputs and torch on the same numbers in float64, forward and backward."""
    dtype, device = inputs[0].dtype, inputs[0].device
    grads = [torch.randn(shape).to(dtype).float().to(device) for shape in shapes]
    outputs, derived = results(op, inputs, settings, "triton", grads)
    wide = [tensor.double() for tensor in inputs]
    expected, expected_derived = results(op, wide, settings, "torch", grads)
    for actual, wanted in zip(outputs, expected, strict=True):
        check(actual, wanted)
    assert [g.dtype for g in derived] == [tensor.dtype for tensor in inputs]
    if (
        op is not mix_out
    ):  # single entries of base's and scale's may cancel to nothing: as one vector
        small = [torch.cat(sums[2:]) for sums in (derived, expected_derived)]
        derived, expected_derived = derived[:2], expected_derived[:2]
        check(*small, factor=4)  # few numbers, each the sum over all tokens of terms that cancel
    for actual, wanted in zip(derived, expected_derived, strict=True):
        check(actual, wanted)


shapes = {
    "batch": st.integers(0, 2),
    "positions": st.integers(1, 19),
    "streams": st.integers(1, 8),
    "width": st.sampled_from([16, 32, 48]),
    "dtype": st.sampled_from(DTYPES),
    "seed": st.integers(0, 1000),
}


@settings(max_examples=EXAMPLES, deadline=None)
@given(**shapes, iterations=st.sampled_from([1, 2, 20]))
def test_mix_in(batch, positions, streams, width, dtype, seed, iterations, device, assert_close):
    inputs = site(batch, positions, streams, width, dtype, device, seed)
    shape = [batch, positions, streams]
    outputs = shape, [*shape, streams], [batch, positions, width]
    compare(mix_in, inputs, (iterations, *EPS), outputs, assert_close)


@settings(max_examples=EXAMPLES, deadline=None)
@given(**shapes, written=st.sampled_from(DTYPES))
def test_mix_out(batch, positions, streams, width, dtype, seed, written, device, assert_close):
    torch.manual_seed(seed)
    shape = [batch, positions, streams, width]
    inputs = [
        torch.randn(shape).to(dtype),
        torch.randn(batch, positions, width).to(written),
        torch.randn(shape[:3]),
        torch.randn(*shape[:3], streams),
    ]
    compare(mix_out, [tensor.to(device) for tensor in inputs], (), [shape], assert_close)


@settings(max_examples=EXAMPLES // 2, deadline=None)
@given(**shapes)
def test_collapse_head(batch, positions, streams, width, dtype, seed, device, assert_close):
    inputs = site(batch, positions, streams, width, dtype, device, seed, rows=streams)
    compare(collapse_head, inputs, EPS, [[batch, positions, width]], assert_close)


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_gradients_of_the_references(streams):
    inputs = [tensor.double().requires_grad_() for tensor in site(1, 2, streams, 3)]
    assert torch.autograd.gradcheck(lambda *x: mix_in(*x, 3, *EPS, backend="torch"), inputs)
    out = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)

    def whole_site(streams, *parameters):
        post, comb, collapsed = mix_in(streams, *parameters, 2, *EPS, backend="torch")
        return mix_out(streams, out * collapsed, post, comb, backend="torch")

    assert torch.autograd.gradcheck(whole_site, inputs)
    head = [tensor.double().requires_grad_() for tensor in site(1, 2, streams, 3, rows=streams)]
    assert torch.autograd.gradcheck(lambda *x: collapse_head(*x, *EPS, backend="torch"), head)


def fill(module, tensors):
    for parameter, tensor in zip(module.parameters(), tensors, strict=True):
        parameter.data.copy_(tensor)
    return module.requires_grad_(False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_references_are_the_modules_of_transformers(dtype, assert_close):
    config = EngramConfig(hidden_size=32, hc_mult=4, rms_norm_eps=EPS[1], hc_eps=EPS[0])
    streams, *parameters = site(2, 5, 4, 32, dtype)
    module = fill(DeepseekV4HyperConnection(config), parameters)
    post, comb, collapsed = mix_in(streams, *parameters, config.hc_sinkhorn_iters, *EPS)
    for actual, wanted in zip((post, comb, collapsed), module(streams), strict=True):
        assert actual.dtype == wanted.dtype
        assert_close(actual, wanted)
    out = torch.randn(2, 5, 32).to(dtype)
    wanted = post.unsqueeze(-1) * out.float().unsqueeze(-2) + comb.mT @ streams.float()
    assert_close(mix_out(streams, out, post, comb), wanted)

    streams, *parameters = site(2, 5, 4, 32, dtype, rows=4)
    head = fill(DeepseekV4HyperHead(config), parameters)
    assert_close(collapse_head(streams, *parameters, *EPS), head(streams))


def test_autocast_changes_nothing(device):
    inputs = site(1, 3, 4, 32, device=device)
    out = torch.randn(1, 3, 32, device=device).bfloat16()
    for backend in ("torch", "triton"):
        plain = mix_in(*inputs, 3, *EPS, backend=backend)
        mixed = mix_out(inputs[0], out, *plain[:2], backend=backend)
        with torch.autocast(device, dtype=torch.bfloat16):
            cast = mix_in(*inputs, 3, *EPS, backend=backend)
            assert torch.equal(mixed, mix_out(inputs[0], out, *cast[:2], backend=backend))
        assert all(torch.equal(*pair) for pair in zip(plain, cast, strict=True))


@pytest.mark.parametrize("used", [0, 1, 2])
def test_one_result_alone(used, device, assert_close):
    """The others' gradients are then missing, not zero."""
    inputs = site(1, 5, 3, 16, device=device)
    derived = []
    for backend in ("triton", "torch"):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        mix_in(*leaves, 4, *EPS, backend=backend)[used].square().sum().backward()
        derived.append(torch.cat([leaf.grad.flatten() for leaf in leaves]))
    assert_close(*derived)


def test_strided_streams(device, assert_close):
    streams, *parameters = site(2, 6, 4, 32, device=device)
    views = streams.transpose(0, 1), streams[:, ::2], streams.flip(-1)[..., ::2].flip(-1)[..., :16]
    for view in views:
        length = view.shape[-2] * view.shape[-1]
        some = [parameters[0][:, :length], *parameters[1:]]
        for actual, wanted in zip(
            mix_in(view, *some, 2, *EPS, backend="triton"),
            mix_in(view, *some, 2, *EPS, backend="torch"),
            strict=True,
        ):
            assert_close(actual, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_operators(dtype, device):
    """Schema, fake tensors and autograd registration, as torch.compile needs them."""
    inputs = [tensor.requires_grad_() for tensor in site(1, 3, 2, 16, dtype, device)]
    post, comb, _ = (x.detach().requires_grad_() for x in mix_in(*inputs, 2, *EPS))
    out = torch.randn(1, 3, 16, device=device).bfloat16().requires_grad_()
    head = [tensor.requires_grad_() for tensor in site(1, 3, 2, 16, dtype, device, rows=2)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for op, arguments in (
        (mixing.MIX_IN, (*inputs, 2, *EPS)),
        (mixing.MIX_OUT, (inputs[0], out, post, comb)),
        (mixing.COLLAPSE_HEAD, (*head, *EPS)),
    ):
        torch.library.opcheck(
            op.operator, arguments, test_utils=(*checks, "test_aot_dispatch_dynamic")
        )
    x = inputs[0].detach()
    kept = [tensor.detach() for tensor in mixing.MIX_IN(*inputs, 2, *EPS)[3:]]
    rest = [x, *(tensor.detach() for tensor in inputs[1:]), *kept, 2, EPS[0]]
    grads = x[:, :, 0].clone(), post.detach(), comb.detach()
    torch.library.opcheck(mixing.MIX_IN_BACKWARD.operator, (*grads, *rest), test_utils=checks)
    others = [tensor.detach() for tensor in (out, post, comb)]
    torch.library.opcheck(mixing.MIX_OUT_BACKWARD.operator, (x, x, *others), test_utils=checks)


@pytest.mark.parametrize(
    ("streams", "width", "dtype", "words"),
    [
        (9, 16, torch.float32, "9 streams of width 16"),
        (2, 24, torch.float32, "2 streams of width 24"),
        (2, 16, torch.float64, "float64"),
    ],
)
def test_what_triton_does_not_take(streams, width, dtype, words, device):
    inputs = site(1, 2, streams, width, dtype, device)
    with pytest.raises(ValueError, match=words):
        mix_in(*inputs, 2, *EPS, backend="triton")
    post, comb, collapsed = mix_in(*inputs, 2, *EPS, backend="torch")
    with pytest.raises(ValueError, match=words):
        mix_out(inputs[0], collapsed, post, comb, backend="triton")


def test_parameters_of_other_streams(device):
    streams, *_ = site(1, 2, 2, 16, device=device)
    _, *parameters = site(1, 2, 3, 16, device=device)
    with pytest.raises(ValueError, match=r"fn \[15, 48\].* need \[8, 32\]"):
        mix_in(streams, *parameters, 2, *EPS, backend="triton")
    with pytest.raises(ValueError, match=r"fn \[15, 48\].* need \[2, 32\]"):
        collapse_head(streams, *parameters, *EPS, backend="triton")


def test_weights_of_other_streams(device):
    inputs = site(1, 2, 2, 16, device=device)
    post, comb, collapsed = mix_in(*inputs, 2, *EPS)
    for wrong in ((collapsed[..., :8], post, comb), (collapsed, post[:, :1], comb)):
        with pytest.raises(ValueError, match=r"streams \[1, 2, 2, 16\] need"):
            mix_out(inputs[0], *wrong, backend="triton")
    with pytest.raises(ValueError, match="0 Sinkhorn rounds"):
        mix_in(*inputs, 0, *EPS)


FLOAT = "*fp32"


def ahead(dtype: str, width: int, out: str = "*bf16") -> list[tuple]:
    """Every kernel at 4 streams, as the launches specialise it for many tokens."""
    vector = {"*fp32": 4, "*bf16": 8}[dtype]
    shape = dict(STREAMS=4, WIDTH=width)
    split = dict(EXACT=dtype == "*bf16", SPLIT=True)
    rounds = dict(ITERATIONS=20, PADDED=4)
    kernels = [
        (
            "mix_in_forward",
            dict(x=dtype, fn=FLOAT, base=FLOAT, scale=FLOAT, post=FLOAT, comb=FLOAT)
            | dict(collapsed=dtype, mixes=FLOAT, roots=FLOAT, hc_eps="fp32", norm_eps="fp32"),
            rounds | split | dict(TOKENS=64, SPAN=64, PIECE=8 * vector),
            dict(num_warps=4, num_stages=3),
        ),
        (
            "mix_out_forward",
            dict(x=dtype, out=out, post=FLOAT, comb=FLOAT, mixed=dtype),
            dict(TOKENS=vector, SPAN=128),
            dict(num_warps=4),
        ),
        (
            "mix_out_backward",
            dict(grad=dtype, x=dtype, out=out, post=FLOAT, comb=FLOAT, grad_x=dtype)
            | dict(grad_out=out, grad_post=FLOAT, grad_comb=FLOAT),
            dict(TOKENS=4, SPAN=8 * vector, VECTOR=vector),
            dict(num_warps=1),
        ),
        (
            "coefficients_backward",
            dict(x=dtype, grad=dtype, grad_post=FLOAT, grad_comb=FLOAT, mixes=FLOAT, roots=FLOAT)
            | dict(base=FLOAT, scale=FLOAT, weights=FLOAT, pre=FLOAT, pulls=FLOAT, sums=FLOAT)
            | dict(hc_eps="fp32"),
            rounds | dict(TOKENS=8, SPAN=8 * vector, VECTOR=vector),
            dict(num_warps=1),
        ),
        (
            "streams_backward",
            dict(x=dtype, grad=dtype, fn=FLOAT, weights=FLOAT, pre=FLOAT, pulls=FLOAT)
            | dict(grad_x=dtype, partial=FLOAT),
            split | dict(ROWS=24, PADDED_ROWS=32, TOKENS=64, SPAN=64),
            dict(num_warps=4, num_stages=2),
        ),
    ]
    return [
        (
            f"engram_kernels.mixing_{'backward' if 'backward' in kernel else 'forward'}",
            kernel,
            {**signature, "tokens": "i32"},
            shape | constants,
            [name for name, kind in signature.items() if kind.startswith("*")],
            options,
        )
        for kernel, signature, constants, options in kernels
    ]


def test_compiles_ahead_of_time(compile_ahead):
    """For an H200: loads of 16 bytes, nothing spilled; at d 128 in float32, at 2560 in bfloat16."""
    kernels = ahead("*fp32", 128) + ahead("*bf16", 2560)
    for kernel, report in zip(kernels, compile_ahead(kernels), strict=True):
        assert report["wide_loads"] > 0 and report["cubin"] > 0, (kernel[1], report)
        assert report["local"] == 0, (kernel[1], report)


def test_sums_of_parameters_compile_ahead_of_time(compile_ahead):
    names = ("partial", "sums", "grad_fn", "grad_base", "grad_scale")
    signature = dict.fromkeys(names, FLOAT) | dict(parts="i32", programs="i32")
    shape = dict(STREAMS=4, SIZE=24 * 4 * 2560, ROWS=24, PADDED_ROWS=32, BLOCK=128)
    shape |= dict(PARTS=16, HEIGHT=256)
    module = "engram_kernels.mixing_backward"
    kernel = (module, "parameters_backward", signature, shape, names, {"num_warps": 8})
    [report] = compile_ahead([kernel])
    assert report["local"] == 0 and report["cubin"] > 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("streams", "positions", "width"),
    [
        (4, 8501, 128),
        (4, 777, 2560),
        (4, 8501, 144),
        (1, 8501, 128),
        (2, 1, 64),
        (3, 1031, 48),
        (5, 8501, 64),
        (8, 8501, 128),
    ],
)
def test_large(streams, positions, width, dtype, device, assert_close):
    """Sizes at which tiles of 64 tokens, many programs and the tensor cores are used."""
    inputs = site(1, positions, streams, width, dtype, device)
    shape = [1, positions, streams]
    outputs = shape, [*shape, streams], [1, positions, width]
    compare(mix_in, inputs, (20, *EPS), outputs, assert_close)
    post, comb, collapsed = mix_in(*inputs, 20, *EPS)
    out = collapsed.bfloat16()
    compare(mix_out, [inputs[0], out, post, comb], (), [inputs[0].shape], assert_close)
    head = site(1, positions, streams, width, dtype, device, rows=streams)
    compare(collapse_head, head, EPS, [[1, positions, width]], assert_close)


@pytest.mark.gpu
def test_deterministic(device):
    inputs = site(4, 4099, 4, 128, device=device)
    grads = [torch.randn_like(output) for output in mix_in(*inputs, 20, *EPS)]
    runs = [results(mix_in, inputs, (20, *EPS), "triton", grads) for _ in range(2)]
    for first, second in zip(*([*outputs, *derived] for outputs, derived in runs), strict=True):
        assert torch.equal(first, second)


@pytest.mark.gpu
def test_captured_in_a_graph(device):
    inputs = [tensor.requires_grad_() for tensor in site(2, 512, 4, 128, device=device)]

    def step():
        post, comb, collapsed = mix_in(*inputs, 20, *EPS)
        mixed = mix_out(inputs[0], collapsed, post, comb)
        return mixed, *torch.autograd.grad(mixed.square().sum(), inputs)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        wanted = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for tensor in captured:
        tensor.detach().zero_()
    graph.replay()
    assert all(torch.equal(*pair) for pair in zip(captured, wanted, strict=True))


@pytest.mark.gpu
def test_beyond_31_bits(device, assert_close):
    """More than 2^31 numbers in the streams; a token's results are its own, so the last ones do."""
    streams, *parameters = site(1, 8, 4, 512, torch.bfloat16, device)
    many = torch.randn(1, 1_050_000, 4, 512, dtype=torch.bfloat16, device=device)
    many[:, -8:] = streams
    many.requires_grad_()
    assert many.numel() > 2**31
    post, comb, collapsed = mix_in(many, *parameters, 20, *EPS)
    mixed = mix_out(many, collapsed, post, comb)
    mixed[:, -8:].float().square().sum().backward()

    few = streams.float().requires_grad_()
    post, comb, collapsed = mix_in(few, *parameters, 20, *EPS, backend="torch")
    wanted = mix_out(few, collapsed, post, comb, backend="torch")
    wanted.square().sum().backward()
    assert_close(mixed[:, -8:], wanted)
    assert_close(many.grad[:, -8:], few.grad, factor=2)  # collapsed and both gradients are rounded
