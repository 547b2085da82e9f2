"""The report: what it writes, that it says what the results say, and that it needs no network."""

import json
import re
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file

import engram_probes as ep
from engram_app.report import write_report
from engram_app.report.page import title
from engram_model.errors import UsageError

DOCS = Path(__file__).parents[2] / "docs"
DATA = "world:?seed=0&split=valid&tokens=2K"


@pytest.fixture(scope="module")
def report(pair, tmp_path_factory, monkeypatch_module):
    """Folder of a report of the tiny pair."""
    monkeypatch_module.setattr("engram_app.report.measure.LIKE", 2)
    monkeypatch_module.setattr("engram_app.report.measure.PERMUTATIONS", 5)
    out = tmp_path_factory.mktemp("reports") / "pair"
    words = dict(twin=str(pair / "plain"), data=DATA, tokens=4000, command="engram report x")
    # The tiny models differ in streams and weights, not in depth.
    assert write_report(str(pair / "memory"), out, **words) == out / "report.html"
    return out


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def document(report):
    return json.loads((report / "report.json").read_text())


@pytest.fixture(scope="module")
def html(report):
    return (report / "report.html").read_text()


def test_json_keeps_to_the_published_schema(document):
    schema = json.loads((DOCS / "report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):  # the schema is not one that takes anything
        jsonschema.validate({**document, "seed": 0}, schema)


def test_provenance_is_whole(document, pair):
    came = document["provenance"]
    assert [model["name"] for model in came["models"]] == ["memory", "plain"]
    assert came["models"][0]["weights_sha256"] != came["models"][1]["weights_sha256"]
    assert came["corpus"]["source"]["spec"] == DATA
    assert came["versions"]["torch"] and document["command"] == "engram report x"
    assert set(document["timings"]) == {"opening", "gates", "lens", "alignment"}


def test_results_open_without_the_model(report, document):
    arrays = load_file(report / "arrays.safetensors")
    kinds = set()
    for entry in document["results"]:
        result = ep.load_result(report / entry["folder"])
        kinds.add(result.kind)
        assert result.summary() == entry["summary"]
        assert len((report / entry["table"]).read_text().splitlines()) == len(result.to_frame()) + 1
        for array in entry["arrays"]:
            own = getattr(result, array["key"].rpartition("/")[2])
            assert np.array_equal(arrays[array["key"]], own, equal_nan=True)
            assert list(own.shape) == array["shape"]
    assert kinds == {"gates", "lens", "lens-difference", "cka", "gate-profile"}


def test_findings_are_those_of_the_results(report, document):
    difference = ep.load_result(report / "results" / "lens-difference")
    assert document["findings"][0] == difference.summary()
    number = next(n for n in document["key_numbers"] if n["name"].startswith("Settling"))
    assert (number["value"], number["low"], number["high"]) == tuple(difference.settling)


def test_alerts_say_what_weakens_the_numbers(document):
    alerts = " ".join(document["alerts"])
    assert "Little text" in alerts and "trained once" in alerts
    assert "Gates of the text “Reading”: the text has" in alerts  # longer than the context


def test_page_asks_for_nothing(html):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("style-src")[0] and "http" not in policy
    body = re.sub(r"<script[^>]*>.*?</script>", "", html, flags=re.S)
    assert not re.search(r"""(?:src|href)=["'](?!#)""", body)
    assert len(html) < 3_000_000


def test_every_figure_has_words_and_numbers(html):
    figures = re.findall(r"<figure>.*?</figure>", html, flags=re.S)
    assert len(figures) == 5
    for figure in figures:
        assert len(re.search(r'role="img" aria-label="([^"]*)"', figure)[1]) > 40
        assert "<figcaption>" in figure and figure.count("<td>") >= 9


def test_figures_cannot_end_their_script(html):
    data = re.search(r'id="figures">(.*?)</script>', html, flags=re.S)[1]
    assert "<" not in data
    names = {"gates", "gate-groups", "gate-auc", "lens", "alignment"}
    assert set(json.loads(data)) == names


def test_names_are_escaped(pair, tmp_path, monkeypatch):
    folder = shutil.copytree(pair / "plain", tmp_path / "<b>bold&")
    monkeypatch.setattr("engram_app.report.measure.LIKE", 2)
    page = write_report(str(folder), tmp_path / "out", data=DATA, tokens=500)
    text = page.read_text()
    assert "<b>bold" not in text.replace(re.search(r"<script.*", text, flags=re.S)[0], "")
    assert "&lt;b&gt;bold&amp;" in text


def test_report_of_a_model_without_memory_or_twin(pair, tmp_path):
    page = write_report(str(pair / "plain"), tmp_path / "out", data=DATA, tokens=500)
    document = json.loads(page.with_name("report.json").read_text())
    assert [result["kind"] for result in document["results"]] == ["lens"]
    alerts = " ".join(document["alerts"])
    assert "the model has no memory" in alerts and "No twin was given" in alerts
    assert title(document) == "plain"


def test_replaces_a_report_and_nothing_else(pair, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    words = dict(data=DATA, tokens=300)
    with pytest.raises(UsageError, match="holds no report; give another folder or --force"):
        write_report(str(pair / "plain"), out, **words)
    assert (out / "notes.txt").read_text() == "mine"
    write_report(str(pair / "plain"), out, force=True, **words)
    assert not (out / "notes.txt").exists()
    (out / "report.html").write_text("an earlier report, which may go")
    page = write_report(str(pair / "plain"), out, **words)
    assert page == out / "report.html" and "an earlier report" not in page.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_report_that_fails_leaves_the_old_one(pair, tmp_path, monkeypatch):
    out = tmp_path / "out"
    words = dict(data=DATA, tokens=300)
    write_report(str(pair / "plain"), out, **words)
    before = (out / "report.json").read_text()

    def full(*_):
        raise OSError(28, "No space left on device", str(out))

    monkeypatch.setattr("engram_app.report.page.render", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(str(pair / "plain"), out, **words)
    assert (out / "report.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_page_draws_offline(report, chromium, shots, theme):
    requests, errors = [], []
    context = chromium.new_context(
        offline=True, color_scheme=theme, viewport={"width": 1100, "height": 900}
    )
    page = context.new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((report / "report.html").as_uri())
    page.wait_for_selector("html[data-drawn=yes]", timeout=60_000)
    assert page.locator("figure .plot .main-svg").count() >= 3
    wide = page.evaluate("document.documentElement.scrollWidth")
    page.screenshot(path=shots / f"report-{theme}.png", full_page=True)
    context.close()
    assert wide <= 1100 and not errors
    assert all(url.startswith(("file:", "blob:")) for url in requests)


def test_checks_of_a_config(engram, pair, tmp_path):
    config = tmp_path / "report.toml"
    config.write_text(
        f'data = "{DATA}"\ntokens = 1500\n'
        'checks = ["gates.mean > 0", "gates.mean < 0", "lens.settling < 9"]\n'
    )
    words = ("report", pair / "memory", "--config", config, "--out", tmp_path / "out")
    code, out, err = engram(*words)
    assert code == 4 and out == ""
    last = err.splitlines()[-1]
    assert "2 of 3 checks failed: gates.mean < 0 (is 0." in last and "no such number" in last
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [check["passed"] for check in document["checks"]] == [True, False, False]
    assert document["spec"]["tokens"] == 1500 and document["spec"]["data"] == DATA
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Fails: gates.mean &lt; 0" in page
    config.write_text(f'data = "{DATA}"\nchecks = ["gates.mean >= 0"]\n')
    code, out, _ = engram(*words, "--tokens", "500")
    assert code == 0 and out.strip().endswith("report.html")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["spec"]["tokens"] == 500


@pytest.mark.parametrize(
    "text, message",
    [
        ("twin = ", "cannot be read as TOML"),
        ("model = 'x'", "no option 'model'; there are twin, data"),
        ("seed = 'x'", "seed = 'x' is no int"),
        ("checks = ['gates.mean is 1']", "check 'gates.mean is 1': write NUMBER > LIMIT"),
    ],
)
def test_configs_that_cannot_be_understood(engram, pair, tmp_path, text, message):
    config = tmp_path / "report.toml"
    config.write_text(text)
    code, _, err = engram("report", pair / "memory", "--config", config, "--out", tmp_path / "out")
    assert code == 2 and message in err.splitlines()[-1] and not (tmp_path / "out").exists()
