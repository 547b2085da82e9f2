"""A table in host memory: bytes delivered, and a model's speed with its tables there."""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from engram_kernels.offload import PROGRAMS, HostTable, OffloadedTable, most_frequent
from engram_model.bench.measure import Machine, Row, check
from engram_model.bench.text import VOCABULARY, token_ids
from engram_model.hashing import NgramHasher
from engram_model.memory import EngramMemory
from engram_model.modeling import EngramForCausalLM
from engram_model.offload import HostEmbedding
from engram_model.presets import preset_config

WIDTH, HEADS, COLUMNS, CONTEXT = 80, 8, 16, 4096
ROW_BYTES = 2 * WIDTH
LAYERS = [1, 4]
SAMPLE = 28  # batches of earlier text from which the hot rows are taken


def offload(machine: Machine) -> Iterator[Row]:
    """20 GB of rows (ENGRAM_BENCH_HOST_GB: another size), then a model whose memories read them."""
    size = 0.01 if machine.quick else float(os.environ.get("ENGRAM_BENCH_HOST_GB", "20"))
    base = int(size * 1e9 / ROW_BYTES / COLUMNS)
    one = NgramHasher([1], 3, HEADS, [base] * 2, VOCABULARY, pad_id=2)
    config = _config(machine, base // len(LAYERS))
    parts = [config.hasher(pad_id=2).rows(layer) for layer in LAYERS]
    host = _filled(max(one.rows(1), sum(parts)), machine)
    yield from _deliveries(machine, host, one)
    layers = host.rows[: sum(parts)].split(parts)
    yield _model(machine, config, [HostTable(rows) for rows in layers])


def _filled(rows: int, machine: Machine) -> HostTable:
    """A pinned table of random numbers."""
    _say(f"filling {rows * ROW_BYTES / 1e9:.1f} GB of host memory")
    table = HostTable.empty(rows, WIDTH)
    table.fill(torch.randn(min(rows, 1 << 20), WIDTH).mul_(0.02).bfloat16())
    if machine.device == "cuda":
        _say("pinning it")
        table.pin()
    return table


def _say(text: str) -> None:
    print(f"offload: {text}", file=sys.stderr, flush=True)


def _tokens(machine: Machine) -> int:
    return 64 if machine.quick else 32_768


def _batches(machine: Machine) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What they are, ids of a batch, and ids of the text before it."""
    tokens = _tokens(machine)
    text, source = token_ids((SAMPLE + 1) * tokens)
    uniform = torch.randint(0, VOCABULARY, text.shape)
    for name, ids in ((source, text), ("uniform ids", uniform)):
        yield name, ids[-tokens:], ids[:-tokens]


def _slots(machine: Machine, hasher: NgramHasher, ids: Tensor, layer: int = 1) -> Tensor:
    shape = (-1, min(_tokens(machine), CONTEXT))
    return hasher.slots(ids.view(shape).to(machine.device), layer)


def _deliveries(machine: Machine, host: HostTable, hasher: NgramHasher) -> Iterator[Row]:
    """Bytes a second that reach the layer, by each way of bringing them."""
    for source, batch, before in _batches(machine):
        _say(f"ways to fetch, {source}")
        slots = _slots(machine, hasher, batch)
        hot = most_frequent(_slots(machine, hasher, before), _hot_rows(machine))
        expected = host.rows[slots.cpu()].to(machine.device)
        tables, notes = _ways(machine, host, hot), ["rows equal bit for bit"]
        for name, table in tables.items():
            assert torch.equal(table.fetch(slots), expected), f"{name}: other rows"
        traffic = tables["ours"].statistics()
        notes.append(f"{traffic.distinct / traffic.lookups:.0%} of rows distinct")
        notes.append(f"{traffic.hits / traffic.distinct:.0%} of these among {len(hot):,} hot rows")
        functions: dict[str, Callable] = {
            name: partial(table.fetch, slots) for name, table in tables.items()
        }
        functions |= _one_copy(machine, host, slots.numel())
        size = f"{COLUMNS} rows of {host.rows.nbytes / 1e9:.1f} GB"
        case = f"{source}, {batch.numel():,} tokens x {size}"
        row = machine.row("offload", case, functions, graphs=False, notes=notes)
        yield _with_rates(row, traffic.bytes_delivered, list(tables), source)


def _hot_rows(machine: Machine) -> int:
    return 256 if machine.quick else 1 << 20


def _ways(machine: Machine, host: HostTable, hot: Tensor) -> dict[str, OffloadedTable]:
    """The default with hot rows is "ours"; without a GPU there is one way only."""
    options: dict[str, dict] = {"ours": {}, "ours, no hot rows": {}}
    options["ours, every row"] = dict(deduplicate=False)
    if machine.device == "cuda":
        for programs in (16, 32, 64, 132):
            if programs != PROGRAMS:
                options[f"{programs} programs"] = dict(programs=programs)
        options["gather"] = dict(way="gather")
        options["gather, no hot rows"] = dict(way="gather")
        options["gather, every row"] = dict(way="gather", deduplicate=False)
    tables = {}
    for name, option in options.items():
        tables[name] = OffloadedTable(host, machine.device, **option)
        if "," not in name:
            tables[name].keep(hot)
    return tables


def _one_copy(machine: Machine, host: HostTable, rows: int) -> dict[str, Callable]:
    """As many bytes that lie side by side, by the copy engine: what the bus can do."""
    if machine.device != "cuda":
        return {}
    source = host.rows[:rows]
    target = torch.empty_like(source, device="cuda")
    return {"one copy of as many bytes": lambda: target.copy_(source, non_blocking=True)}


def _with_rates(row: Row, delivered: int, ways: list[str], source: str) -> Row:
    rates = {name: delivered / us / 1e3 for name, us in row.times.items()}
    row.notes += [f"{name}: {rate:.1f} GB/s delivered" for name, rate in rates.items()]
    best = max(ways, key=rates.__getitem__)
    row.notes.append(f"best way: {best}")
    if source != "uniform ids":
        row.goal(f"GB/s delivered ({best})", rates[best], 20)
    return row


def _config(machine: Machine, base: int):
    """Eight dense layers of four streams, a memory as configuration A's on two of them."""
    width = 64 if machine.quick else 1024
    return preset_config(
        "engram-nano",
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        kv_lora_rank=width // 4,
        qk_nope_head_dim=64,
        qk_rope_head_dim=32,
        v_head_dim=64,
        intermediate_size=4 * width,
        first_k_dense_replace=8,
        max_position_embeddings=CONTEXT,
        engram_layer_ids=LAYERS,
        engram_n_heads=HEADS,
        engram_head_dim=WIDTH,
        engram_vocab_size=base,
    )


@torch.no_grad()
def _model(machine: Machine, config, hosts: list[HostTable]) -> Row:
    """Forward passes with the tables on the GPU, prefetched, and fetched when they are needed."""
    _say("building a model")
    model = _resident_model(machine, config, hosts)
    _, batch, before = next(_batches(machine))
    ids = batch.view(-1, min(len(batch), CONTEXT)).to(machine.device)
    places = _places(machine, model, hosts, before)
    functions = {name: _forward(model, ids, *place) for name, place in places.items()}
    expected = functions["resident"]()
    notes = [check(name, function(), expected, 1e-3) for name, function in functions.items()]
    _say("forward passes")
    case = f"model of {len(LAYERS)} memories, {ids.numel():,} tokens forward"
    row = machine.row("offload", case, functions, graphs=False, notes=notes)
    rates = {name: ids.numel() / us for name, us in row.times.items()}
    row.notes += [f"{name}: {rate:.3f}M tokens/s" for name, rate in rates.items()]
    return row.goal("x resident", rates["ours"] / rates["resident"], 0.97)


def _resident_model(machine: Machine, config, hosts: list[HostTable]) -> EngramForCausalLM:
    before = torch.get_default_dtype()
    if machine.device == "cuda":
        torch.set_default_dtype(torch.bfloat16)  # tables of 4-byte numbers might not fit
    try:
        with torch.device(machine.device):
            model = EngramForCausalLM(config).eval().to(machine.device)
    finally:
        torch.set_default_dtype(before)
    for memory, host in zip(model.model.memories, hosts, strict=True):
        memory.embed.weight.copy_(host.rows)
        memory.conv.weight.normal_()  # zero in a new model: it would add nothing
    return model


Ahead = Callable[[EngramMemory, Tensor], tuple | None]


def _places(machine: Machine, model, hosts: list[HostTable], before: Tensor) -> dict[str, tuple]:
    """Name -> the memories' tables, and how a memory looks ahead (None: not)."""
    resident = [memory.embed for memory in model.model.memories]
    plain, kept = ([HostEmbedding.over(host).eval() for host in hosts] for _ in range(2))
    for memory, table in zip(model.model.memories, kept, strict=True):
        hasher = model.config.hasher(int(memory.compression[model.config.engram_pad_token_id]))
        table.keep(_slots(machine, hasher, before, memory.layer_id), _hot_rows(machine))
    return {
        "ours": (kept, _prefetched),
        "ours, no hot rows": (plain, _prefetched),
        "synchronous": (kept, _at_the_layer),
        "resident": (resident, None),
    }


def _prefetched(memory: EngramMemory, ids: Tensor):
    return memory.look_ahead(ids)


def _at_the_layer(memory: EngramMemory, ids: Tensor):
    """Slots known beforehand, rows asked for when the layer wants them."""
    slots = memory._slots(ids, None)
    return slots, _Late(memory, slots)


class _Late:
    """Pending rows that nobody has asked for yet."""

    def __init__(self, memory: EngramMemory, slots: Tensor) -> None:
        self.memory, self.slots = memory, slots

    def wait(self) -> Tensor:
        return self.memory.embed(self.slots)


def _forward(model, ids: Tensor, tables: list, ahead: Ahead | None) -> Callable:
    memories = model.model.memories

    def look_ahead(ids: Tensor, cache) -> dict:
        return {memory.layer_id: ahead(memory, ids) for memory in memories} if ahead else {}

    def run() -> Tensor:
        for memory, table in zip(memories, tables, strict=True):
            memory.embed = table
        model.model._look_ahead = look_ahead
        with torch.no_grad():
            return model(ids, use_cache=False, logits_to_keep=1).logits

    return run
