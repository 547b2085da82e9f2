"""Every stage runs and its sides compute the same; how fast is asserted nowhere."""

import numpy as np
import pytest
import torch

from engram_model.bench import STAGES, counters
from engram_model.bench.measure import Machine, check
from engram_model.bench.results import run
from engram_model.bench.text import token_ids

HERE = [name for name, stage in STAGES.items() if torch.cuda.is_available() or not stage.gpu]
SHRINK = [
    name
    for name, stage in STAGES.items()
    if stage.module.rpartition(".")[2] in ("table", "offload", "cpu")
]


@pytest.fixture
def one_thread():
    """Threads that spin for each other take long where other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", SHRINK)
def test_stage_in_small(name, one_thread, monkeypatch):
    """On a CPU too, so that a mistake is not first seen on a GPU."""
    monkeypatch.setenv("ENGRAM_DEBUG", "1")
    results = run(STAGES[name], Machine("cpu", "a CPU", quick=True))
    assert results.rows and results.error is None
    document = results.to_dict("engram bench")
    assert all(row["times"]["ours"] > 0 for row in document["rows"])


def test_text_of_a_file_that_is_long_enough(tmp_path, monkeypatch):
    np.save(tmp_path / "ids.npy", np.arange(10, dtype=np.int32))
    monkeypatch.setenv("ENGRAM_BENCH_TOKENS", str(tmp_path / "ids.npy"))
    ids, source = token_ids(4, skip=5)
    assert source == "text" and ids.tolist() == [5, 6, 7, 8] and ids.dtype == torch.int64
    assert token_ids(11)[1] == "Zipf ids"


def test_sides_that_differ_are_no_result():
    assert check("same", torch.ones(3), torch.ones(3)).endswith("0.0e+00")
    with pytest.raises(AssertionError, match="so the sides differ"):
        check("ours", torch.ones(3), torch.zeros(3) + 2)


def test_counters_of_a_kernel():
    """As `ncu` prints them: what the program said, names, units, a line a kernel."""
    values = {name: "1" for name in counters.METRICS} | {
        counters.TIME: "2000", counters.READ: "3,000,000", counters.WRITTEN: "1000000",
    }  # fmt: skip
    names = ["ID", "Kernel Name", *values]
    lines = [names, [""] * len(names), ["0", "gate_forward(int)", *values.values()]]
    printed = "\n".join(",".join(f'"{cell}"' for cell in line) for line in lines)
    [kernel] = counters.parse(f"==PROF== Connected\n{printed}\n")
    row = counters.as_row(Machine("cuda", "a GPU", copy=4e12), "gate", kernel)
    assert row.case == "gate: gate_forward" and row.times == {"ours": 2.0}
    assert row.share == pytest.approx(0.5)  # 4 MB in 2 us, of 4 TB/s
    assert counters.parse("==PROF== nothing was profiled") == []


@pytest.fixture(scope="module")
def machine():
    return Machine.here()


@pytest.mark.bench
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", HERE)
def test_stage(name, machine):
    results = run(STAGES[name], machine)
    assert results.error is None and results.rows
