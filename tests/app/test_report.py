"""The report: what it writes, that it says what the results say, and that it needs no network."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file

import engram_probes as ep
from engram_app.report import write_report
from engram_app.report.parts import DEFAULT, NAMES
from engram_app.report.parts.lens import Lens
from engram_app.report.plain import safe, shown, title
from engram_app.report.spec import compose
from engram_model.errors import UsageError

DOCS = Path(__file__).parents[2] / "docs"
DATA = "world:?seed=0&split=valid&tokens=2K"
SMALL = {  # the least that a part can be measured with
    "cka": {"k": 2, "permutations": 5},
    "suppress": {"tasks": ["copy", "reading"], "items": 4},
    "linear": {"positions": 60, "folds": 2, "label": "kind", "depths": [0, 3]},
    "attribute": {"text": "The harbour", "draws": 10},
    "slots": {"text": "The harbour master"},
    "lens": {"positions": 1000, "by": "frequency"},
    "routing": {"permutations": 5, "changes": ["zero", "noise"]},
    "attention": {"sequences": 3, "length": 10},
    "patching": {
        "text": "The harbour master of Varnholm counts the",
        "corrupted": "The harbour master of Ostrava counts the",
        "target": " boats",
        "against": " wheel",
        "steps": 2,
        "draws": 3,
    },
    "rows": {"top": 2, "controls": 3},
}
FAST = {"probes": ["lens"], "data": DATA}


@pytest.fixture(scope="module")
def report(pair, tmp_path_factory):
    """Folder of a report of the tiny pair, with every part there is."""
    out = tmp_path_factory.mktemp("reports") / "pair"
    words = dict(twin=str(pair / "plain"), data=DATA, tokens=4000, probes=NAMES, options=SMALL)
    # The tiny models differ in streams and weights, not in depth.
    page = write_report(str(pair / "memory"), out, command="engram report x", **words)
    assert page == out / "report.html"
    return out


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
    assert set(document["timings"]) == {"opening", *NAMES}


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
    assert kinds == {
        *("gates", "lens", "lens-difference", "cka", "gate-profile"),
        *("suppress", "linear", "slots", "row-load", "attribution"),
        *("routing", "attention", "patch", "row-contexts"),
    }


def test_findings_are_those_of_the_results(report, document):
    difference = ep.load_result(report / "results" / "lens-difference")
    assert document["findings"][0] == difference.summary()
    number = next(n for n in document["key_numbers"] if n["id"] == "lens.settling")
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


def test_every_figure_has_words_and_numbers(html, document):
    """Of every part there is: alt text, a caption, and a table with as many cells as it says."""
    assert [section["probe"] for section in document["sections"]] == list(NAMES)
    figures = re.findall(r"<figure>.*?</figure>", html, flags=re.S)
    told = [figure for section in document["sections"] for figure in section["figures"]]
    assert len(figures) == len(told)
    for figure, said in zip(figures, told, strict=True):
        alt = re.search(r'role="img" aria-label="([^"]*)"', figure)[1]
        assert len(alt) > 40 and unescape(alt) == said["alt"] != said["caption"]
        assert "<figcaption>" in figure
        rows = said["table"]["rows"]
        assert rows and all(len(row) == len(said["table"]["header"]) for row in rows)
        assert figure.count("<td>") == len(rows) * len(rows[0]) >= 4
    for section in document["sections"]:
        assert section["figures"] and section["caveats"] and section["method"]


def test_figures_cannot_end_their_script(html):
    data = re.search(r'id="figures">(.*?)</script>', html, flags=re.S)[1]
    assert "<" not in data
    names = {"gates", "gate-groups", "gate-auc", "lens", "lens-strata", "cka", "slots", "row-load"}
    names |= {"suppress-retained", "suppress-log_prob", "linear", "attribute"}
    names |= {f"routing-{view}" for view in ("kept", "mechanism", "load", "information")}
    names |= {f"attention-{view}" for view in ("near", "previous", "repeated")}
    names |= {"patching", "patching-nodes", "patching-check", "rows"}
    assert set(json.loads(data)) == names


def test_markdown_and_text_say_what_the_json_says(report, document):
    markdown = (report / "report.md").read_text()
    text = (report / "report.txt").read_text()
    assert all(len(line) <= 80 for line in text.splitlines())
    flat = " ".join(text.split())
    for finding in document["findings"]:
        assert " ".join(finding.split()) in flat
    for number in document["key_numbers"]:
        assert f"`{number['id']}`" in markdown and f"{number['id']}:" in text
    for section in document["sections"]:
        assert f"## {section['title']}" in markdown
        header = section["figures"][0]["table"]["header"][0]
        assert f"| {safe(header)} |" in markdown
    assert "](" not in markdown  # no links to images that are not there


def test_sections_have_their_key_numbers(document):
    numbers = {number["id"]: number for number in document["key_numbers"]}
    for name in (
        *("gates.mean", "gates.auc", "lens.kl", "lens.settling", "cka.shift", "suppress.change"),
        *("suppress.copy.change", "linear.kind.accuracy", "slots.dispersion", "attribute.memory"),
        *("routing.kept.zero", "routing.chance", "routing.evenness", "routing.information"),
        *("attention.near", "attention.near.twin", "attention.near.zero", "attention.induction"),
        *("patching.gap", "patching.strongest", "patching.memory", "patching.memory.beyond"),
        *("patching.correlation", "rows.strongest", "rows.mean", "rows.control", "rows.apart"),
    ):
        assert name in numbers
    labels = [value["value"] for name, value in numbers.items() if name.startswith("gates.auc.")]
    assert numbers["gates.auc"]["value"] == pytest.approx(np.mean(labels))


def test_small_numbers_keep_their_digits():
    number = {"value": -0.0042, "low": -0.31, "difference": True}
    assert shown(number) == "\N{MINUS SIGN}0.004" and shown(number, "low") == "\N{MINUS SIGN}0.310"
    assert shown({"value": 21.125, "difference": False}) == "21.12"
    assert shown({"value": 0.0, "difference": True}) == "+0.00"


def test_names_are_escaped(pair, tmp_path):
    folder = shutil.copytree(pair / "plain", tmp_path / "<b>bold&")
    page = write_report(str(folder), tmp_path / "out", tokens=500, **FAST)
    text = page.read_text()
    assert "<b>bold" not in text.replace(re.search(r"<script.*", text, flags=re.S)[0], "")
    assert "&lt;b&gt;bold&amp;" in text


def test_report_of_a_model_without_memory_or_twin(pair, tmp_path):
    page = write_report(str(pair / "plain"), tmp_path / "out", data=DATA, tokens=500)
    document = json.loads(page.with_name("report.json").read_text())
    kinds = [result["kind"] for result in document["results"]]
    assert kinds in (["lens", "attribution"], ["lens", "linear", "attribution"])
    alerts = " ".join(document["alerts"])
    assert "the model has no memory" in alerts and "No twin was given" in alerts
    assert title(document) == "plain"


def test_replaces_a_report_and_nothing_else(pair, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    words = dict(tokens=300, **FAST)
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
    words = dict(tokens=300, **FAST)
    write_report(str(pair / "plain"), out, **words)
    before = (out / "report.json").read_text()

    def full(*_):
        raise OSError(28, "No space left on device", str(out))

    monkeypatch.setattr("engram_app.report.page.render", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(str(pair / "plain"), out, **words)
    assert (out / "report.json").read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.work"}


def test_a_report_that_was_stopped_goes_on(pair, tmp_path, monkeypatch, capsys):
    """What was measured is not measured again, unless something that it depends on changed."""
    words = dict(data=DATA, tokens=300, probes=["gates", "lens"])
    stop, run = KeyboardInterrupt(), Lens.measure
    monkeypatch.setattr(Lens, "measure", lambda *_: (_ for _ in ()).throw(stop))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            write_report(str(pair / "memory"), tmp_path / "out", **words)
    assert "gates: kept from the run" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        write_report(str(pair / "memory"), tmp_path / "out", **{**words, "seed": 1})
    assert "kept from the run" not in capsys.readouterr().err
    monkeypatch.setattr(Lens, "measure", run)
    arrays = tmp_path / ".out.work" / "gates" / "gates-1" / "arrays.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-4])  # damaged: measured again
    page = write_report(str(pair / "memory"), tmp_path / "out", **{**words, "seed": 1})
    assert "kept from the run" not in capsys.readouterr().err
    assert page.is_file() and [path.name for path in tmp_path.iterdir()] == ["out"]


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
        f'data = "{DATA}"\ntokens = 1500\nprobes = ["gates", "lens"]\n'
        'checks = ["gates.mean > 0", "gates.mean < 0", "lens.settling < 9", "lens.kl.high > 0"]\n'
        '[lens]\npositions = "1K"\n'
    )
    words = ("report", pair / "memory", "--config", config, "--out", tmp_path / "out")
    code, out, err = engram(*words)
    assert code == 4 and out == ""
    last = err.splitlines()[-1]
    assert "2 of 4 checks failed: gates.mean < 0 (is 0." in last and "no such number" in last
    assert "the numbers are gates.mean, gates.added, lens.kl, lens.kl.low, lens.kl.high" in last
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [check["passed"] for check in document["checks"]] == [True, False, False, True]
    assert document["spec"]["tokens"] == 1500 and document["spec"]["data"] == DATA
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Fails: gates.mean &lt; 0" in page
    assert document["spec"]["probes"]["lens"]["positions"] == 1000
    assert "lens: about 1,000 positions drawn from" in err and "Numbers\n-------" in err
    config.write_text(f'data = "{DATA}"\nprobes = ["gates"]\nchecks = ["gates.mean >= 0"]\n')
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
        ("checks = ['gates.mean > 1.2.3']", "check 'gates.mean > 1.2.3': write NUMBER > LIMIT"),
        ("probes = ['lense']", "no probe 'lense'; there are gates, gate-profile, lens"),
        ("probes = []", "probes is empty"),
        ("probes = ['lens']\n[cka]\nk = 2", "cka is not among the probes"),
        ("[suppres]\nitems = 2", "no probe 'suppres'"),
        ("[suppress]\nitem = 2", "[suppress] has no option 'item'; its options are tasks, how"),
        ("[suppress]\nitems = 'many'", "[suppress] items = 'many' is no int"),
        ("[suppress]\nitems = 0", "[suppress] items = 0: use 1 or more"),
        ("[suppress]\nhow = 'off'", "use one of 'zero', 'rows_zero'"),
        ("[suppress]\ntasks = ['copies']", "no suite 'copies'"),
        ("[gate-profile]\nk = 1", "[gate-profile] has no option 'k'; it has no options"),
        ("[lens]\npositions = '4Q'", "'4Q' is no number of tokens"),
        ("[lens]\nby = 1", "[lens] by = 1: use one of '', 'mechanism'"),
        ("[lens]\ntuned = 1", "[lens] tuned = 1 is no bool"),
        ("[lens]\ntuned = true", "lens cannot be measured: no tuned lens in"),
        ("[routing]\nchanges = ['off']", "use one of 'zero', 'rows_zero'"),
        ("[routing]\npermutations = 0", "[routing] permutations = 0: use 1 or more"),
        ("[attention]\nheads = 2", "[attention] has no option 'heads'; its options are changes,"),
        (
            "probes = ['attention']\n[attention]\nlength = 1",
            "attention cannot be measured: sequences=20, length=1: both at least 2",
        ),
        ("[patching]\ndirection = 'up'", "use one of 'denoising', 'noising'"),
        ("[patching]\nheads = 1", "[patching] heads = 1 is no bool"),
        (
            "probes = ['patching']\n[patching]\ntext = 'one'",
            "patching cannot be measured: text and corrupted go together",
        ),
        (
            "probes = ['patching']\n[patching]\ntarget = ' boats'",
            "patching cannot be measured: target and against go with text",
        ),
        (
            "probes = ['patching']\n[patching]\ndata = 'world: + world:?seed=1'",
            "patching cannot be measured: --data world: + world:?seed=1: give a world:",
        ),
        ("probes = ['rows']\n[rows]\nslots = '1'", "rows cannot be measured: "),
        ("probes = ['rows']\n[rows]\nby = 'size'", "use one of 'contribution', 'gate'"),
        ("probes = ['cka']", "cka cannot be measured: it compares two models and no twin was"),
        (
            "probes = ['attribute']\n[attribute]\ntarget = 'two words'",
            "attribute cannot be measured: ",
        ),
    ],
)
def test_configs_that_cannot_be_understood(engram, pair, tmp_path, text, message):
    config = tmp_path / "report.toml"
    config.write_text(text)
    code, _, err = engram("report", pair / "memory", "--config", config, "--out", tmp_path / "out")
    assert code == 2 and message in err.splitlines()[-1] and not (tmp_path / "out").exists()


def test_parts_on_request_take_a_name_or_a_table():
    parts, asked = compose(None, {})
    assert tuple(part.name for part in parts) == DEFAULT and not asked
    parts, asked = compose(None, {"rows": {"top": 2}, "lens": {}})
    assert [part.name for part in parts] == [*DEFAULT, "rows"] and asked == {"rows", "lens"}
    parts, asked = compose(["rows", "routing"], {})
    assert [part.name for part in parts] == ["routing", "rows"] and asked == {"rows", "routing"}


def test_default_parts_that_do_not_apply_are_named(engram, corpus, pair, tmp_path):
    """A corpus without spans has nothing for a linear probe; asked for by name it is an error."""
    words = ("report", pair / "memory", "--data", corpus, "--tokens", "600", "--out")
    config = tmp_path / "report.toml"
    config.write_text("[suppress]\ntasks = ['copy']\nitems = 2\n[attribute]\ndraws = 10\n")
    code, _, _ = engram(*words, tmp_path / "out", "--config", config)
    alerts = json.loads((tmp_path / "out" / "report.json").read_text())["alerts"]
    assert code == 0 and any("Left out: linear, the corpus has no column" in a for a in alerts)
    code, _, err = engram(*words, tmp_path / "other", "--probes", "linear")
    assert code == 3 and "linear cannot be measured: the corpus has no" in err.splitlines()[-1]
