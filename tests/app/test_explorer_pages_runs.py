"""The page Runs: every kind of run opens, with no model and no torch; what is broken has a line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from explorer_page import figures, texts

from engram_app.explorer.catalogue import BUNDLED, catalogue

WITHOUT_TORCH = """
import sys
class Refused:
    def find_spec(name, path=None, target=None):
        assert name not in ("torch", "transformers", "transformer_lens"), name
sys.meta_path.insert(0, Refused)
from streamlit.testing.v1 import AppTest
at = AppTest.from_file(sys.argv[1], default_timeout=60)
at.run()
at.switch_page("app_pages/runs.py").run()
for run in sys.argv[2:]:
    at.selectbox(key="run").set_value(run).run()
    assert not at.exception, at.exception
    assert at.get("plotly_chart"), run
assert not {"torch", "transformers", "transformer_lens"} & set(sys.modules)
print("opened")
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_opens_on_a_result_of_ours_with_its_figure(explorer, elsewhere):
    at = explorer("runs")
    assert at.selectbox(key="run").value == str(BUNDLED / "cka-mini")
    assert figures(at) and "largest shift" in texts(at)
    assert "engram probe cka" in "".join(code.value for code in at.code)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("suppress-mini", "memory"),
        ("family/engram-mini/corpus", "3.395 nats a token"),
        ("family/compare/engram-moe-mini-corpus.json", "undecided"),
        ("family-one-epoch/engram-mini.json", "39.3M tokens"),
        ("paper/fig6.json", "reading does not stay"),
        ("paper/fig3-left.json", "Not measured here yet"),
    ],
)
def test_every_kind_of_run_opens(explorer, elsewhere, run, said):
    name = str(Path("results", run)).removesuffix(".json")
    at = explorer("runs", run=name)
    assert at.selectbox(key="run").value == str(BUNDLED / run)
    assert said in texts(at) and figures(at)


def test_the_papers_figure_stands_beside_ours_and_is_found_from_it(explorer, elsewhere):
    at = explorer("runs")
    at.button(key="beside_4b").click().run()
    assert at.selectbox(key="run").value == str(BUNDLED / "paper" / "fig4b.json")
    paper, ours = figures(at)
    assert len(paper["data"][0]["y"]) in (30, 1) or paper["data"][0]["type"] == "heatmap"
    assert ours["data"] and "layers 3 and 4" in texts(at)


def test_views_of_a_result_are_chosen_and_kept_in_the_url(explorer, elsewhere):
    at = explorer("runs", run="results/cka-mini", runs_view_cka="neighbours")
    assert at.selectbox(key="runs_view_cka").value == "neighbours"
    assert at.selectbox(key="runs_view_cka").options == ["cka", "neighbours"]


def test_search_and_kind_narrow_the_list(explorer, elsewhere):
    at = explorer("runs", runs_words="suppress engram-mini")
    assert at.selectbox(key="run").value == str(BUNDLED / "suppress-mini")
    at = explorer("runs", runs_words="<script>no such thing</script>")
    assert "Nothing on disk is like that" in texts(at) and not figures(at)


def test_what_is_broken_has_one_line_and_the_rest_opens(explorer, elsewhere):
    runs = elsewhere / "runs"
    for name in ("whole", "cut", "alien", "newer"):
        shutil.copytree(BUNDLED / "cka-mini", runs / name)
    (runs / "cut" / "arrays.safetensors").write_bytes(b"no")
    (runs / "alien" / "result.json").write_text('{"kind": "<b>what</b>"}')
    text = (runs / "newer" / "result.json").read_text()
    (runs / "newer" / "result.json").write_text(text.replace('"schema": 1', '"schema": 99'))
    (runs / "half").mkdir()
    (runs / "half" / "result.json").write_text('{"kind": "cka", ')
    (runs / "foreign.json").write_text("[1, 2]")
    (runs / "deep.json").write_text("[" * 100_000)
    (runs / "link").symlink_to(runs)
    listed = {run.name: run for run in catalogue([])}
    assert listed["runs/whole"].kind == "result"
    broken = [f"runs/{name}" for name in ("alien", "half", "foreign", "deep")]
    for name in broken:
        assert listed[name].kind == "unreadable" and "\n" not in listed[name].finding
        at = explorer("runs", run=name)
        assert len(at.error) == 1 and not figures(at)
    for name in ("cut", "newer"):
        at = explorer("runs", run=f"runs/{name}")
        assert len(at.error) == 1 and "\n" not in at.error[0].value
    assert figures(explorer("runs", run="runs/whole"))


def test_a_report_shows_all_its_parts_and_a_broken_one_is_one_line(explorer, elsewhere):
    report = elsewhere / "reports" / "tiny"
    for name in ("cka-mini", "suppress-mini"):
        shutil.copytree(BUNDLED / name, report / "results" / name)
    sections = [
        {"title": name, "finding": f"found {name}.", "results": [name], "caveats": ["small"]}
        for name in ("cka-mini", "suppress-mini", "../..", "gone")
    ]
    document = {
        "schema": "engram.report/1",
        "created_utc": "2026-11-25T10:00:00+00:00",
        "command": "engram report tiny",
        "spec": {"data": "world:"},
        "provenance": {"models": [{"name": "tiny"}]},
        "findings": ["The memory is used."],
        "alerts": [],
        "key_numbers": [],
        "sections": sections,
    }
    (report / "report.json").write_text(json.dumps(document))
    (run,) = (run for run in catalogue([]) if run.kind == "report")
    assert (run.models, run.date, run.finding) == ("tiny", "2026-11-25", "The memory is used.")
    at = explorer("runs", run=run.name)
    assert len(at.expander) >= 4 and figures(at)
    for index in range(1, 4):
        at.session_state[f"report_part_{index}"] = True
    at.run()
    assert not at.exception


def test_runs_need_no_torch(elsewhere):
    import engram_app
    from engram_app.explorer.opened import OPENED, Opened

    app = Path(engram_app.__file__).parent / "explorer" / "app.py"
    given = Opened([], [str(BUNDLED / "cka-mini")]).to_json()
    kinds = {}
    for run in catalogue([]):
        what = (run.kind, json.loads(Path(run.path, "result.json").read_text())["kind"]
                if run.kind == "result" else "")  # fmt: skip
        kinds.setdefault(what, run.path)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(app), *kinds.values()],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, OPENED: given, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0 and done.stdout.strip() == "opened", done.stderr[-3000:]
