"""Comparison of two reports: what is paired, what is decided, what differs between the runs."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

import engram_probes as ep
from engram_app.report import write_report
from engram_app.report.compare import Change, _change, compare, open_run, write_comparison
from engram_app.report.parts.base import KeyNumber
from engram_app.report.parts.suppress import Suppress, _retained
from engram_model.errors import CheckpointError, UsageError

DATA = "world:?seed=0&split=valid&tokens=2K"
WORDS = dict(
    probes=["gates", "lens", "suppress", "attribute"],
    data=DATA,
    tokens=1200,
    options={"suppress": {"tasks": ["copy", "reading"], "items": 6}, "attribute": {"draws": 10}},
)


@pytest.fixture(scope="module")
def runs(pair, tmp_path_factory):
    """The model against its twin; the same with another seed; the twin alone on other texts."""
    folder = tmp_path_factory.mktemp("runs")
    for name, words in (("first", {}), ("seed", {"seed": 1})):
        write_report(
            str(pair / "memory"), folder / name, twin=str(pair / "plain"), **{**WORDS, **words}
        )
    write_report(str(pair / "plain"), folder / "plain", probes=["lens"], data=DATA, tokens=1200)
    write_report(str(pair / "plain"), folder / "less", probes=["lens"], data=DATA, tokens=500)
    return folder


def changes(first, second) -> dict[str, Change]:
    return {change.number.id: change for change in compare(open_run(first), open_run(second))}


def test_a_report_does_not_differ_from_itself(runs):
    for change in changes(runs / "first", runs / "first").values():
        assert change.difference == 0
        assert change.verdict in ("undecided", "no interval")
        if change.paired:
            assert (change.low, change.high) == (0, 0)


def test_differences_on_the_same_texts_are_paired(runs):
    """Model less twin, each reported alone, is what the lens difference of the two says."""
    found = changes(runs / "first", runs / "plain")
    difference = ep.load_result(runs / "first" / "results" / "lens-difference")
    depth = found["lens.depth"]
    assert depth.paired
    assert (depth.difference, depth.low, depth.high) == pytest.approx(tuple(difference.settling))
    kl, half = difference.metrics.index("kl"), difference.means.shape[-1] // 2
    assert found["lens.kl"].low == pytest.approx(difference.low[kl, half])
    assert set(found) == {"lens.kl", "lens.depth"}


def test_other_texts_are_not_paired(runs):
    found = changes(runs / "plain", runs / "less")
    assert not any(change.paired for change in found.values())
    assert found["lens.kl"].low < found["lens.kl"].difference < found["lens.kl"].high


def test_items_are_paired(runs):
    first, second = (
        ep.load_result(runs / name / "results" / "suppress") for name in ("first", "seed")
    )
    assert first.item_ids != second.item_ids  # another seed asks other items
    assert not changes(runs / "first", runs / "seed")["suppress.change"].paired
    assert changes(runs / "first", runs / "first")["suppress.change"].paired


def test_what_items_have_in_common_cancels(runs):
    """Every answer loses one nat more in the second run, and no answer is right any more."""
    first = ep.load_result(runs / "first" / "results" / "suppress")
    after, credit = first.item_log_prob.copy(), np.zeros_like(first.item_credit)
    after[1] -= 1
    credit[0] = first.item_credit[0]
    second = replace(first, item_log_prob=after, item_credit=credit)
    found = Suppress().paired({"suppress": first}, {"suppress": second}, 0)
    for name in ("suppress.change", "suppress.copy.change", "suppress.reading.change"):
        assert found[name] == pytest.approx((1, 1, 1))
    kept = [_retained([first, second], task, 0) for task in range(len(first.tasks))]
    for task, value in enumerate(kept):
        of_task = first.item_task == task
        before, left = (first.item_credit[:, of_task] - first.chance[task]).sum(1)
        none = -first.chance[task] * of_task.sum()
        if before > 0:
            assert value[0] == pytest.approx((left - none) / before)


def test_independent_intervals_add_in_quadrature():
    ours = KeyNumber("x", "", 5.0, "", "", 4.0, 7.0)
    theirs = KeyNumber("x", "", 1.0, "", "", 0.25, 1.0 + 1.5)
    change = _change(ours, theirs, None)
    assert (change.difference, change.verdict) == (4.0, "more")
    assert change.low == pytest.approx(4 - np.hypot(1.0, 1.5))
    assert change.high == pytest.approx(4 + np.hypot(2.0, 0.75))
    assert _change(theirs, ours, None).verdict == "less"
    bare = KeyNumber("x", "", 1.0, "", "")
    assert _change(ours, bare, None).verdict == "no interval"


def test_command_writes_three_files(engram, runs, tmp_path):
    out = tmp_path / "compared"
    words = ("compare", runs / "first", "--with", runs / "seed", "--out", out)
    code, printed, _ = engram(*words)
    assert code == 0 and printed.splitlines()[0].startswith("number\tfirst\tsecond\tdifference")
    document = json.loads((out / "comparison.json").read_text())
    assert document["schema"] == "engram.report-comparison/1"
    assert ["seed", "0", "1"] in document["differing"]
    assert not any(name.startswith("model") for name, *_ in document["differing"])
    html, markdown = (out / "comparison.html").read_text(), (out / "comparison.md").read_text()
    for change in document["differences"]:
        assert f"<td>{change['id']}</td>" in html
        assert change["id"].replace("_", "\\_") in markdown
    figures = re.findall(r"<figure>.*?</figure>", html, flags=re.S)
    drawn = json.loads(re.search(r'id="figures">(.*?)</script>', html, flags=re.S)[1])
    assert len(figures) == len(drawn) and {"lens", "first-gates", "second-gates"} <= set(drawn)
    for figure in figures:
        assert len(re.search(r'role="img" aria-label="([^"]*)"', figure)[1]) > 40
        assert figure.count("<td>") >= 4
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    code, printed, _ = engram(*words, "--json")
    assert code == 0 and json.loads(printed)["differences"] == document["differences"]


def test_wrong_use(engram, runs, tmp_path):
    words = ("compare", runs / "first", "--with")
    code, _, err = engram(*words, tmp_path)
    assert code == 3 and "holds no report that can be read" in err
    code, _, err = engram(*words, runs / "seed", "--with", runs / "plain")
    assert code == 2 and "two at a time" in err
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds no report"):
        write_comparison(runs / "first", runs / "seed", tmp_path)
    old = tmp_path / "old"
    old.mkdir()
    (old / "report.json").write_text('{"schema": "engram.report/1"}')
    with pytest.raises(CheckpointError, match="this version compares engram"):
        write_comparison(old, runs / "first", None)
