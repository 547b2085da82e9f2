"""Differences of two models: from folders whose numbers are known."""

import json

import numpy as np
import pytest

from engram_model.comparison import compare
from engram_model.errors import CheckpointError, UsageError

OPTIONS = dict(data="world:", suites=["knowledge"], facts=None, items=None, seed=0)


def folder(path, shift, right, options=OPTIONS, tokens=10, documents=40):
    """An evaluation: document i has loss (1 + i % 5 + shift) a token; `right` of ten items."""
    path.mkdir()
    spans = {"mechanism": {"fact": [4, 2, 8.0 + shift]}}
    lines = [
        dict(source="a" if i % 2 else "b", bytes=9, tokens=tokens, spans=spans,
             loss=tokens * (1 + i % 5 + shift))
        for i in range(documents)
    ]  # fmt: skip
    items = [
        dict(suite="knowledge", entity=f"p{i // 2}", tier=4, credit=float(i < right))
        for i in range(10)
    ]
    (path / "config.json").write_text(json.dumps({"options": options}))
    (path / "documents.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (path / "metrics.json").write_text("{}")
    return path


def test_texts_are_paired_so_a_small_shift_is_decided(tmp_path):
    better, worse = folder(tmp_path / "a", -0.01, 9), folder(tmp_path / "b", 0.0, 3)
    found = {difference.what: difference for difference in compare([better], [worse])}
    assert list(found)[:3] == ["loss, all", "loss, b", "loss, mechanism fact"]
    loss = found["loss, all"]
    assert loss.difference == pytest.approx(-0.01) and loss.verdict == "less" and loss.units == 40
    assert loss.low == pytest.approx(-0.01) and loss.first == pytest.approx(2.99)
    knowledge = found["accuracy, knowledge"]
    assert knowledge.difference == pytest.approx(0.6) and knowledge.units == 5
    assert found["accuracy, mechanism fact"].verdict == "undecided"
    assert found["accuracy, knowledge, tier 4"].first == 0.9


def test_seeds_that_differ_more_than_the_models_decide_nothing(tmp_path):
    first = [folder(tmp_path / f"a{i}", shift, 5) for i, shift in enumerate((-0.2, 0.1, 0.05))]
    second = [folder(tmp_path / f"b{i}", shift, 5) for i, shift in enumerate((0.1, -0.1, 0.01))]
    loss = compare(first, second)[0]
    assert loss.verdict == "undecided" and loss.low < 0 < loss.high
    assert np.ptp(loss.seeds_first) == pytest.approx(0.3)
    assert compare(first, second)[0] == loss  # the draws are seeded


def test_other_texts_are_refused(tmp_path):
    here = folder(tmp_path / "a", 0.0, 5)
    for name, other in (
        ("tokens", dict(tokens=11)),
        ("fewer", dict(documents=39)),
        ("options", dict(options={**OPTIONS, "seed": 1})),
    ):
        with pytest.raises(UsageError, match=r"not of the same texts|seed 1"):
            compare([here], [folder(tmp_path / name, 0.0, 5, **other)])
    with pytest.raises(CheckpointError, match="no finished evaluation"):
        compare([here], [tmp_path])
