"""Training logs, evaluations, comparisons, the paper's figures, and the views of results."""

import json
from pathlib import Path

import numpy as np
import pytest

from engram_model.errors import CheckpointError
from engram_probes.paper import read_paper_figure
from engram_probes.records import read_comparison, read_evaluation, read_training
from engram_probes.results import KINDS, load_result
from engram_probes.views import CHOICES, NEEDS, views

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PAPER = sorted((RESULTS / "paper").glob("*.json"))


def write(file, **document):
    file.write_text(json.dumps(document))
    return file


def log(file, losses, **more):
    history = [
        {"step": i + 1, "loss": loss + 1, "eval_loss": loss} for i, loss in enumerate(losses)
    ]
    settings = {"data": "d", "options": {}, "overrides": {}, "device": "cpu"}
    return write(file, history=history, tokens_per_step=1_000_000, **settings, **more)


def test_losses_of_two_trainings_are_drawn_over_tokens_read(tmp_path):
    first, second = (
        read_training(log(tmp_path / f"{name}.json", losses))
        for name, losses in (("one", [3.0, 2.0]), ("two", [4.0, 3.5, 3.0]))
    )
    assert first.summary() == "The valid loss of one is 2.000 nats after 2.0M tokens."
    lines = first.figure("eval_loss", [second]).data
    assert [line.name for line in lines] == ["one", "two"]
    assert list(lines[1].x) == [1, 2, 3] and list(lines[1].y) == [4, 3.5, 3]
    assert list(first.figure("loss").data[0].y) == [4, 3]
    assert "logged no loss" in read_training(log(tmp_path / "none.json", [])).summary()


def test_an_evaluation_has_losses_and_suites_with_intervals(tmp_path):
    source = {"loss": 2.0, "low": 1.5, "high": 2.5, "documents": 3}
    task = {"all": {"all": {"chance_corrected": 0.5, "corrected_low": 0.25, "corrected_high": 1}}}
    write(tmp_path / "metrics.json", data="d", sources={"all": source}, tasks={"copy": task})
    write(tmp_path / "config.json", checkpoint="<b>", started="2026-01-02T03:04", command="c")
    found = read_evaluation(tmp_path)
    assert (
        found.date == "2026-01-02" and "2.000 nats a token (95% 1.500 to 2.500)" in found.summary()
    )
    (loss,), (accuracy,) = found.figure().data, found.figure("tasks").data
    assert (loss.x, loss.error_x.array, loss.error_x.arrayminus) == ((2.0,), (0.5,), (0.5,))
    assert accuracy.error_x.arrayminus == (0.25,)
    assert list(found.to_frame()["value"]) == [2.0, 0.5]


def test_a_comparison_says_its_verdict(tmp_path):
    row = {"what": "loss", "difference": 0.5, "low": -0.25, "high": 1.0, "verdict": "undecided"}
    found = read_comparison(write(tmp_path / "a-b.json", command="c", differences=[row]))
    assert found.summary() == "a-b: loss is +0.500 (95% -0.250 to +1.000): undecided."
    assert found.figure().data[0].x == (0.5,)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 99_999, '{"history": 3}', '"\\ud800"'])
def test_what_is_something_else_is_one_line(tmp_path, text):
    for name in ("x.json", "metrics.json", "config.json"):
        (tmp_path / name).write_text(text)
    file = tmp_path / "x.json"
    for read, path in ((read_training, file), (read_comparison, file), (read_paper_figure, file),
                       (read_evaluation, tmp_path)):  # fmt: skip
        with pytest.raises(CheckpointError) as refused:
            read(path)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("file", PAPER, ids=lambda file: file.stem)
def test_figures_of_the_paper_are_drawn_and_say_how_they_were_read(file):
    paper = read_paper_figure(file)
    assert paper.source == "arXiv 2601.07372" and len(paper.read) > 10
    assert paper.figure().layout.meta["alt"] and not paper.to_frame().empty
    assert all((RESULTS / name).exists() for name in paper.ours)
    assert paper.ours or "Not measured here yet" in paper.ours_says


def test_the_papers_alignment_line_is_that_of_its_matrix():
    """Equation 9 with k = 5, recomputed from the colours, gives the line that is drawn."""
    from engram_probes.alignment import soft_alignment

    for name in ("fig4b", "fig4c"):
        paper = read_paper_figure(RESULTS / "paper" / f"{name}.json")
        assert paper.matrix.shape == (30, 30)
        apart = np.abs(soft_alignment(paper.matrix, 5) - paper.soft)
        assert np.median(apart) < 0.02 and apart.max() < 1


def test_views_are_those_that_a_result_has_something_for():
    assert set(CHOICES) <= set(KINDS) and set(NEEDS) <= set(CHOICES)
    assert list(views(load_result(RESULTS / "cka-mini"))) == ["cka", "neighbours"]
    for name in ("cka-second", "gates-frequency", "gates-mini", "lens-mini", "routing-mini",
                 "attention-mini", "suppress-mini", "patching-mini", "linear-mini"):  # fmt: skip
        result = load_result(RESULTS / name)
        found = views(result)
        assert found
        for options in found.values():
            assert result.figure(**options).layout.meta["alt"]
