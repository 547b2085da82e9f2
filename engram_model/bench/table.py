"""Gradients of looked-up rows -> the table moved, against dense AdamW and SparseAdam."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from engram_kernels import update_table
from engram_kernels.table_update import Rule, State, TableGradient, dense_update, new_state
from engram_model.bench.measure import Machine, Row, check, graphed
from engram_model.bench.text import VOCABULARY, token_ids, zipf_ids
from engram_model.hashing import NgramHasher

WIDTH, HEADS, COLUMNS, CONTEXT = 80, 8, 16, 4096  # of configuration A
LR = 1e-3
ROWWISE, EVERY_NUMBER = Rule(), Rule(rowwise=False)


def table(machine: Machine) -> Iterator[Row]:
    """One step of A's table in bfloat16, row-wise second moments; the others need float32."""
    tokens, base = (512, 1009) if machine.quick else (32_768, 2_262_000)
    hasher = NgramHasher([1], 3, HEADS, [base] * 2, VOCABULARY, pad_id=2)
    notes = [_same_as_dense(machine.device, rule) for rule in (ROWWISE, EVERY_NUMBER)]
    for source, ids in _streams(tokens):
        slots = hasher.slots(ids.view(-1, min(tokens, CONTEXT)), 1).to(machine.device)
        yield _against_peers(machine, source, slots.flatten(0, 1), hasher.rows(1), notes)


def _streams(tokens: int) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    yield "uniform ids", torch.randint(0, VOCABULARY, (tokens,), generator=generator)
    yield "Zipf ids", zipf_ids(tokens)
    text, source = token_ids(tokens)
    if source == "text":
        yield source, text


def _same_as_dense(device: str, rule: Rule) -> str:
    """Three steps of a small table whose rows n-grams share; the dense update is the reference."""
    rows, steps = 3000, 3
    ours = torch.zeros(rows, WIDTH, device=device)
    dense, state = ours.clone(), new_state(ours, rule)
    moments = {
        "first": torch.zeros_like(dense),
        "second": torch.zeros(rows, 1 if rule.rowwise else WIDTH, device=device),
    }
    for step in range(1, steps + 1):
        slots = torch.randint(0, rows, (64, COLUMNS), device=device)
        grads = torch.randn(64, COLUMNS, WIDTH, device=device)
        update_table(ours, TableGradient(slots, grads), state, LR, rule)
        dense_update(dense, slots.flatten(), grads.flatten(0, 1), moments, step, LR, rule)
    what = "row-wise" if rule.rowwise else "every number"
    return check(f"{steps} steps as the dense update, {what}", ours, dense, 1e-4)


class _Step:
    """A table of zeros, its state, and gradients for it: what a step moves can be told."""

    def __init__(self, slots: Tensor, rows: int, dtype: torch.dtype, rule: Rule) -> None:
        generator = torch.Generator(slots.device).manual_seed(1)
        grads = torch.randn(*slots.shape, WIDTH, device=slots.device, generator=generator)
        self.slots, self.grads, self.rule = slots, grads.to(dtype), rule
        self.weight = torch.zeros(rows, WIDTH, dtype=dtype, device=slots.device)
        self.state: State = new_state(self.weight, rule)
        self.lr = torch.full((), LR, device=slots.device)

    def __call__(self) -> None:
        """Grouping, sorting and the update; a new gradient each time, so that nothing is kept."""
        gradient = TableGradient(self.slots, self.grads)
        update_table(self.weight, gradient, self.state, self.lr, self.rule)

    def check(self) -> str:
        """The first step moved the rows that were looked up as it should, and of the others none in
        a sample."""
        distinct, inverse = self.slots.flatten().unique(return_inverse=True)
        moved = torch.zeros(len(distinct), WIDTH, device=self.slots.device)
        moments = {
            "first": torch.zeros_like(moved),
            "second": torch.zeros_like(moved[:, :1] if self.rule.rowwise else moved),
        }
        grads = self.grads.flatten(0, 1).float()
        dense_update(moved, inverse, grads, moments, 1, LR, self.rule)
        self()
        others = torch.randint(0, len(self.weight), (100_000,), device=self.slots.device)
        others = others[~torch.isin(others, distinct)]
        assert not self.weight[others].any(), "rows moved that were not looked up"
        assert bool((self.state["row"][distinct, 0] == 1).all()), "a row was not moved"
        what = f"rows moved in {str(self.weight.dtype).removeprefix('torch.')}"
        return check(what, self.weight[distinct], moved)

    def bytes(self) -> int:
        """Gradients and slots read; table, moments and last step of distinct rows read, written."""
        state = [tensor[:1].nbytes for name, tensor in self.state.items() if name != "step"]
        touched = self.slots.unique().numel() * (self.weight[:1].nbytes + sum(state))
        return self.grads.nbytes + self.slots.nbytes + 2 * touched


