"""Every page of the explorer, well and in error, run without a browser."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from explorer_page import TEXT, figures, texts

import engram_app
from engram_app.explorer.opened import OPENED, Opened
from engram_model.errors import CheckpointError


def test_overview(explorer):
    at = explorer()
    assert at.title[0].value == "What does the memory add?"
    assert "The memory adds most at" in texts(at)
    assert "memory" in at.caption[0].value and "4 residual streams" in at.caption[0].value
    assert at.code[0].value.startswith("engram probe gates") and TEXT in at.code[0].value
    assert not at.get("plotly_chart")


def test_overview_position_from_the_url(explorer):
    at = explorer(pos="3")
    assert "position 3" in texts(at)


@pytest.mark.parametrize("pos", ["-1", "999", "x"])
def test_position_that_is_none_is_passed_over(explorer, pos):
    at = explorer(pos=pos)
    assert "The memory adds most at" in texts(at) and not at.error


def test_example_replaces_the_text(explorer):
    at = explorer()
    at.query_params.clear()
    at.button_group(key="example").set_value("Capitals").run()
    assert at.text_area(key="text").value.startswith("The capital of France")
    assert TEXT not in at.code[0].value and not at.exception


def test_gates(explorer):
    at = explorer("gates")
    heatmap, following = figures(at)
    assert heatmap["data"][0]["type"] == "heatmap" and following["data"][0]["type"] == "bar"


def test_gates_of_one_stream(explorer):
    at = explorer("gates")
    assert "What is added by layer and position" in texts(at)
    for key, value in {"what": "gate", "layer": "2", "stream": "1"}.items():
        at.button_group(key=key).set_value(value).run()
    assert "Gate by stream and position" in texts(at) and not at.exception
    assert len(figures(at)[0]["layout"]["yaxis"]["ticktext"]) == 4  # the others stay beside it


def test_choices_outlive_a_visit_to_another_page(explorer):
    at = explorer("gates")
    at.button_group(key="what").set_value("score").run()
    at.switch_page("app_pages/lens.py").run()
    at.switch_page("app_pages/gates.py").run()
    assert "Score by layer and position" in texts(at)
    at.run()
    assert "Score by layer and position" in texts(at)
    assert at.text_area(key="text").value == TEXT


@pytest.mark.parametrize("page", ["overview", "gates", "lens"])
def test_text_too_long(explorer, page):
    at = explorer(page, text="boats " * 200)
    [error] = [e.value.replace("\\", "") for e in at.error]
    assert "reads 192" in error and "\n" not in error
    assert at.text_area(key="text")  # and can be shortened there


@pytest.mark.parametrize("page", ["overview", "lens"])
def test_empty_text(explorer, page):
    at = explorer(page, text="  ")
    assert "the text is empty" in at.error[0].value


def test_checkpoint_that_is_gone(explorer, pair, tmp_path):
    at = explorer(models=(tmp_path / "gone",))
    assert "no checkpoint at" in at.error[0].value


def test_only_paths_that_hold_something_open(tmp_path, monkeypatch, pair):
    with pytest.raises(CheckpointError, match="has no config"):
        Opened.find([str(tmp_path)])
    monkeypatch.setenv("ENGRAM_CHECKPOINTS", str(tmp_path))
    with pytest.raises(CheckpointError, match="no checkpoint at engram-mini"):
        Opened.find([])
    assert Opened.find([str(pair / "memory")]).models == [str(pair / "memory")]


def test_bundled_results_are_those_of_the_bundled_models():
    """After a new training, docs/results must be measured again."""
    import engram_model as em
    import engram_probes as ep
    from engram_app.explorer.opened import bundled_results
    from engram_model.checkpoint import bundled_names
    from engram_probes.provenance import weights_sha256

    weights = {name: weights_sha256(em.load(name)[0]) for name in bundled_names()}
    folders = bundled_results()
    assert folders
    checked = set()
    for folder in folders:  # other seeds of a comparison are not bundled
        for model in ep.load_result(folder).provenance.models:
            if model["name"] in weights:
                assert weights[model["name"]] == model["weights_sha256"], folder
                checked.add(model["name"])
    assert {"engram-mini", "moe-mini"} <= checked


def test_first_screen_draws_without_figures_or_transformer_lens(pair):
    """In a process of its own: other tests import them. Streamlit itself imports plotly."""
    script = """
import sys
import streamlit.delta_generator
before = set(sys.modules)
from streamlit.testing.v1 import AppTest
at = AppTest.from_file(sys.argv[1], default_timeout=120)
at.run()
assert not at.exception and not at.error and at.title, at
heavy = ("plotly", "transformer_lens", "matplotlib", "sklearn", "engram_probes.figures")
print(*(name for name in set(sys.modules) - before if name.startswith(heavy)))
"""
    app = Path(engram_app.__file__).parent / "explorer" / "app.py"
    opened = Opened([str(pair / "memory")], []).to_json()
    done = subprocess.run(
        [sys.executable, "-c", script, str(app)],
        env={**os.environ, OPENED: opened},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout.strip()
