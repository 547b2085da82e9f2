"""Every stage runs in small, its sides compute the same; how fast is asserted nowhere."""

import pytest
import torch

from engram_model.bench.measure import Machine
from engram_model.bench.results import run
from engram_probes.bench import STAGES


@pytest.mark.parametrize("name", STAGES)
def test_stage_in_small(name, monkeypatch):
    monkeypatch.setenv("ENGRAM_DEBUG", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results = run(STAGES[name], Machine("cpu", "a CPU", quick=True))
    torch.set_num_threads(threads)
    assert results.rows and results.error is None
    assert all(row.times["ours"] > 0 and len(row.times) == 2 and row.goals for row in results.rows)


@pytest.mark.bench
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", STAGES)
def test_stage(name):
    results = run(STAGES[name], Machine.here())
    assert results.error is None and results.rows