def _against_peers(
    machine: Machine, source: str, slots: Tensor, rows: int, notes: list[str]
) -> Row:
    ours = _Step(slots, rows, torch.bfloat16, ROWWISE)
    wide = _Step(slots, rows, torch.float32, EVERY_NUMBER)
    distinct = slots.unique().numel()
    notes = [*notes, ours.check(), wide.check(), f"{distinct:,} distinct rows"]
    like = "ours, float32, every number"  # the same types and moments as the peers
    functions: dict[str, Callable] = {"ours": ours, like: wide}
    if machine.device == "cuda":  # the peers keep the GPU busy for longer than their launches take
        functions |= {"ours, graph": graphed(ours), f"{like}, graph": graphed(wide)}
        like += ", graph"
    functions |= _that_run(_peers(wide), notes)
    case = f"{source}, {len(slots):,} tokens x {COLUMNS} rows of {rows:,}"
    row = machine.row("table", case, functions, graphs=False, bytes=ours.bytes(), notes=notes)
    for peer, bound in (("dense AdamW", 50), ("SparseAdam", 3)):
        if peer in row.times:
            faster = row.times[peer] / row.times[like]
            row.goal(f"x {peer}, {like.removeprefix('ours, ')}", faster, bound)
    return row


def _peers(step: _Step) -> dict[str, Callable]:
    """torch's optimisers on the same float32 table and moments, so that all fit side by side."""
    parameter, flat = nn.Parameter(step.weight), step.slots.flatten()
    grads = step.grads.flatten(0, 1)
    dense_adam = torch.optim.AdamW([parameter], LR, fused=True)
    sparse_adam = torch.optim.SparseAdam([parameter], LR)
    moments = {"exp_avg": step.state["first"], "exp_avg_sq": step.state["second"]}
    dense_adam.state[parameter] = {"step": torch.ones((), device=flat.device), **moments}
    sparse_adam.state[parameter] = {"step": 1, **moments}

    def dense() -> None:
        parameter.grad = torch.zeros_like(step.weight).index_add_(0, flat, grads)
        dense_adam.step()
        parameter.grad = None

    def sparse() -> None:
        shape = step.weight.shape
        parameter.grad = torch.sparse_coo_tensor(flat[None], grads, shape, check_invariants=False)
        sparse_adam.step()
        parameter.grad = None

    return {"dense AdamW": dense, "SparseAdam": sparse}


def _that_run(peers: dict[str, Callable], notes: list[str]) -> dict[str, Callable]:
    """Those that run here; why another does not is a note, such as too little memory."""
    running = {}
    for name, function in peers.items():
        try:
            function()
            running[name] = function
        except Exception as error:
            notes.append(f"{name} did not run: {(str(error).splitlines() or [''])[0]}")
    return running


def table_size(machine: Machine) -> Iterator[Row]:
    """A step with the same number of distinct rows in tables of 1M to 36M rows."""
    tokens = 64 if machine.quick else 32_768
    sizes = (1600, 4800) if machine.quick else (10**6, 36 * 10**5, 10**7, 36 * 10**6)
    first = None
    for rows in sizes:
        step = _Step(_all_distinct(tokens, rows, machine.device), rows, torch.bfloat16, ROWWISE)
        notes = [step.check()]
        functions: dict[str, Callable] = {"ours": step}
        if machine.device == "cuda":
            functions["ours, graph"] = graphed(step)
        case = f"{rows:,} rows, {step.slots.numel():,} of them looked up"
        row = machine.row(
            "table_size", case, functions, graphs=False, bytes=step.bytes(), notes=notes
        )
        first = first or row.times["ours"]
        yield row.goal("x the smallest", row.times["ours"] / first, 1.3, at_least=False)


def _all_distinct(tokens: int, rows: int, device: str) -> Tensor:
    """Slots [tokens, COLUMNS], each column in its own part of the table and no row twice."""
    part = rows // COLUMNS
    columns = [torch.randperm(part, device=device)[:tokens] + c * part for c in range(COLUMNS)]
    return torch.stack(columns, -1)
