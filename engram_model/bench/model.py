"""Whole models: decoding and training steps, with memory and without, plain and with kernels."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from engram_model.backend import set_backend
from engram_model.bench.measure import Machine, Row
from engram_model.bench.text import token_ids
from engram_model.modeling import EngramForCausalLM
from engram_model.presets import preset_config
from engram_model.training.experts import autocast_experts
from engram_model.training.graphed import NO_MASK, CaptureError, GraphedStep, Inputs
from engram_model.training.optimizer import MuonAdamW

Backward = Callable[[Inputs], torch.Tensor]
BATCH, CONTEXT, STEPS, WARM, NEW = 64, 1024, 14, 5, 32
CURVE, AVERAGED = (200, 32, 1024), 20  # steps, sequences, tokens of each; steps a mean is taken of
RATE, WARMUP = 8e-3, 10  # learning rate, and steps until it is reached
WITHOUT: dict[str, Any] = dict(engram_layer_ids=[])


def nano(dtype=torch.float32, seed: int = 0, **fields) -> EngramForCausalLM:
    """engram-nano with random weights; experts a multiple of 8 wide, as grouped products want."""
    torch.manual_seed(seed)
    config = preset_config("engram-nano", moe_intermediate_size=64, **fields)
    return EngramForCausalLM(config).to("cuda", dtype)


def decode(machine: Machine) -> Iterator[Row]:
    """Tokens a second of `generate`, with the memory and without."""
    models = {
        "ours": nano(torch.bfloat16).eval(),
        "without memory": nano(torch.bfloat16, **WITHOUT).eval(),
    }
    for batch in (1, 64):
        ids = torch.randint(3, 4096, (batch, 64), device="cuda")
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(3):
            for name, model in models.items():
                times[name].append(_generated(model.eval(), ids))
        best = {name: min(found[1:]) * 1e6 for name, found in times.items()}
        spread = {name: max(found[1:]) / min(found[1:]) for name, found in times.items()}
        row = Row("decode", f"engram-nano, batch {batch}, {NEW} tokens", best, spread)
        row.notes.append(f"{batch * NEW / best['ours'] * 1e6:,.0f} tokens/s")
        yield row.goal("x without memory", row.ratio("without memory"), 0.95)


@torch.no_grad()
def _generated(model: EngramForCausalLM, ids: torch.Tensor) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=2)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def step(machine: Machine) -> Iterator[Row]:
    """Training steps of a four-stream nano model: kernels against plain operations.

    Launched by the CPU, in turn; then with both passes as a CUDA graph, one side after the other,
    as a graph keeps all the memory it needs.
    """
    models = {
        "ours": nano(),
        "plain": nano(),
        "ours, without memory": nano(**WITHOUT),
    }
    set_backend(models["plain"], "torch")
    steps = {name: _step(model, backward_of(model)) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(STEPS):
        for name, one in steps.items():
            times[name].append(one())
    steps.clear()
    failed = []
    for name, model in models.items():
        try:
            one = _step(model, GraphedStep(model, backward_of(model)))
            times[f"{name}, graph"] = [one() for _ in range(STEPS)]
        except CaptureError as error:
            failed.append(f"{name}: {error}")
    best = {name: statistics.median(found[WARM:]) * 1e6 for name, found in times.items()}
    spread = {name: max(found[WARM:]) / min(found[WARM:]) for name, found in times.items()}
    row = Row("step", f"engram-nano, {BATCH} x {CONTEXT} tokens, float32, autocast", best, spread)
    rates = {name: BATCH * CONTEXT / us for name, us in best.items()}
    row.notes += [f"{name}: {rate:.3f}M tokens/s" for name, rate in rates.items()] + failed
    extra = _extra(machine, models["ours"])
    for way in ("", ", graph"):
        ours, plain, without = (best.get(name + way) for name in models)
        if ours and plain:
            row.goal(f"x plain{way}", plain / ours, 2)
        if ours and without:
            row.goal(f"of what the memory's bytes allow{way}", (without + extra) / ours, 0.9)
    yield row


def backward_of(model: EngramForCausalLM) -> Backward:
    """Function: `ids` [batch, positions] -> loss; a forward and a backward pass."""
    autocast_experts(model)

    def backward(inputs: Inputs) -> torch.Tensor:
        ids = inputs["ids"]
        with torch.autocast(ids.device.type, torch.bfloat16):
            loss = model(ids, labels=ids, attention_mask=NO_MASK, use_cache=False).loss
        loss.backward()
        return loss.detach()

    return backward


def _step(model: EngramForCausalLM, backward: Backward) -> Callable[[], float]:
    """Function that trains a step and gives its seconds."""
    optimizer = MuonAdamW(model.train(), 1e-3)
    ids = torch.randint(3, 4096, (BATCH, CONTEXT), device="cuda")

    def run() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        train_on(ids, model, backward, optimizer)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


def train_on(
    ids: torch.Tensor, model: EngramForCausalLM, backward: Backward, optimizer: MuonAdamW
) -> torch.Tensor:
    """One step; the loss before it."""
    loss = backward({"ids": ids})
    optimizer.clip_grad_norm_(1.0)
    optimizer.step()
    model.zero_grad(set_to_none=True)
    return loss


def curves(machine: Machine) -> Iterator[Row]:
    """The first 200 steps of engram-nano, with the kernels and plain, from two random starts."""
    steps, batch, context = CURVE
    ids, source = token_ids(steps * batch * context)
    batches = (ids % 4096).view(steps, batch, context).to(machine.device)
    notes = []
    try:
        losses, seconds = _curves(batches, graph=True)
    except CaptureError as error:
        notes.append(f"launched by the CPU: {error}")
        losses, seconds = _curves(batches, graph=False)
    between = max(_apart(losses["ours", seed], losses["plain", seed]) for seed in (0, 1))
    noise = min(_apart(losses[name, 0], losses[name, 1]) for name in ("ours", "plain"))
    row = Row("curves", f"{steps} steps of {batch} x {context}, {source}", seconds, {}, notes=notes)
    for (name, seed), curve in losses.items():
        told = ", ".join(f"{loss:.4f}" for loss in curve.view(-1, AVERAGED).mean(1).tolist())
        row.notes.append(f"{name}, seed {seed}, means of {AVERAGED} steps: {told}")
    row.notes.append(
        f"largest distance of two seeds {noise:.4f} nats, of the two ways {between:.4f}"
    )
    yield row.goal("distance over that of two seeds", between / noise, 1.0, at_least=False)


def _curves(batches: torch.Tensor, graph: bool) -> tuple[dict, dict]:
    """Losses by way and seed, and microseconds a step by way."""
    losses, times = {}, {}
    for seed in (0, 1):
        for name, backend in (("ours", "triton"), ("plain", "torch")):
            start = time.perf_counter()
            losses[name, seed] = _curve(batches, seed, backend, graph)
            times[name] = (time.perf_counter() - start) / len(batches) * 1e6
    return losses, times


def _curve(batches: torch.Tensor, seed: int, backend: str, graph: bool) -> torch.Tensor:
    """The loss of each step, [steps] on the CPU."""
    model = nano(seed=seed).train()
    set_backend(model, backend)
    backward = GraphedStep(model, backward_of(model)) if graph else backward_of(model)
    optimizer = MuonAdamW(model, RATE)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP, total_iters=WARMUP)
    losses = []
    for ids in batches:
        losses.append(train_on(ids, model, backward, optimizer))
        warm.step()
    return torch.stack(losses).float().cpu()


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of two curves, means of AVERAGED steps."""
    return float((a - b).view(-1, AVERAGED).mean(1).abs().max())


def _extra(machine: Machine, model: EngramForCausalLM) -> float:
    """Microseconds that the memory's fewest bytes and products take in a step: float32 streams,
    keys and value in bfloat16; forward 3 and backward 5 passes of what it reads and writes."""
    config = model.config
    streams, width = config.hc_mult, config.hidden_size
    looked_up = config.engram_columns * config.engram_head_dim
    moved = width * (2 * streams * 4 + (streams + 1) * 2) + looked_up * 4 * 2
    moved += width * (3 * streams * 4 + 2 * (streams + 1) * 2) + looked_up * 4 * 4
    products = 3 * 2 * looked_up * (streams + 1) * width
    tokens = BATCH * CONTEXT
    return tokens * (moved / machine.copy + products / machine.matrix) * 1e6
