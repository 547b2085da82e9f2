"""Rows of a host table: the same bits as `table[slots]`, whichever way they come."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_kernels import offload
from engram_kernels.offload import (
    HostTable,
    OffloadedTable,
    Traffic,
    distinct_slots,
    most_frequent,
    zero_copy_triton,
)

WAYS = ("gather", "zero_copy")  # the latter in Triton's interpreter where there is no GPU
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def random_table(rows: int, width: int, dtype=torch.bfloat16, seed: int = 0) -> HostTable:
    """Random bits: some rows hold NaN, infinity and negative zero."""
    generator = torch.Generator().manual_seed(seed)
    size = dtype.itemsize
    bits = torch.randint(0, 256, (rows, width * size), generator=generator, dtype=torch.uint8)
    return HostTable.copy_of(bits.view(dtype))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().view(BITS[tensor.element_size()])


def assert_same(rows: torch.Tensor, table: HostTable, slots: torch.Tensor) -> None:
    expected = bits(table.rows)[slots.cpu().long()]
    assert rows.dtype == table.rows.dtype and rows.device == slots.device
    assert torch.equal(bits(rows), expected)


@settings(max_examples=40, deadline=None)
@given(
    way=st.sampled_from(WAYS),
    rows=st.integers(1, 300),
    width=st.sampled_from([1, 3, 8, 32, 80]),
    shape=st.sampled_from([(1, 1), (0, 4), (1, 16), (2, 7, 3), (37,)]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float16]),
    integer=st.sampled_from([torch.int32, torch.int64]),
    hot=st.integers(0, 40),
    deduplicate=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_indexing(way, rows, width, shape, dtype, integer, hot, deduplicate, seed, device):
    table = random_table(rows, width, dtype, seed)
    offloaded = OffloadedTable(table, device, way, deduplicate)
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randint(0, rows, shape, generator=generator, dtype=integer).to(device)
    kept = torch.randint(0, rows, (hot,), generator=generator)
    offloaded.keep(kept)
    assert_same(offloaded.fetch(slots), table, slots)

    asked = slots.unique() if deduplicate else slots.flatten()
    hits = int(torch.isin(asked.cpu(), kept).sum())
    expected = Traffic(slots.numel(), asked.numel(), hits, width * dtype.itemsize)
    assert offloaded.statistics() == expected


@pytest.mark.parametrize("way", WAYS)
def test_many_batches(way, device):
    """Several under way at once; statistics add up; a hot set can change and go."""
    table = random_table(500, 16)
    offloaded = OffloadedTable(table, device, way, deduplicate=True)
    batches = [torch.randint(0, 500, (2, 9, 4), device=device) for _ in range(4)]
    pending = [offloaded.prefetch(slots) for slots in batches]
    for slots, rows in zip(batches, pending, strict=True):
        assert_same(rows.wait(), table, slots)
    before = offloaded.statistics(reset=True)
    distinct = sum(slots.unique().numel() for slots in batches)
    assert before == Traffic(4 * 72, distinct, 0, 32)
    assert before.bytes_delivered == 4 * 72 * 32 and before.bytes_moved == distinct * 32

    offloaded.keep(batches[0])
    assert_same(offloaded.fetch(batches[0]), table, batches[0])
    asked = batches[0].unique().numel()
    assert offloaded.statistics(reset=True) == Traffic(72, asked, asked, 32)
    offloaded.keep(torch.empty(0, dtype=torch.int64))
    assert_same(offloaded.fetch(batches[0]), table, batches[0])
    assert offloaded.statistics() == Traffic(72, asked, 0, 32)


def test_long_batches_pass_through_all_buffers(monkeypatch, device):
    monkeypatch.setattr(offload, "STAGING_BYTES", 7 * 16)
    table = random_table(400, 8)
    slots = torch.randperm(400).to(device)
    assert_same(OffloadedTable(table, device, "gather").fetch(slots), table, slots)


def test_small_batches_are_not_sorted(device):
    offloaded = OffloadedTable(random_table(50, 8), device, "gather")
    offloaded.fetch(torch.zeros(10, dtype=torch.int64, device=device))
    assert offloaded.statistics().distinct == 10
    offloaded.fetch(torch.zeros(offload.DEDUPLICATE_FROM, dtype=torch.int64, device=device))
    assert offloaded.statistics().distinct == 11


def test_under_inference_mode(device):
    table = random_table(50, 8)
    with torch.inference_mode():
        for way in WAYS:
            offloaded = OffloadedTable(table, device, way)
            slots = torch.arange(20, device=device)
            offloaded.keep(slots[:5])
            assert_same(offloaded.fetch(slots), table, slots)
    assert_same(offloaded.fetch(slots), table, slots)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60))
def test_distinct_slots(values):
    slots = torch.tensor(values)
    distinct, inverse, count = distinct_slots(slots)
    expected, expected_inverse = slots.unique(return_inverse=True)
    assert torch.equal(distinct[: int(count)], expected)
    assert not distinct[int(count) :].any()
    assert torch.equal(inverse, expected_inverse)


def test_most_frequent():
    slots = torch.tensor([[7, 3, 3], [9, 7, 1]])
    assert most_frequent(slots, 3).tolist() == [3, 7, 1]
    assert most_frequent(slots, 10).tolist() == [3, 7, 1, 9]


def test_tables_in_files(tmp_path, device):
    from safetensors.torch import save_file

    kept = random_table(60, 5)
    save_file({"other": torch.ones(3), "table": kept.rows}, tmp_path / "t.safetensors")
    numbers = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    np.save(tmp_path / "t.npy", numbers)
    slots = torch.randint(0, 60, (4, 3), device=device)

    mapped = HostTable.from_file(tmp_path / "t.safetensors", "table")
    offloaded = OffloadedTable(mapped, device)
    assert mapped.mapped and offloaded.way == "gather"
    assert_same(offloaded.fetch(slots), kept, slots)
    mapped = HostTable.from_file(tmp_path / "t.npy")
    assert torch.equal(mapped.rows, torch.from_numpy(numbers))
    assert_same(OffloadedTable(mapped, device).fetch(slots), mapped, slots)

    with pytest.raises(ValueError, match=r"make a HostTable.copy_of"):
        OffloadedTable(mapped, device, "zero_copy")
    in_memory = HostTable.copy_of(mapped.rows)
    assert_same(OffloadedTable(in_memory, device, "zero_copy").fetch(slots), mapped, slots)


def test_fill_repeats_a_block():
    table = HostTable.empty(11, 3, torch.float32)
    assert not table.rows.any()
    block = torch.randn(4, 3)
    table.fill(block)
    assert torch.equal(table.rows, block.repeat(3, 1)[:11])


def test_a_copy_shares_the_memory():
    table = random_table(4, 3)
    assert copy.deepcopy({"table": table})["table"] is table


def test_refusals(device):
    table = random_table(4, 3)
    with pytest.raises(ValueError, match="way 'fast': choose from auto, gather, zero_copy"):
        OffloadedTable(table, device, "fast")
    with pytest.raises(ValueError, match="slots on meta"):
        OffloadedTable(table, device).prefetch(torch.zeros(1, dtype=torch.int64, device="meta"))
    with pytest.raises(ValueError, match="contiguous matrix"):
        HostTable(torch.zeros(3, 4).T)
    with pytest.raises(ValueError, match="contiguous matrix"):
        HostTable(torch.zeros(3, 4, device="meta"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu(monkeypatch):
    assert OffloadedTable(random_table(4, 3), "cpu").way == "gather"
    monkeypatch.setattr("engram_kernels.backend.INTERPRETED", False)
    with pytest.raises(ValueError, match="needs a GPU"):
        OffloadedTable(random_table(4, 3), "cpu", "zero_copy")


def test_operator_is_registered_well(device):
    """With a table on the device: opcheck copies its arguments, and copies are not pinned."""
    table = torch.randn(30, 8, device=device)
    slots = torch.arange(10, dtype=torch.int32, device=device)
    count = torch.tensor([10], device=device)
    tally = torch.zeros(3, dtype=torch.int64, device=device)
    for hot in ((slots[:3], table[:3]), (None, None)):
        torch.library.opcheck(zero_copy_triton.operator, (table, slots, count, *hot, tally, 10, 2))


def test_compiles_for_a_gpu(compile_ahead):
    pointers = {
        **dict.fromkeys(("table", "slots", "hot_slots", "hot_rows", "rows"), "*i32"),
        **dict.fromkeys(("count", "near", "tally"), "*i64"),
    }
    reports = compile_ahead(
        [
            (
                "engram_kernels.offload",
                "_zero_copy_kernel",
                {**pointers, "lookups": "i32"},
                dict(HOT=hot, WORDS=words, WORDS_P=padded, ROWS=4096 // padded),
                list(pointers),
                {"num_warps": 8},
            )
            for hot, words, padded in ((True, 40, 64), (False, 40, 64), (True, 16, 16))
        ]
    )
    for report in reports:
        assert report["wide_loads"] >= 4 and report["wide_stores"] >= 4
        assert report["local"] == 0 and report["cubin"] > 0


@pytest.mark.gpu
@pytest.mark.parametrize("way", WAYS)
def test_rows_come_while_the_device_works(way):
    """Rows are there before work that was put on the main stream after their slots is done."""
    table = random_table(20_000, 80)
    offloaded = OffloadedTable(table, "cuda", way)
    slots = torch.randint(0, 20_000, (1024, 16), device="cuda")
    offloaded.fetch(slots)
    torch.cuda.synchronize()
    pending = offloaded.prefetch(slots)
    torch.cuda._sleep(4_000_000_000)  # some two seconds
    finished = torch.cuda.current_stream().record_event()
    _, done = pending.fetched.result()
    done.synchronize()
    assert not finished.query()
    assert_same(pending.wait(), table, slots)
    assert finished.query()  # reading the rows came after it, on the same stream


@pytest.mark.gpu
@pytest.mark.parametrize("way", WAYS)
def test_a_layer_waits_for_its_rows(way):
    """Slots that come late are waited for, and so are rows."""
    table = random_table(20_000, 80)
    offloaded = OffloadedTable(table, "cuda", way)
    slots = torch.zeros(1024, 16, dtype=torch.int64, device="cuda")
    offloaded.fetch(slots)
    late = torch.randint(0, 20_000, (1024, 16), device="cuda")
    torch.cuda._sleep(500_000_000)
    slots.copy_(late)
    rows = offloaded.prefetch(slots).wait().clone()
    assert_same(rows, table, late)


@pytest.mark.gpu
def test_in_a_cuda_graph():
    table = random_table(5_000, 80)
    offloaded = OffloadedTable(table, "cuda", "zero_copy", deduplicate=True)
    offloaded.keep(torch.arange(100))
    slots = torch.randint(0, 5_000, (64, 16), device="cuda")
    offloaded.fetch(slots)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows = offloaded.prefetch(slots).wait()
    offloaded.statistics(reset=True)
    for _ in range(3):
        slots.copy_(torch.randint(0, 5_000, (64, 16)))
        graph.replay()
        assert_same(rows, table, slots)
    assert offloaded.statistics().lookups == 3 * 64 * 16

    by_host = OffloadedTable(table, "cuda", "gather")
    refused = pytest.raises(ValueError, match="cannot be part of a CUDA graph")
    with torch.cuda.graph(torch.cuda.CUDAGraph()), refused:
        slots.add(0)
        by_host.prefetch(slots)


@pytest.mark.gpu
@pytest.mark.parametrize("way", WAYS)
def test_beyond_two_to_the_31_words(way):
    table = HostTable.empty(30_000_000, 80, torch.float32)
    places = torch.tensor([0, 26_843_546, 26_843_545, 29_999_999])
    table.rows[places] = torch.randn(4, 80)
    slots = places.repeat(50).cuda()
    assert_same(OffloadedTable(table, "cuda", way).fetch(slots), table, slots)
