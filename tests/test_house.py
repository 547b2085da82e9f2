"""The house stays in shape: who imports whom, what is public, what is packaged."""

import ast
import importlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "engram_kernels": ROOT / "kernels" / "engram_kernels",
    "engram_model": ROOT / "engram_model",
    "engram_probes": ROOT / "probes" / "engram_probes",
    "engram_app": ROOT / "app" / "engram_app",
}
MAY_USE = {
    "engram_kernels": set(),
    "engram_model": {"engram_kernels"},
    "engram_probes": {"engram_kernels", "engram_model"},
    "engram_app": {"engram_model", "engram_probes"},
}
# a library -> the only places that may import it
ONLY_IN = {
    "triton": ["kernels/engram_kernels/"],
    "plotly": ["probes/engram_probes/figures/"],
    "streamlit": ["app/engram_app/explorer/"],
    "typer": ["app/engram_app/"],
    "transformer_lens": [
        "engram_model/bridge.py",
        "engram_model/bridge_patching.py",
        "engram_model/bridge_qwen.py",
        "probes/engram_probes/bench/",
    ],
}


def sources():
    return [(room, file) for room, folder in ROOMS.items() for file in folder.rglob("*.py")]


def imports(file: Path) -> set[str]:
    """Top-level packages a file imports anywhere in it, other than for annotations."""
    return _imports(ast.parse(file.read_text()))


def _imports(node: ast.AST) -> set[str]:
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return set()
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return {node.module.split(".")[0]}
    return set().union(*map(_imports, ast.iter_child_nodes(node)))


def test_arrows_point_one_way():
    wrong = [
        f"{file.relative_to(ROOT)} imports {other}"
        for room, file in sources()
        for other in sorted(imports(file) & set(ROOMS) - MAY_USE[room] - {room})
    ]
    assert wrong == []


def test_libraries_stay_in_their_rooms():
    wrong = []
    for _, file in sources():
        place = file.relative_to(ROOT).as_posix()
        for library in imports(file) & set(ONLY_IN):
            if not any(place.startswith(allowed) for allowed in ONLY_IN[library]):
                wrong.append(f"{place} imports {library}")
    assert wrong == []


def test_no_unsafe_loading():
    """Never pickle, never code from a checkpoint."""
    banned = re.compile(r"import pickle|pickle\.load|allow_pickle=True|trust_remote_code=True")
    wrong = [str(file) for _, file in sources() if banned.search(file.read_text())]
    assert wrong == []


def documented() -> dict[str, set[str]]:
    """Names listed in docs/api.md under a heading for each package."""
    names: dict[str, set[str]] = {}
    package = ""
    for line in (ROOT / "docs" / "api.md").read_text().splitlines():
        if heading := re.match(r"## `(engram_\w+)`", line):
            package = heading[1]
            names[package] = set()
        elif entry := re.match(r"- `(\w+)`", line):
            names[package].add(entry[1])
    return names


@pytest.mark.parametrize("package", ["engram_kernels", "engram_model", "engram_probes"])
def test_public_names_are_those_documented(package):
    module = importlib.import_module(package)
    assert set(module.__all__) == documented()[package]
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_no_public_probe_has_a_modules_name():
    """Importing the module would put it in the function's place. Modules are public by name."""
    import engram_probes as ep

    modules = {file.stem for file in ROOMS["engram_probes"].glob("*.py")}
    assert modules & set(ep.__all__) == {"editing", "linear"}


