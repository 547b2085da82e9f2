"""Every stage runs and its sides compute the same; how fast is asserted nowhere."""

import numpy as np
import pytest
import torch

from engram_model.bench import STAGES
from engram_model.bench.measure import Machine, check
from engram_model.bench.results import run
from engram_model.bench.text import token_ids

HERE = [name for name, home in STAGES.items() if torch.cuda.is_available() or home == "cpu"]
SHRINK = [name for name, home in STAGES.items() if home in ("table", "offload", "cpu")]


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
    results = run(name, Machine("cpu", "a CPU", quick=True))
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


@pytest.fixture(scope="module")
def machine():
    return Machine.here()


@pytest.mark.bench
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", HERE)
def test_stage(name, machine):
    results = run(name, machine)
    assert results.error is None and results.rows
