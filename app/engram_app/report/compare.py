"""Two reports compared from their saved results; no model is opened.

The rule is that of `engram compare` for evaluations: a difference is decided if its 95% interval
leaves out zero. Where both runs read the same texts, documents or items are drawn together for
both. Otherwise the runs count as independent and the interval is put together from their own
(Zou and Donner 2008, "MOVER").
"""

import json
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engram_app.report.folder import check_out, replace_folder
from engram_app.report.measure import Stage
from engram_app.report.parts import NAMES, part_class
from engram_app.report.parts.base import Figure, Interval, KeyNumber
from engram_app.report.write import JSON_FILE as REPORT_FILE
from engram_app.report.write import SCHEMA as REPORT_SCHEMA
from engram_model.errors import CheckpointError
from engram_probes.results import load_result

SCHEMA = "engram.report-comparison/1"
JSON_FILE, HTML_FILE, MARKDOWN_FILE = "comparison.json", "comparison.html", "comparison.md"


@dataclass(frozen=True)
class Run:
    """A report on disk: its folder, report.json, and its parts with their results."""

    folder: Path
    report: dict[str, Any]
    stages: dict[str, Stage]

    def numbers(self) -> Iterator[tuple[str, KeyNumber]]:
        """Name of the part, and the number."""
        for name, stage in self.stages.items():
            for number in stage.numbers:
                yield name, number


@dataclass(frozen=True)
class Change:
    """A key number of both runs, the first less the second.

    paired: whether texts were drawn together for both.
    """

    number: KeyNumber
    second: KeyNumber
    difference: float
    low: float | None
    high: float | None
    paired: bool

    @property
    def name(self) -> str:
        """What it is; in both runs, where it is not quite the same."""
        ours, theirs = self.number.name, self.second.name
        return ours if ours == theirs else f"{ours}; second: {theirs}"

    @property
    def verdict(self) -> str:
        """`more`, `less` or `undecided`; `no interval` where a run gives none."""
        if self.low is None or self.high is None:
            return "no interval"
        if self.low <= 0 <= self.high:
            return "undecided"
        return "more" if self.difference > 0 else "less"

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.number.id,
            "name": self.name,
            "unit": self.number.unit,
            "first": self.number.value,
            "second": self.second.value,
            "difference": self.difference,
            "low": self.low,
            "high": self.high,
            "paired": self.paired,
            "verdict": self.verdict,
        }


def is_report(folder: Path) -> bool:
    return (folder / REPORT_FILE).is_file()


def open_run(folder: Path) -> Run:
    """What `engram report` wrote.

    Raises:
        CheckpointError: no report, one of another version, or a damaged one.
    """
    try:
        report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
        if report["schema"] != REPORT_SCHEMA:
            raise CheckpointError(
                f"{folder} is of schema {report['schema']}, this version compares {REPORT_SCHEMA}; "
                "write the report anew"
            )
        stages = {}
        for section in report["sections"]:
            name = section["probe"]
            if name in NAMES:
                results = {n: load_result(folder / "results" / n) for n in section["results"]}
                stages[name] = Stage(part_class(name)(), results, 0.0)
        return Run(folder, report, stages)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} holds no report that can be read: {type(error).__name__}: {error}"
        ) from None


def compare(first: Run, second: Run, seed: int = 0) -> list[Change]:
    """Every key number that both runs have."""
    theirs = {number.id: number for _, number in second.numbers()}
    paired: dict[str, Interval] = {}
    for name in first.stages.keys() & second.stages.keys():
        stage = first.stages[name]
        paired |= stage.part.paired(stage.results, second.stages[name].results, seed)
    return [
        _change(number, theirs[number.id], paired.get(number.id))
        for _, number in first.numbers()
        if number.id in theirs
    ]


def _change(ours: KeyNumber, theirs: KeyNumber, paired: Interval | None) -> Change:
    difference = ours.value - theirs.value
    if paired is not None and all(value == value for value in paired):
        return Change(ours, theirs, *paired, True)
    if None in (ours.low, ours.high, theirs.low, theirs.high):
        return Change(ours, theirs, difference, None, None, False)
    assert ours.low is not None and ours.high is not None
    assert theirs.low is not None and theirs.high is not None
    below = ((ours.value - ours.low) ** 2 + (theirs.high - theirs.value) ** 2) ** 0.5
    above = ((ours.high - ours.value) ** 2 + (theirs.value - theirs.low) ** 2) ** 0.5
    return Change(ours, theirs, difference, difference - below, difference + above, False)