def python(code: str, cwd: Path = ROOT) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_importing_a_package_is_fast():
    """Importing costs next to nothing: the heavy libraries wait until they are used."""
    heavy = "{'torch', 'transformers', 'datasets', 'pandas', 'plotly', 'streamlit', 'sklearn'}"
    loaded = python(
        "import sys, engram_kernels, engram_model, engram_probes, engram_app, engram_app.cli\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    assert loaded == "[]"


def test_transformers_imports_with_the_repository_first_on_the_path():
    code = "import sys; sys.path.insert(0, '.'); import transformers.integrations; print('fine')"
    assert python(code) == "fine"
    rooms = [ROOT / room for room in ("kernels", "probes", "app", "tests", "checkpoints")]
    assert not [room for room in rooms if (room / "__init__.py").exists()]


def test_wheel_holds_only_our_packages(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [entry_points] = [name for name in names if name.endswith("entry_points.txt")]
        text = archive.read(entry_points).decode()
    tops = {name.split("/")[0] for name in names}
    assert tops == {*ROOMS, next(top for top in tops if top.endswith(".dist-info"))}
    assert "engram = engram_app.cli:main" in text
    assert "EngramForCausalLM = engram_model.bridge:EngramAdapter" in text
    assert {"engram_app/explorer/strip.js"} <= set(names)


def test_bundled_models_fit_their_limits():
    """At most 8 MB a nano model, 32 MB a mini, shards under 15 MB, 140 MB in all; with cards."""
    total = 0
    for folder in (ROOT / "checkpoints").iterdir():
        if not folder.is_dir():
            continue
        sizes = [file.stat().st_size for file in folder.iterdir()]
        total += sum(sizes)
        assert max(sizes) < 15e6
        weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        assert weights <= (8e6 if "nano" in folder.name else 32e6)
        assert (folder / "README.md").exists() and (folder / "card.json").exists()
    assert 0 < total < 140e6


NUMBER = r"−?[\d.]+"
ROW = re.compile(
    rf"^\| (?P<question>.+?) \| ({NUMBER}) \| ({NUMBER}) "
    rf"\| ({NUMBER}) \(({NUMBER}) to ({NUMBER})\) "
    rf"\| (?P<verdict>\w+) \|.*\]\(results/(?P<file>[^)]+\.json)\)",
    re.MULTILINE,
)


def test_findings_state_what_the_files_hold():
    """Every row of a table: its numbers and verdict are those of a comparison in its file."""
    text = (ROOT / "docs/findings.md").read_text()
    rows = list(ROW.finditer(text))
    assert len(rows) == len(re.findall(r"\]\(results/\S+\.json\)", text)) >= 30
    names = ("first", "second", "difference", "low", "high")
    for row in rows:
        stated = [float(number.replace("−", "-")) for number in row.groups()[1:6]]
        content = json.loads((ROOT / "docs/results" / row["file"]).read_text())
        found = [
            one
            for one in content["differences"]
            if one["verdict"] == row["verdict"]
            and all(abs(one[n] - s) <= 6e-4 for n, s in zip(names, stated, strict=True))
        ]
        assert found, row["question"]


def test_findings_state_the_saved_alignments():
    """The soft alignment table is of the saved results: means over pairs of models."""
    import numpy as np

    import engram_probes as ep

    results = ROOT / "docs/results"
    seeds = sorted((results / "cka-seeds").iterdir())
    memory = [results / "cka-mini", *(s for s in seeds if re.match(r"engram-mini-s\d-moe", s.name))]
    null = [s for s in seeds if s.name.startswith("moe-mini")]
    text = (ROOT / "docs/findings.md").read_text()
    for folders, title in ((memory, "`engram-mini`, 6 pairs"), (null, "other seeds, 3 pairs")):
        means = np.mean([ep.load_result(folder).soft_index for folder in folders], 0)
        [stated] = re.findall(rf"{re.escape(title)} \| (.*) \|$", text, re.MULTILINE)
        assert stated.split(" | ") == [f"{mean:.1f}" for mean in means]


def test_findings_state_the_saved_settling_depths():
    import engram_probes as ep

    folders = ("lens-mini", "lens-mini/twin", "lens-seeds/engram-moe-mini-s1")
    lenses = [ep.load_result(ROOT / "docs/results" / folder) for folder in folders]
    lenses.append(ep.load_result(ROOT / "docs/results" / folders[2] / "twin"))
    text = (ROOT / "docs/findings.md").read_text()
    for stratum in ("fact", "ngram", "outside", "copy"):
        place = lenses[0].strata.index(stratum), lenses[0].metrics.index("settled")
        depths = [float((1 - lens.stratum_mean[place]).sum()) for lens in lenses]
        [stated] = re.findall(
            rf"^\| `{stratum}`[\w ]* \| (\d\.\d(?: \| \d\.\d){{3}}) \|$", text, re.MULTILINE
        )
        assert stated.split(" | ") == [f"{depth:.1f}" for depth in depths]


def test_findings_state_the_saved_suppression():
    import engram_probes as ep

    frame = ep.load_result(ROOT / "docs/results/suppress-mini").to_frame().set_index("task")
    text = (ROOT / "docs/findings.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \| (−?\d+)% \(", text, re.MULTILINE)
    assert len(rows) == 7
    for task, before, after, kept in rows:
        row = frame.loc[task]
        assert [f"{row['before']:.3f}", f"{row['after']:.3f}"] == [before, after]
        assert f"{100 * row['retained']:.0f}".replace("-0", "0") == kept.replace("−", "-")


PAGES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/probes").glob("*.md")]
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?://)([^)#\s]+)[^)]*\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_findings_state_the_saved_probes():
    """The numbers of "What only these probes show", each from its result."""
    import engram_probes as ep

    results = ROOT / "docs/results"
    opened = {
        name: ep.load_result(results / name)
        for name in (
            *("lens-tuned-mini", "lens-tuned-mini/twin", "lens-tuned-mini/difference", "lens-mini"),
            *("gates-frequency", "patching-mini", "cka-second", "linear-mini"),
            *("attention-mini", "attention-nano", "attention-seeds"),
        )
    }
    text = (ROOT / "docs/findings.md").read_text().split("## What only these probes show")[1]
    text = text.split("## ")[0].replace("−", "-")

    rows = ("lens-tuned-mini", "`engram-mini`"), ("lens-tuned-mini/twin", "`moe-mini`")
    for name, title in rows:
        kl = opened[name].mean[opened[name].metrics.index("kl")]
        assert f"{title} | " + " | ".join(f"{value:.2f}" for value in kl[:-1]) in text
    apart = opened["lens-tuned-mini/difference"]
    kl = apart.metrics.index("kl")
    assert " | ".join(f"{value:.2f}" for value in apart.difference[kl, :-1]) in text
    assert (apart.low[kl, :-1] * apart.high[kl, :-1] > 0).all()  # every one beyond its interval
    ours, twin = (opened[name] for name, _ in rows)
    for stratum, lens, depth, other, there, stated in (
        ("copy", twin, 4, twin, 5, "from {:.2f} to {:.2f}"),
        ("fact", ours, 5, twin, 5, "({:.2f} against {:.2f} at depth 5)"),
        ("ngram", ours, 5, twin, 5, "({:.2f} against {:.2f})"),
    ):
        place = lens.strata.index(stratum), lens.metrics.index("kl")
        values = lens.stratum_mean[place][depth], other.stratum_mean[place][there]
        assert stated.format(*values) in text
    later, low, high = apart.settling
    assert f"{-later:.2f} earlier by the tuned one ({low:.2f} to {high:.2f})" in text
    assert f"embedding) is {opened['lens-mini'].curve('kl')[0][0]:.0f} nats" in text

    gates = (
        opened["gates-frequency"]
        .correlations_frame()
        .set_index(["order", "load", "variable", "measure"])
    )
    for variable in ("count", "load"):
        found = gates.loc[(3, "reads", variable, "gate")]
        *most, last = (f"{value:.2f}" for value in found.partial)
        assert f"{', '.join(most)} and {last}" in text

    patched = opened["patching-mini"].to_frame().set_index(["node", "place"])
    memory = patched.loc[("1_engram_out", "end of change")]
    attention = patched.loc[("3_attn_out", "last")]
    assert f"{memory.exact:.1f} logits ({memory.exact_low:.1f} to {memory.exact_high:.1f})" in text
    assert f"same logits by {memory.exact_null:.1f}" in text
    beyond = memory.exact_beyond, memory.exact_beyond_low, memory.exact_beyond_high
    assert "{:.1f} ({:.2f} to {:.1f}; over the 47 pairs".format(*beyond) in text
    beyond = attention.exact_beyond, attention.exact_beyond_low, attention.exact_beyond_high
    assert "{:.1f} ({:.1f} to {:.1f})".format(*beyond) in text

    read = opened["linear-mini"].to_frame().query("metric == 'accuracy'")
    best = read.loc[read.groupby("source").value.idxmax()].set_index("source")
    for source, stated in (
        ("engram-mini", "{:.0f}% right from depth 5 of `engram-mini` ({:.0f} to {:.0f};"),
        ("moe-mini", "{:.0f}% at best from `moe-mini` ({:.0f} to {:.0f})"),
        ("rows of layer 1", "give {:.0f}% ({:.0f} to {:.0f})"),
    ):
        row = best.loc[source, ["value", "low", "high"]].astype(float) * 100
        assert stated.format(*row) in text

    for name in ("attention-mini", "attention-nano", "attention-seeds"):
        said = re.search(r"differs from [\w-]+'s by -([\d.]+)", opened[name].summary())
        assert said and said[1] in text
    opinions = [f"{value:.1f}" for value in opened["cka-second"].second_soft[:, 3]]
    stated = "5.4 by nearest neighbours, 5.2 by Procrustes, 5.3 by RSA"
    assert re.findall(r"\d\.\d", stated) == opinions and stated in " ".join(text.split())


PROBES = sorted((ROOT / "docs/probes").glob("*.md"))


@pytest.mark.parametrize("page", PROBES, ids=lambda page: page.stem)
def test_page_of_a_probe_is_whole(page):
    """A question, controls, pitfalls, a figure with a text beside it; and it is found."""
    text = page.read_text()
    assert re.match(r"# .+\n\n\*[^*]+\*\n", text), "a title, then the question in italics"
    assert re.search(r"\bcontrols?\b|\bchance\b", text, re.IGNORECASE)
    assert re.search(r"^(\*\*)?Pitfalls\b", text, re.MULTILINE)
    assert re.search(r"!\[[^\]]{10,}\]\(\.\./images/[\w-]+\.png\)", text)
    assert f"](probes/{page.name})" in (ROOT / "docs/probes.md").read_text()


def test_figures_of_the_pages_are_small_and_all_shown():
    images = ROOT / "docs/images"
    shown = set(re.findall(r"images/([\w-]+\.png)", "".join(page.read_text() for page in PAGES)))
    assert shown == {image.name for image in images.iterdir()}
    for name in shown - {"overview.png"}:
        content = (images / name).read_bytes()
        assert int.from_bytes(content[16:20]) == 900 and len(content) < 120_000, name
