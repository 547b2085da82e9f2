"""Gate, and gate + norm + convolution + SiLU + residual, forward and backward."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from engram_kernels import inject
from engram_model.bench.baselines import eager_conv, eager_gate, eager_inject, tile_kernels_gate
from engram_model.bench.measure import Machine, Row, check, graphed_backward

STREAMS, TAPS, DILATION = 4, 4, 3
WIDTHS, TOKENS = (512, 2560, 4096, 5120), (4096, 32_768)


def inputs(width: int, tokens: int, dtype=torch.bfloat16, grad: bool = False) -> list:
    """hidden, keys_value, the norms' weights, the convolution's and its norm's."""
    positions = min(tokens, 4096)
    shape = (tokens // positions, positions)
    made = [
        torch.randn(*shape, STREAMS, width, device="cuda"),
        torch.randn(*shape, STREAMS + 1, width, device="cuda"),
        torch.rand(STREAMS, width, device="cuda") + 0.5,
        torch.rand(STREAMS, width, device="cuda") + 0.5,
        torch.randn(STREAMS * width, 1, TAPS, device="cuda") / 2,
        torch.rand(STREAMS, width, device="cuda") + 0.5,
    ]
    return [tensor.to(dtype).requires_grad_(grad) for tensor in made]


def _gate(*given) -> torch.Tensor:
    return inject(*given, residual=True, backend="triton")[0]


def _inject(*given) -> torch.Tensor:
    return inject(*given, dilation=DILATION, residual=True, backend="triton")[0]


def _eager_inject(hidden, keys_value, q_weight, k_weight, conv, norm) -> torch.Tensor:
    return eager_inject(hidden, keys_value, q_weight, k_weight, conv, norm, DILATION)


def _compiled(function: Callable) -> Callable:
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def _tile(note: list[str]) -> Callable | None:
    gate, why = tile_kernels_gate()
    if gate is None:
        note.append(why)
        return None
    return lambda hidden, keys_value, q_weight, k_weight: gate(
        hidden, keys_value.flatten(-2), q_weight, k_weight, 1e-6, 1e-20, None
    )


def gate(machine: Machine) -> Iterator[Row]:
    """hidden + gate * value."""
    for width in WIDTHS:
        for tokens in TOKENS:
            row = _gate_row(machine, width, tokens)
            row.faster("tile-kernels", 1.15 if width in (512, 5120) else 1.0)
            if (width, tokens) == (2560, 32_768):
                row.goal("share of copy", row.share, 0.92)
            yield row


@torch.no_grad()
def _gate_row(machine: Machine, width: int, tokens: int) -> Row:
    given = inputs(width, tokens)[:4]
    notes: list[str] = []
    if tokens <= 4096:
        exact = eager_gate(*(tensor.float() for tensor in given))
        notes.append(check("ours", _gate(*given), exact))
    functions: dict[str, Callable] = {"ours": partial(_gate, *given)}
    tile = _tile(notes)
    if tile:
        notes.append(check("tile-kernels", tile(*given), _gate(*given)))
        functions["tile-kernels"] = partial(tile, *given)
    functions["torch.compile"] = partial(_compiled(eager_gate), *given)
    functions["eager"] = partial(eager_gate, *given)
    moved = tokens * width * 2 * (3 * STREAMS + 1)
    case = f"d {width}, {tokens:,} tokens"
    return machine.row("gate", case, functions, bytes=moved, notes=notes)


def _gradients(function: Callable, given: list) -> tuple:
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    torch.manual_seed(0)
    grad = torch.randn(leaves[0].shape, device="cuda").to(leaves[0].dtype)
    return torch.autograd.grad(function(*leaves), leaves, grad)


def _check_gradients(ours: Callable, eager: Callable, given: list) -> list[str]:
    exact = _gradients(eager, [tensor.float() for tensor in given])
    pairs = zip(_gradients(ours, given), exact, strict=True)
    return [check("ours", got, wanted, 5e-2) for got, wanted in pairs]


def gate_backward(machine: Machine) -> Iterator[Row]:
    """Gradients of the gate."""
    tokens = 32_768
    for width in (512, 2560, 5120):
        notes = _check_gradients(_gate, eager_gate, inputs(width, 512)[:4])
        given = inputs(width, tokens)[:4]
        functions = {"ours": graphed_backward(_gate, given)}
        tile = _tile(notes)
        if tile:
            functions["tile-kernels"] = graphed_backward(tile, given)
        functions["torch.compile"] = graphed_backward(_compiled(eager_gate), given)
        moved = tokens * width * 2 * (5 * STREAMS + 2)
        case = f"d {width}, {tokens:,} tokens"
        row = machine.row("gate_backward", case, functions, graphs=False, bytes=moved, notes=notes)
        yield row.faster("tile-kernels", 1.0).faster("torch.compile", 1.0)


def _forward_row(machine: Machine, width: int, tokens: int) -> Row:
    given = inputs(width, tokens)
    notes: list[str] = []
    functions: dict[str, Callable] = {"ours": lambda: _inject(*given)}
    tile = _tile(notes)
    with torch.no_grad():
        small = inputs(width, 512)
        exact = _eager_inject(*(tensor.float() for tensor in small))
        notes.append(check("ours", _inject(*small), exact))
        if tile:
            conv = _compiled(lambda h, sum_, w, n: sum_ + eager_conv(sum_ - h, w, n, DILATION))
            functions["tile-kernels, compiled convolution"] = lambda: conv(
                given[0], tile(*given[:4]), *given[4:]
            )
            functions["tile-kernels, compiled convolution"]()
        else:
            torch._dynamo.reset()
        whole = torch.compile(_eager_inject, dynamic=False)
        functions["torch.compile"] = lambda: whole(*given)
        functions["eager"] = lambda: _eager_inject(*given)
        moved = tokens * width * 2 * (3 * STREAMS + 1)
        case = f"d {width}, {tokens:,} tokens"
        row = machine.row("inject_forward", case, functions, bytes=moved, notes=notes)
    if tokens == 32_768:
        row.goal("x floor", row.times["ours"] / row.floor, 1.25, at_least=False)
    return row.faster("tile-kernels, compiled convolution", 2).faster("torch.compile", 3)


def inject_forward(machine: Machine) -> Iterator[Row]:
    """Gate, norm, convolution, SiLU and residual."""
    for width, tokens in ((2560, 32_768), (512, 32_768), (512, 4096)):
        yield _forward_row(machine, width, tokens)


def inject_backward(machine: Machine) -> Iterator[Row]:
    """Gradients of the same."""
    for width, tokens in ((2560, 32_768), (512, 32_768)):
        notes = _check_gradients(_inject, _eager_inject, inputs(width, 512))
        given = inputs(width, tokens)
        functions = {
            "ours": graphed_backward(_inject, given),
            "torch.compile": graphed_backward(_compiled(_eager_inject), given),
        }
        moved = tokens * width * 2 * (5 * STREAMS + 2)
        case = f"d {width}, {tokens:,} tokens"
        row = machine.row(
            "inject_backward", case, functions, graphs=False, bytes=moved, notes=notes
        )
        yield row.goal("share of copy", row.share, 0.75).faster("torch.compile", 2.5)