def differing(first: Run, second: Run) -> list[tuple[str, str, str]]:
    """What differs in provenance and options: name, of the first, of the second."""
    both = first.report["spec"]["probes"].keys() & second.report["spec"]["probes"].keys()
    flat = [dict(_flat(run, both)) for run in (first, second)]
    return [
        (name, flat[0].get(name, "–"), flat[1].get(name, "–"))
        for name in dict.fromkeys((*flat[0], *flat[1]))
        if flat[0].get(name) != flat[1].get(name)
    ]


def _flat(run: Run, probes: Set[str]) -> Iterator[tuple[str, str]]:
    came, spec = run.report["provenance"], run.report["spec"]
    for which, model in zip(("model", "twin"), came["models"], strict=False):
        for name in ("name", "weights_sha256", "dtype", "device"):
            yield f"{which}, {name}", str(model[name])
    yield "tokenizer", came["tokenizer_sha256"]
    yield "corpus, SPEC", spec["data"]
    yield "corpus, texts", came["corpus"]["sha256"]
    yield "corpus, documents", str(came["corpus"]["documents"])
    yield "seed", str(spec["seed"])
    yield from came["versions"].items()
    yield "Python", came["python"]
    yield "machine", came["platform"]
    yield "probes", ", ".join(spec["probes"])
    for probe, options in spec["probes"].items():
        for option, value in options.items() if probe in probes else ():
            yield f"[{probe}] {option}", json.dumps(value)


@dataclass(frozen=True)
class Pair:
    """One section of the comparison: a part's finding in both runs, and its figures."""

    name: str
    title: str
    findings: tuple[str, str]
    overlaid: list[Figure]
    side_by_side: list[tuple[Figure, Figure]]


def pairs(first: Run, second: Run) -> Iterator[Pair]:
    """Of every part that both runs have: figures of both in one, else side by side."""
    for name, stage in first.stages.items():
        if name not in second.stages:
            continue
        other = second.stages[name]
        sections = stage.section, other.section
        overlaid = stage.part.overlaid(stage.results, other.results)
        theirs = {figure.name: figure for figure in sections[1].figures}
        both = [
            (_named(figure, "first"), _named(theirs[figure.name], "second"))
            for figure in sections[0].figures
            if figure.name in theirs and figure.name not in {f.name for f in overlaid}
        ]
        findings = sections[0].finding, sections[1].finding
        yield Pair(name, stage.part.title, findings, overlaid, both)


def _named(figure: Figure, which: str) -> Figure:
    return replace(figure, name=f"{which}-{figure.name}")


def write_comparison(
    first: Path, second: Path, out: Path | None, seed: int = 0, command: str = ""
) -> dict[str, Any]:
    """Compare two reports; into `out` go comparison.html, comparison.json and comparison.md.

    Returns:
        What comparison.json holds.

    Raises:
        UsageError: `out` holds other things. CheckpointError: no report.
    """
    if out is not None:
        check_out(out, False, JSON_FILE, "engram.report-comparison/")
    runs = open_run(first), open_run(second)
    document = {
        "schema": SCHEMA,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "seed": seed,
        "first": _about(runs[0]),
        "second": _about(runs[1]),
        "differing": [list(row) for row in differing(*runs)],
        "differences": [change.to_dict() for change in compare(*runs, seed)],
        "only_first": _only(*runs),
        "only_second": _only(*reversed(runs)),
    }
    if out is not None:
        replace_folder(out, lambda folder: _write(folder, document, runs))
    return document


def _about(run: Run) -> dict[str, Any]:
    names = [model["name"] for model in run.report["provenance"]["models"]]
    return {"folder": run.folder.name, "models": names, "created_utc": run.report["created_utc"]}


def _only(run: Run, other: Run) -> list[str]:
    """Names of key numbers that the other has not."""
    there = {number.id for _, number in other.numbers()}
    return [number.id for _, number in run.numbers() if number.id not in there]


def _write(folder: Path, document: dict[str, Any], runs: tuple[Run, Run]) -> None:
    from engram_app.report.compare_page import markdown, render

    told = list(pairs(*runs))
    content = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / HTML_FILE).write_text(render(document, told), encoding="utf-8")
    (folder / MARKDOWN_FILE).write_text(markdown(document, told), encoding="utf-8")
    (folder / JSON_FILE).write_text(content + "\n", encoding="utf-8")
