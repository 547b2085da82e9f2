"""One hyper-connection site: coefficients, collapse, expand and mix."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperConnection

from engram_kernels import mix_in, mix_out
from engram_model.bench.measure import Machine, Row, check, graphed_backward
from engram_model.config import EngramConfig

CASES = ((128, 65_536, torch.float32), (512, 32_768, torch.bfloat16), (2560, 8192, torch.bfloat16))


def site(machine: Machine) -> Iterator[Row]:
    """Forward and backward of a site whose block is the identity, against the eager one."""
    for width, tokens, dtype in CASES:
        config = EngramConfig(hidden_size=width, hc_mult=4, num_hidden_layers=1)
        module = DeepseekV4HyperConnection(config).cuda().float()
        with torch.no_grad():
            module.fn.normal_(std=0.02)
            module.base.normal_(std=0.5)
            module.scale.fill_(1.0)
        shape = (tokens // 1024, 1024, 4, width)
        streams = torch.randn(shape, device="cuda").to(dtype)
        eager, ours = _eager(module), _ours(module)
        yield from _rows(machine, f"d {width}, {tokens:,} tokens", module, streams, eager, ours)


def _eager(module) -> Callable:
    def run(streams: torch.Tensor) -> torch.Tensor:
        post, comb, out = module(streams)
        post, comb = post.to(streams.dtype), comb.to(streams.dtype)
        return post.unsqueeze(-1) * out.unsqueeze(-2) + comb.transpose(-1, -2) @ streams

    return run


def _ours(module) -> Callable:
    settings = (module.hc_sinkhorn_iters, module.hc_eps, module.input_norm.eps)

    def run(streams: torch.Tensor) -> torch.Tensor:
        post, comb, out = mix_in(
            streams, module.fn, module.base, module.scale, *settings, backend="triton"
        )
        return mix_out(streams, out, post, comb, backend="triton")

    return run


def _rows(machine: Machine, case: str, module, streams, eager: Callable, ours: Callable):
    note = check("ours", ours(streams), eager(streams.float()))
    size = streams.element_size() * streams.shape[-1] * streams[..., 0, 0].numel()
    with torch.no_grad():
        functions = {"ours": lambda: ours(streams), "eager": lambda: eager(streams)}
        if streams.shape[-1] == CASES[0][0]:  # compiling takes longer than all the rest
            functions["torch.compile"] = partial(torch.compile(eager, dynamic=False), streams)
        forward = machine.row(
            "site", f"{case}, forward", functions, bytes=size * (4 + 1 + 4 + 1 + 4), notes=[note]
        )
    yield forward.faster("eager", 4)
    functions = {
        "ours": _backward(ours, module, streams),
        "eager": _backward(eager, module, streams),
    }
    row = machine.row(
        "site", f"{case}, backward", functions, graphs=False, bytes=size * (4 * 6 + 4)
    )
    yield row.faster("eager", 4)


def _backward(function: Callable, module, streams: torch.Tensor) -> Callable:
    """Gradients of streams and of the module's weights, which are its own leaves."""

    def run(leaf: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        for (name, _), weight in zip(names, weights, strict=True):
            delattr(module, name)
            setattr(module, name, weight)
        return function(leaf)

    names = list(module.named_parameters(recurse=False))
    replay = graphed_backward(run, [streams, *(weight for _, weight in names)])
    for name, weight in names:
        delattr(module, name)
        setattr(module, name, weight)
    return replay
