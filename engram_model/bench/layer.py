"""One whole memory layer, ids and streams in, streams out."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from engram_kernels.table_update import TableGradient
from engram_model.bench.baselines import eager_inject, eager_slots
from engram_model.bench.measure import Machine, Row, check, graphed
from engram_model.config import EngramConfig
from engram_model.memory import EngramMemory

# name -> width, heads, row width, base of the primes, tokens
CASES = {"A": (2560, 8, 80, 2_262_000, 32_768), "B": (512, 4, 32, 200_000, 4096)}
COMPRESSED = 99_092


def memory_layer(width: int, heads: int, row: int, base: int, streams: int = 4) -> EngramMemory:
    """A memory with random weights in bfloat16 on the GPU, made there."""
    config = EngramConfig(
        vocab_size=COMPRESSED,
        hidden_size=width,
        num_hidden_layers=2,
        hc_mult=streams,
        engram_layer_ids=[1],
        engram_n_heads=heads,
        engram_head_dim=row,
        engram_vocab_size=base,
    )
    with torch.device("meta"):
        memory = EngramMemory(config, 1)
    memory = memory.to_empty(device="cuda").to(torch.bfloat16)
    for name, constant in memory.hash_constants().items():
        setattr(memory, name, constant.cuda())
    memory.compression = torch.arange(COMPRESSED, dtype=torch.int32, device="cuda")
    with torch.no_grad():
        for weight in memory.parameters():
            weight.normal_(std=0.05 if weight.ndim == 2 else 0.5)
        memory.q_weight.fill_(1.0)
        memory.k_weight.fill_(1.0)
    return memory


def _eager(memory: EngramMemory) -> Callable:
    """The public demo's way: a Linear a key and one for the value."""
    config = memory.config
    constants = [(memory.multipliers, memory.primes, memory.offsets)]
    weights = memory.wkv.weight.split(config.hidden_size)
    dilation = config.engram_dilation or 1

    def run(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        slots = eager_slots(ids, constants, config.engram_pad_token_id)[0]
        rows = F.embedding(slots, memory.embed.weight).flatten(-2)
        keys_value = torch.stack([F.linear(rows, weight) for weight in weights], 2)
        return eager_inject(
            hidden, keys_value, memory.q_weight, memory.k_weight, memory.conv.weight,
            memory.conv_norm.weight, dilation,
        )  # fmt: skip

    return run


def launches(function: Callable) -> int:
    """Kernels that one call starts; copies and fills by the copy engine are not counted."""
    function()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.cuda.synchronize()
    events = [e for e in profile.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    return sum(e.count for e in events if not e.key.startswith(("Memset", "Memcpy")))


def _floor(machine: Machine, memory: EngramMemory, tokens: int) -> float:
    """Microseconds: gather and injection at the copy bandwidth, the product at its own rate."""
    config = memory.config
    looked_up = config.engram_columns * config.engram_head_dim
    out = (config.hc_mult + 1) * config.hidden_size
    moved = 2 * 2 * looked_up + 2 * config.hidden_size * (3 * config.hc_mult + 1)
    product = 2 * looked_up * out / machine.matrix
    return tokens * (moved / machine.copy + product) * 1e6


@torch.no_grad()
def _forward(machine: Machine, name: str) -> Row:
    *shape, tokens = CASES[name]
    memory, positions = memory_layer(*shape), min(tokens, 4096)
    ids = torch.randint(0, COMPRESSED, (tokens // positions, positions), device="cuda")
    hidden = torch.randn(*ids.shape, 4, shape[0], device="cuda").bfloat16()
    eager = _eager(memory)

    def ours() -> torch.Tensor:
        return memory(hidden, ids, residual=True)

    note = check("ours", ours(), eager(hidden, ids))
    count = launches(ours)
    functions = {
        "ours": ours,
        "eager": lambda: eager(hidden, ids),
        "ours, graph": graphed(ours),
        "eager, graph": graphed(lambda: eager(hidden, ids)),
    }
    case = f"{name}: d {shape[0]}, 4 streams, {tokens:,} tokens, forward"
    notes = [note, f"{count} launches"]
    row = machine.row("layer", case, functions, graphs=False, notes=notes)
    floor = _floor(machine, memory, tokens)
    row.notes.append(f"floor {floor:.1f} us")
    row.goal("launches", count, 4, at_least=False)
    if name == "A":
        row.goal("x floor", row.times["ours"] / floor, 1.25, at_least=False)
    row.faster("eager", 4 if name == "A" else 5)
    graphs = row.times["eager, graph"] / row.times["ours, graph"]
    return row.goal("x eager, both graphs", graphs, 4 if name == "A" else 5)


def _backward(machine: Machine, name: str) -> Row:
    *shape, tokens = CASES[name]
    memory, positions = memory_layer(*shape), min(tokens, 4096)
    recorded: list[TableGradient] = []
    memory.embed.weight.row_grads = recorded
    ids = torch.randint(0, COMPRESSED, (tokens // positions, positions), device="cuda")
    hidden = torch.randn(*ids.shape, 4, shape[0], device="cuda").bfloat16().requires_grad_()
    weights = [w for n, w in memory.named_parameters() if not n.startswith("embed")]
    rows: list[torch.Tensor] = []
    memory.wkv.register_forward_pre_hook(lambda module, given: rows.append(given[0]))
    out = memory(hidden, ids, residual=True)
    grad = torch.randn_like(out)

    def ours() -> tuple:
        recorded.clear()
        return torch.autograd.grad(out, [hidden, rows[0], *weights], grad, retain_graph=True)

    count = launches(ours)
    case = f"{name}: d {shape[0]}, 4 streams, {tokens:,} tokens, backward"
    notes = [f"{count} launches"]
    row = machine.row("layer", case, {"ours": ours}, graphs=False, notes=notes)
    return row.goal("launches", count, 6, at_least=False)


def layer(machine: Machine) -> Iterator[Row]:
    """Lookup, product, gate and convolution together."""
    for name in CASES:
        yield _forward(machine, name)
        yield _backward(machine, name)
