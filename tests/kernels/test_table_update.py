"""Rows move as in a dense step on the whole table, whatever repeats or collides."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_kernels import table_update as tu
from engram_kernels.table_update import (
    Rule,
    TableGradient,
    dense_update,
    grad_norm_squared,
    merge,
    new_state,
    update_table,
)

RULES = [Rule(), Rule(beta1=0.0, beta2=0.999, eps=1e-8, rowwise=False), Rule(0.9, None)]
LR = 0.1


def draw(generator, rows: int, tokens: int, heads: int, width: int, ngrams: int, share: int):
    """Slots [tokens, 2 * heads] of few n-grams, whose heads read few rows, and gradients."""
    columns = 2 * heads
    pools = torch.randint(0, rows, (columns, share), generator=generator)
    chosen = torch.randint(0, share, (ngrams, columns), generator=generator)
    of_ngram = pools[torch.arange(columns), chosen]
    slots = of_ngram[torch.randint(0, ngrams, (tokens,), generator=generator)]
    return slots, torch.randn(tokens, columns, width, generator=generator)


def run(batches, table, rule, backend, device, scale=None):
    """Table, state and squared norms after one step a batch."""
    table = table.to(device, copy=True)
    state, norms = new_state(table, rule), []
    for slots, grads in batches:
        gradient = TableGradient(slots.to(device), grads.to(device, table.dtype))
        norms.append(grad_norm_squared(table, gradient, backend))
        update_table(table, gradient, state, LR, rule, scale, backend)
    return table, state, torch.stack(norms)


def dense(batches, table, rule, scale=1.0):
    """The same by the reference, a table of the same type rounded after every step."""
    exact = table.double()
    moments = {"first": torch.zeros_like(exact)}
    if rule.beta2 is not None:
        moments["second"] = torch.zeros_like(exact[:, : 1 if rule.rowwise else None])
    norms = []
    for step, (slots, grads) in enumerate(batches, 1):
        grads = grads.to(table.dtype).double().flatten(0, 1) * scale
        norms.append(torch.zeros_like(exact).index_add_(0, slots.flatten(), grads).square().sum())
        dense_update(exact, slots.flatten(), grads, moments, step, LR, rule)
        exact = exact.to(table.dtype).double()
    return exact, moments, torch.stack(norms).float()


def check(batches, table, rule, backend, device, assert_close):
    got, state, norms = run(batches, table, rule, backend, device)
    expected, moments, expected_norms = dense(batches, table, rule)
    assert_close(got - table.to(device), (expected - table).to(got.dtype))
    assert_close(norms, expected_norms)
    touched = torch.zeros(len(table), dtype=torch.bool)
    touched[torch.cat([slots.flatten() for slots, _ in batches])] = True
    assert torch.equal(got.cpu()[~touched], table[~touched])
    assert not state["first"].cpu()[~touched].any() and not state["row"].cpu()[~touched].any()
    latest = torch.zeros(len(table), dtype=torch.bool)
    latest[batches[-1][0].flatten()] = True
    assert_close(state["first"].cpu()[latest], moments["first"][latest].float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rule=st.sampled_from(RULES),
    rows=st.sampled_from([17, 4001]),
    tokens=st.integers(1, 37),
    heads=st.integers(1, 4),
    width=st.sampled_from([8, 16, 80]),
    ngrams=st.integers(1, 12),
    share=st.sampled_from([1, 4, 100]),
)
def test_equals_a_dense_step_on_every_row(
    device, assert_close, backend, dtype, seed, rule, rows, tokens, heads, width, ngrams, share
):
    generator = torch.Generator().manual_seed(seed)
    batches = [draw(generator, rows, tokens, heads, width, ngrams, share) for _ in range(2)]
    table = torch.randn(rows, width, generator=generator).to(dtype)
    check(batches, table, rule, backend, device, assert_close)


def test_reference_is_adam_where_every_row_is_touched():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    theirs = torch.nn.Parameter(table.clone())
    adam = torch.optim.Adam([theirs], lr=LR, betas=(0.9, 0.95), eps=1e-10)
    moments = {"first": torch.zeros_like(table), "second": torch.zeros_like(table)}
    for step in range(1, 5):
        theirs.grad = torch.randn(7, 5, generator=generator, dtype=torch.float64)
        dense_update(table, torch.arange(7), theirs.grad, moments, step, LR, Rule(rowwise=False))
        adam.step()
    assert torch.allclose(table, theirs, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("tokens", [0, 1, 700], ids=["empty", "one token", "all the same"])
def test_one_ngram(device, assert_close, backend, tokens):
    """700 entries of one run pass through more tiles than are read at a time."""
    generator = torch.Generator().manual_seed(tokens)
    table = torch.randn(12_000, 80, generator=generator)
    slots = torch.tensor([3, 7001, 3, 11_999]).expand(tokens, 4)
    batches = [(slots, torch.randn(tokens, 4, 80, generator=generator))]
    if tokens:
        check(batches, table, Rule(), backend, device, assert_close)
    else:
        got, state, norms = run(batches, table, Rule(), backend, device)
        assert torch.equal(got.cpu(), table) and norms.tolist() == [0] and state["step"] == 1


@pytest.mark.parametrize("lead", [15, 16, 17, 32])
def test_a_long_run_that_begins_at_any_place_of_a_tile(device, assert_close, lead):
    """What a tile holds for later ones is written even where there is nothing: memory that nobody
    wrote would be added to a run that begins where a tile does."""
    generator = torch.Generator().manual_seed(lead)
    slots = torch.cat([torch.arange(lead), torch.full((70,), 99)])[:, None]
    batches = [(slots, torch.randn(len(slots), 1, 80, generator=generator))]
    table = torch.randn(100, 80, generator=generator)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)  # new memory is then full of NaN
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        check(batches, table, Rule(), "triton", device, assert_close)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.mark.parametrize("long", [1, 90], ids=["short runs", "runs over several tiles"])
def test_ngrams_that_share_a_row_in_one_head_only(device, assert_close, long):
    generator = torch.Generator().manual_seed(long)
    table = torch.randn(4000, 80, generator=generator)
    ngrams = torch.tensor(
        [[10, 900, 2000, 3000], [11, 900, 2001, 3001], [12, 901, 2000, 3002], [10, 902, 2002, 3003]]
    )  # of the first order 0 and 1 share 900, 0 and 3 share 10
    slots = ngrams[torch.randint(0, 4, (2 * long + 1,), generator=generator)]
    batches = [(slots, torch.randn(*slots.shape, 80, generator=generator)) for _ in range(2)]
    check(batches, table, Rule(), "triton", device, assert_close)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_two_runs_agree_bit_for_bit(device, backend):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(4000, 16, generator=generator)
    batches = [draw(generator, 4000, 25, 2, 16, 8, 3) for _ in range(2)]
    first = run(batches, table, Rule(), backend, device)
    again = run(batches, table, Rule(), backend, device)
    assert torch.equal(first[0], again[0]) and torch.equal(first[2], again[2])
    assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_scale_multiplies_the_gradient(device, assert_close, backend):
    generator = torch.Generator().manual_seed(0)
    batches = [draw(generator, 50, 9, 2, 8, 5, 9)]
    table, half = torch.zeros(50, 8), torch.tensor(0.5, device=device)
    rule = Rule(0.5, None)  # Adam's step would not show it
    got, _, norms = run(batches, table, rule, backend, device, half)
    assert_close(got, dense(batches, table, rule, 0.5)[0].float())
    assert_close(norms, dense(batches, table, rule)[2])


def test_lookups_merge_into_one_gradient(assert_close):
    generator = torch.Generator().manual_seed(0)
    parts = [draw(generator, 60, tokens, 4, 8, 5, 9) for tokens in (3, 8)]
    table = torch.zeros(60, 8)
    merged = merge([TableGradient(*part) for part in parts])
    assert merged.slots.shape == (11 * 8,) and merged.rows.shape == (11 * 8, 8)
    update_table(table, merged, new_state(table, Rule(0.9, None)), LR, Rule(0.9, None))
    joined = [tuple(torch.cat(pair) for pair in zip(*parts, strict=True))]
    assert_close(table, dense(joined, torch.zeros(60, 8), Rule(0.9, None))[0].float())


def test_what_does_not_fit_is_refused():
    slots, grads = torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, 4, 8)
    with pytest.raises(ValueError, match=r"slots \(3, 4\) do not fit gradients \(2, 4, 8\)"):
        TableGradient(slots, grads[:2])
    table = torch.zeros(9, 16)
    with pytest.raises(ValueError, match="width 8 for a table of width 16"):
        update_table(table, TableGradient(slots, grads), new_state(table, Rule()), LR, Rule())


def test_operators_are_registered(device):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(400, 8, generator=generator).to(device)
    slots, grads = (part.to(device) for part in draw(generator, 400, 5, 2, 8, 4, 3))
    runs = tu._runs(TableGradient(slots, grads))
    checks = ("test_schema", "test_faketensor")  # the rest compares memory that nobody writes
    torch.library.opcheck(torch.ops.engram.sort_rows.default, runs[:2], test_utils=checks)
    torch.library.opcheck(torch.ops.engram.table_norm.default, runs)
    state, lr = new_state(table, Rule()), torch.tensor(LR, device=device)
    for second, beta2 in ((None, 0.95), (torch.zeros_like(table), 0.95), (None, None)):
        row = state["row"] if second is None and beta2 else state["row"][:, :1].clone()
        arguments = (table, state["first"], row, second, state["step"], *runs, lr, None)
        operator = torch.ops.engram.table_update.default
        torch.library.opcheck(operator, (*arguments, 0.9, beta2, 1e-10), test_utils=checks)


def kernel(rule: str, width: int, dtype: str, rowwise=True) -> tuple:
    """Arguments of `compile_ahead` for the table kernel."""
    signature = dict(
        **dict(order="*i64", sorted_slots="*i32", entries="i32"),
        **dict.fromkeys(("table", "grads"), f"*{dtype}"),
        **dict.fromkeys(("first", "row", "settings", "squares", "carry", "second"), "*fp32"),
        **dict.fromkeys(("log2_beta1", "log2_beta2", "blend1", "blend2", "eps"), "fp32"),
    )
    if rule == "norm":
        absent = ["table", "first", "row", "second", "settings"]
    else:
        absent = ["squares", *(["second"] if rowwise else [])]
    for name in absent:
        del signature[name]
    tile = tu._tile(width)
    constants = dict(
        **dict(RULE=rule, ROWWISE=rowwise, BY_BITS=False, BLOCK=tu.BLOCK),
        **dict(WIDTH=width, COLUMNS=tile["COLUMNS"], TILE=tile["TILE"]),
        **dict.fromkeys(absent),
    )
    aligned = [name for name, kind in signature.items() if kind in ("*i64", "*fp32", f"*{dtype}")]
    options = {"num_warps": tile["num_warps"]}
    return "engram_kernels.table_update", "_table_kernel", signature, constants, aligned, options


def test_kernels_compile_ahead_of_time(compile_ahead):
    cases = [
        kernel("adam", 80, "bf16"),
        kernel("adam", 80, "fp32", rowwise=False),
        kernel("momentum", 32, "fp32"),
        kernel("norm", 80, "bf16"),
        kernel("adam", 256, "bf16"),
    ]
    pointers = dict(carry="*fp32", grads="*bf16", order="*i64", sorted_slots="*i32")
    cases.append(
        (
            *("engram_kernels.table_update", "_carry_kernel", {**pointers, "entries": "i32"}),
            dict(WIDTH=80, COLUMNS=128, BLOCK=tu.BLOCK),
            *(["carry", "grads", "order"], {"num_warps": 1}),
        )
    )
    reports = compile_ahead(cases)
    assert all(report["wide_loads"] > 0 and report["local"] == 0 for report in reports)
    moves = [case[3].get("RULE") in ("adam", "momentum") for case in cases]
    assert all(
        report["wide_stores"] > 0 for report, moved in zip(reports, moves, strict=True) if moved
    )


def test_small_kernels_compile_ahead_of_time(compile_ahead):
    module = "engram_kernels.table_update"
    counted = dict.fromkeys(("settings", "step", "lr", "scale"), "*fp32")
    counted |= dict.fromkeys(("log_beta1", "log_beta2"), "fp32")
    reports = compile_ahead(
        [
            (module, "_settings_kernel", counted, dict(ADAM=True), [], {"num_warps": 1}),
        ]
    )
    assert all(report["local"] == 0 and report["cubin"] for report in reports)


def paper_batch(rows: int, tokens: int, distinct: int, seed: int = 0):
    """16 columns as in the paper's configuration: `distinct` n-grams an order, as often each."""
    generator = torch.Generator("cuda").manual_seed(seed)
    each = rows // 16  # every column has a part of the table to itself
    columns = torch.arange(16, device="cuda") * each
    of_ngram = torch.stack(
        [torch.randperm(each, device="cuda", generator=generator)[:distinct] for _ in range(16)], 1
    )
    slots = of_ngram[torch.arange(tokens, device="cuda") % distinct] + columns
    grads = torch.randn(tokens, 16, 80, device="cuda", generator=generator).bfloat16()
    return slots, grads


