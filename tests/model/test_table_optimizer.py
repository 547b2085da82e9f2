"""The tables' optimiser: recorded gradients in, rows moved, and at home in torch's machinery."""

import copy
import os
import subprocess
import sys

import pytest
import torch

from engram_kernels.table_update import Rule, dense_update, keeps_row_gradients, record
from engram_model.training.optimizer import MuonAdamW
from engram_model.training.table import TableAdam

ROWS, WIDTH, COLUMNS = 40, 8, 4


def draw(seed: int, tokens: int = 6):
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randint(0, ROWS, (2, tokens, COLUMNS), generator=generator)
    return slots, torch.randn(2, tokens, COLUMNS, WIDTH, generator=generator)


def new_table(dtype=torch.float32) -> torch.nn.Parameter:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.Parameter(torch.randn(ROWS, WIDTH, generator=generator).to(dtype))


def dense(table: torch.Tensor, steps: list[list[tuple]], rule: Rule, scale=1.0) -> torch.Tensor:
    """The table after steps of several lookups each, by the reference in float64."""
    table = table.detach().double()
    moments = {"first": torch.zeros_like(table)}
    if rule.beta2 is not None:
        moments["second"] = torch.zeros_like(table[:, : 1 if rule.rowwise else None])
    for step, lookups in enumerate(steps, 1):
        slots = torch.cat([slots.flatten() for slots, _ in lookups])
        grads = torch.cat([grads.flatten(0, 2) for _, grads in lookups]).double()
        dense_update(table, slots, grads * scale, moments, step, 0.1, rule)
    return table


class Lookup(torch.autograd.Function):
    """A lookup that records, as the memory's does."""

    @staticmethod
    def forward(ctx, table, slots):
        ctx.table, ctx.slots = table, slots
        return table.detach()[slots]

    @staticmethod
    def backward(ctx, grad):
        record(ctx.table, ctx.slots, grad)
        return None, None


@pytest.mark.parametrize(
    "options, rule",
    [
        ({}, Rule()),
        (dict(betas=(0.5, 0.9), eps=1e-3, rowwise=False), Rule(0.5, 0.9, 1e-3, False)),
        (dict(momentum=0.8), Rule(0.8, None)),
    ],
    ids=["row-wise", "by number", "momentum"],
)
def test_equals_the_dense_reference_with_accumulated_lookups(options, rule):
    """Two lookups in one backward pass and a second pass before the step."""
    table = new_table()
    optimizer = TableAdam([table], lr=0.1, **options)
    steps = [[draw(10 * step + part) for part in range(3)] for step in range(4)]
    expected = dense(table, steps, rule)
    for lookups in steps:
        first, second, third = ((Lookup.apply(table, s) * g).sum() for s, g in lookups)
        (first + second).backward()
        third.backward()
        assert table.grad is None and len(table.row_grads) == 3
        optimizer.step()
        assert table.row_grads == []
    assert torch.allclose(table.double(), expected, atol=1e-5)


def test_a_step_without_lookups_is_none():
    table = new_table()
    optimizer = TableAdam([table], lr=0.1)
    start = table.detach().clone()
    optimizer.step()
    assert optimizer.grad_norm_squared() is None and not optimizer.state
    record(table, *draw(0))
    optimizer.grad_norm_squared()
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(table, start)


