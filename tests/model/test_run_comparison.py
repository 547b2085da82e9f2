"""Two models compared by their training logs."""

import json

import pytest
from scipy.stats import t

from engram_model.errors import CheckpointError, UsageError
from engram_model.run_comparison import compare_runs, is_run


def run(folder, seed, loss, step=30, **options):
    folder.mkdir()
    given = dict(tokens=1000, context=None, batch=2, accumulate=1, valid="v", seed=seed, lr=1e-2)
    log = {
        "preset": "engram-tiny",
        "overrides": {},
        "options": {**given, **options},
        "step": step,
        "history": [{"eval_loss": 9.0, "step": 20}, {"eval_loss": loss, "step": 30}],
    }
    (folder / "training_log.json").write_text(json.dumps(log))
    return folder


def runs(path, name, losses, **options):
    return [run(path / f"{name}{i}", i, loss, **options) for i, loss in enumerate(losses)]


def test_welch_interval_over_seeds(tmp_path):
    first, second = runs(tmp_path, "a", [1.0, 1.2]), runs(tmp_path, "b", [2.0, 2.1, 2.3])
    found = compare_runs(first, second)
    assert is_run(first[0]) and not is_run(tmp_path)
    assert found.difference == pytest.approx(1.1 - 2.1333333)
    spread_a, spread_b = 0.02 / 2, 0.0233333 / 3  # variances over seeds
    freedom = (spread_a + spread_b) ** 2 / (spread_a**2 / 1 + spread_b**2 / 2)
    half = t.ppf(0.975, freedom) * (spread_a + spread_b) ** 0.5
    assert found.high - found.low == pytest.approx(2 * half, rel=1e-5)
    assert found.verdict == "less" and found.seeds_second == [2.0, 2.1, 2.3] and found.units == 5
    near = compare_runs(first, runs(tmp_path, "c", [1.15, 1.02]))
    assert near.verdict == "undecided"


def test_what_cannot_be_compared(tmp_path):
    good, one = runs(tmp_path, "a", [1.0, 1.2]), runs(tmp_path, "b", [1.0])
    with pytest.raises(UsageError, match="two seeds or more"):
        compare_runs(good, one)
    with pytest.raises(UsageError, match="each once; given are"):
        compare_runs(good, [*one, *one])
    with pytest.raises(UsageError, match="was trained with tokens 2000"):
        compare_runs(good, runs(tmp_path, "c", [1.0, 1.1], tokens=2000))
    other = run(tmp_path / "d", 7, 1.0)
    log = json.loads((other / "training_log.json").read_text())
    (other / "training_log.json").write_text(json.dumps({**log, "preset": "moe-tiny"}))
    with pytest.raises(UsageError, match="no seeds of one model"):
        compare_runs(good, [*one, other])
    broken = run(tmp_path / "e", 0, 1.0, step=40)  # stopped before its last evaluation
    with pytest.raises(CheckpointError, match="valid loss at its end"):
        compare_runs(good, [broken, *one])