@pytest.mark.gpu
def test_rows_beyond_two_gigabytes(assert_close):
    """30 million rows of 80: offsets over 2^31 numbers; compared with the touched rows alone."""
    table = torch.zeros(30_000_000, 80, device="cuda", dtype=torch.bfloat16)
    rule = Rule(0.9, None)
    state = new_state(table, rule)
    slots, grads = paper_batch(len(table), 512, 100)
    slots = len(table) - 1 - slots
    update_table(table, TableGradient(slots, grads), state, LR, rule, backend="triton")
    rows, compact = slots.unique(return_inverse=True)
    small = torch.zeros(len(rows), 80, dtype=torch.float64, device="cuda")
    moments = {"first": torch.zeros_like(small)}
    flat = grads.flatten(0, 1).double()
    dense_update(small, compact.flatten(), flat, moments, 1, LR, rule)
    assert_close(table[rows], small.bfloat16())
    assert_close(state["first"][rows], small.float() / -LR)
    assert int(table.any(1).sum()) == len(rows)


@pytest.mark.gpu
def test_deterministic_and_equal_to_torch_at_full_size(assert_close):
    slots, grads = paper_batch(4_000_000, 32_768, 9000)
    slots[: len(slots) // 4] = slots[0]  # one n-gram at a quarter of the positions
    slots[-700::7, 3] = slots[0, 3]  # and a hundred that share a row in one head
    table = torch.randn(4_000_000, 80, device="cuda")
    results = []
    for backend in ("triton", "triton", "torch"):
        moved = table.clone()
        state = new_state(moved, Rule())
        gradient = TableGradient(slots, grads)
        norm = grad_norm_squared(moved, gradient, backend)
        update_table(moved, gradient, state, LR, Rule(), backend=backend)
        results.append((moved - table, state["first"], state["row"], norm))
    for first, again, other in zip(*results, strict=True):
        assert torch.equal(first, again)
        assert_close(first, other)


@pytest.mark.gpu
def test_a_graph_replays_the_step():
    slots, grads = paper_batch(1_000_000, 2048, 700)
    start = torch.randn(1_000_000, 80, device="cuda").bfloat16()
    tables, states = [start.clone() for _ in range(2)], [new_state(start, Rule()) for _ in range(2)]
    lr, scale = torch.tensor(LR, device="cuda"), torch.tensor(0.5, device="cuda")

    def step(index: int) -> None:
        gradient = TableGradient(slots, grads)
        grad_norm_squared(tables[index], gradient)
        update_table(tables[index], gradient, states[index], lr, Rule(), scale)

    step(1)  # compiles
    tables[1].copy_(start)
    for tensor in states[1].values():
        tensor.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(1)
    for count in range(3):
        lr.fill_(LR / (count + 1))
        graph.replay()
        step(0)
    assert states[1]["step"] == 3
    assert torch.equal(tables[0], tables[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.gpu
@pytest.mark.bench
def test_time_does_not_grow_with_the_table():
    """Prints microseconds a step at equal numbers of distinct rows, from 1M to 36M rows."""
    from triton.testing import do_bench

    for rows in (1_000_000, 4_000_000, 36_000_000):
        table = torch.zeros(rows, 80, device="cuda", dtype=torch.bfloat16)
        state, (slots, grads) = new_state(table, Rule()), paper_batch(rows, 32_768, 16_384)

        def step(table=table, state=state, slots=slots, grads=grads) -> None:
            update_table(table, TableGradient(slots, grads), state, LR, Rule())

        print(f"{rows:>11,} rows  {1000 * do_bench(step, return_mode='median'):7.0f} us")