def test_only_its_tables_record():
    table = new_table()
    assert not keeps_row_gradients(table)
    optimizer = TableAdam([table])
    assert keeps_row_gradients(table)
    table.sum().backward()
    with pytest.raises(RuntimeError, match="dense gradient"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        TableAdam([table], momentum=1.0)


@pytest.mark.parametrize("moment_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rowwise", [True, False])
def test_resumed_run_equals_an_unbroken_one(tmp_path, rowwise, moment_dtype):
    """A bfloat16 table, whose float32 state torch would round on loading."""

    def new():
        table = new_table(torch.bfloat16)
        options = dict(rowwise=rowwise, moment_dtype=moment_dtype)
        return table, TableAdam([table], lr=0.01, **options)

    def steps(table, optimizer, seeds):
        for seed in seeds:
            slots, grads = draw(seed)
            record(table, slots, grads.bfloat16())
            optimizer.step()

    table, optimizer = new()
    steps(table, optimizer, range(3))
    torch.save((table.detach(), optimizer.state_dict()), tmp_path / "saved.pt")
    steps(table, optimizer, range(3, 6))
    resumed, fresh = new()
    weights, state = torch.load(tmp_path / "saved.pt", weights_only=True)
    resumed.data.copy_(weights)
    fresh.load_state_dict(state)
    steps(resumed, fresh, range(3, 6))
    assert torch.equal(table, resumed)
    for name, tensor in optimizer.state[table].items():
        assert torch.equal(tensor, fresh.state[resumed][name])
        assert tensor.dtype == fresh.state[resumed][name].dtype


def recorded_model(make_model, seed: int):
    """A model whose weights have gradients, its tables' recorded; and its tables."""
    model = make_model(1)
    optimizer = MuonAdamW(model, lr=0.01)
    tables = [memory.embed.weight for memory in model.model.memories]
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if not keeps_row_gradients(weight):
            weight.grad = torch.randn(weight.shape, generator=generator)
    lookups = []
    for table in tables:
        slots = torch.randint(0, len(table), (1, 9, COLUMNS), generator=generator)
        slots[0, 1:4] = slots[0, 0]
        grads = 10 * torch.randn(*slots.shape, table.shape[1], generator=generator)
        record(table, slots, grads)
        lookups.append((slots, grads))
    return model, optimizer, tables, lookups


def test_clipping_counts_the_tables(make_model):
    model, optimizer, tables, lookups = recorded_model(make_model, 0)
    twin = copy.deepcopy(model)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        theirs.grad = None if ours.grad is None else ours.grad.clone()
    for memory, (slots, grads) in zip(twin.model.memories, lookups, strict=True):
        memory.embed.weight.grad = torch.zeros_like(memory.embed.weight).index_add_(
            0, slots.flatten(), grads.flatten(0, 2)
        )
    expected = torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
    norm = optimizer.clip_grad_norm_(1.0)
    assert float(norm) == pytest.approx(float(expected), rel=1e-5) and norm > 10
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert ours.grad is None or torch.allclose(ours.grad, theirs.grad, rtol=1e-4)
    [part] = [part for part in optimizer.parts if isinstance(part, TableAdam)]
    assert float(part.scale) == pytest.approx(1 / float(norm), rel=1e-4)
    optimizer.step()
    assert part.scale is None
    for table, memory in zip(tables, twin.model.memories, strict=True):
        assert torch.allclose(part.state[table]["first"], 0.1 * memory.embed.weight.grad, rtol=1e-4)
        assert not torch.equal(table, memory.embed.weight)


def test_schedule_and_checkpoint_reach_the_tables(make_model):
    _, optimizer, tables, _ = recorded_model(make_model, 0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    optimizer.step()
    schedule.step()
    [part] = [part for part in optimizer.parts if isinstance(part, TableAdam)]
    assert [group["lr"] for group in part.param_groups] == [0.05 / 2]
    _, other, other_tables, _ = recorded_model(make_model, 1)
    other.load_state_dict(optimizer.state_dict())
    [loaded] = [part for part in other.parts if isinstance(part, TableAdam)]
    assert loaded.param_groups[0]["lr"] == 0.05 / 2
    for table, twin in zip(tables, other_tables, strict=True):
        assert torch.equal(part.state[table]["first"], loaded.state[twin]["first"])


PROCESS = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from test_table_optimizer import TableAdam, draw, new_table, record

dist.init_process_group("gloo")
rank, table = dist.get_rank(), new_table()
optimizer = TableAdam([table], lr=0.1)
for step in range(3):
    if step < 2 or rank == 0:  # in the last step one process looked nothing up
        record(table, *draw(10 * step + rank, 3 + 2 * rank))
    norm = optimizer.grad_norm_squared()
    optimizer.step()
torch.save((table.detach(), norm), f"{sys.argv[2]}/{rank}.pt")
dist.destroy_process_group()
"""


def test_processes_apply_the_mean_of_their_gradients(tmp_path):
    """Of different sizes, and one without any: both tables are equal bit for bit."""
    (tmp_path / "two.py").write_text(PROCESS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    ended = subprocess.run(
        [*launch, str(tmp_path / "two.py"), __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]
    steps = [[draw(10 * step + rank, 3 + 2 * rank) for rank in range(2)] for step in range(3)]
    del steps[2][1]
    expected = dense(new_table(), steps, Rule(), scale=0.5)
    assert torch.allclose(results[0][0].double(), expected, atol=1e-5)
    slots, grads = steps[2][0]
    total = torch.zeros(ROWS, WIDTH).index_add_(0, slots.flatten(), grads.flatten(0, 2) / 2)
    assert float(results[0][1]) == pytest.approx(float(total.square().sum()), rel=1e-5)
