"""Writing a report: measure, describe, render, and put all of it in place at once."""

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from engram_app.console import say
from engram_app.report.checks import Check, refuse_failed, run_checks
from engram_app.report.folder import check_out, replace_folder
from engram_app.report.measure import Measured, Stage, measure
from engram_app.report.parts.base import KeyNumber
from engram_app.report.spec import DEFAULT_DATA, Spec, compose

SCHEMA = "engram.report/2"
JSON_FILE, HTML_FILE, ARRAYS_FILE = "report.json", "report.html", "arrays.safetensors"
MARKDOWN_FILE, TEXT_FILE = "report.md", "report.txt"


def write_report(
    checkpoint: str,
    out: str | Path,
    *,
    twin: str | None = None,
    data: str | None = None,
    tokens: int = 20_000,
    seed: int = 0,
    probes: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    checks: Sequence[str] = (),
    force: bool = False,
    command: str = "",
) -> Path:
    """Run the probes and write the report: HTML, Markdown, text, JSON, arrays, tables, results.

    What is finished is kept in a hidden folder beside `out` until the report is there: a run that
    was stopped is taken up where it was.

    Args:
        checkpoint: a folder, or the name of a bundled checkpoint.
        out: folder of the report; it appears, or is replaced, only when all is done.
        twin: a model to compare with.
        data: a corpus; default the synthetic world's valid split.
        tokens: most tokens of it to read.
        seed: of every random choice.
        probes: what to measure; else those of the default that the models and the corpus allow,
            and those that have options.
        options: probe -> its options, see docs/report.md.
        checks: limits of key numbers, such as "lens.settling < 0"; see docs/report.md.
        force: replace a folder that holds something other than a report.
        command: the command line, for the section Reproduction.

    Returns:
        Path of report.html.

    Raises:
        UsageError: `out` holds something other than a report; no such probe or option; a probe
            that was asked for and does not apply.
        CheckFailed: a check does not hold; the report is there.
        CheckpointError, CorpusError: what was given cannot be opened.
    """
    out = Path(out)
    check_out(out, force, JSON_FILE, "engram.report/")
    parts, asked = compose(probes, options or {})
    spec = Spec(checkpoint, twin, data or DEFAULT_DATA, tokens, seed, parts, asked)
    work = out.with_name(f".{out.name}.work")
    found = measure(spec, command, work)
    say("writing the report")
    numbers = found.key_numbers()
    checked = run_checks(checks, numbers)
    report = describe(spec, found, numbers, checked, command)
    replace_folder(out, lambda folder: _write(folder, report, found))
    shutil.rmtree(work, ignore_errors=True)
    refuse_failed(checked, numbers, out / HTML_FILE)
    return out / HTML_FILE


def describe(
    spec: Spec, found: Measured, numbers: list[KeyNumber], checked: list[Check], command: str
) -> dict[str, Any]:
    """What report.json holds; its schema is docs/report.schema.json."""
    return {
        "schema": SCHEMA,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "spec": spec.to_dict(),
        "model": {name: found.facts[name] for name in ("architecture", "parameters", "memory")},
        "provenance": _provenance(found),
        "findings": found.findings(),
        "key_numbers": [asdict(number) for number in numbers],
        "checks": [check.to_dict() for check in checked],
        "alerts": found.alerts(),
        "sections": [_section(stage) for stage in found.stages],
        "results": [_result(name, result) for name, result in found.results().items()],
        "timings": found.seconds,
    }


def _provenance(found: Measured) -> dict[str, Any]:
    came = found.provenance
    return {
        "models": came.models,
        "tokenizer_sha256": came.tokenizer_sha256,
        "corpus": came.corpus,
        "seed": came.seed,
        "device": came.models[0]["device"],
        "dtype": came.models[0]["dtype"],
        "versions": came.versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _section(stage: Stage) -> dict[str, Any]:
    section = stage.section
    return {
        "probe": stage.part.name,
        "title": stage.part.title,
        "question": stage.part.question,
        "finding": section.finding,
        "method": section.method,
        "caveats": section.caveats,
        "figures": [
            {"name": f.name, "caption": f.caption, "alt": f.alt, "table": asdict(f.table)}
            for f in section.figures
        ],
        "results": list(stage.results),
    }


def _result(name: str, result: Any) -> dict[str, Any]:
    return {
        "name": name,
        "kind": result.kind,
        "summary": result.summary(),
        "settings": result.provenance.settings,
        "folder": f"results/{name}",
        "table": f"tables/{name}.csv",
        "arrays": [
            {
                "key": f"{name}/{field}",
                "axes": list(result.axes[field]),
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                "unit": result.units.get(field, ""),
            }
            for field, array in result.arrays().items()
        ],
    }


def _write(folder: Path, report: dict[str, Any], found: Measured) -> None:
    from safetensors.numpy import save

    from engram_app.report.page import render
    from engram_app.report.plain import markdown, text

    (folder / "tables").mkdir()
    arrays = {}
    for name, result in found.results().items():
        result.save(folder / "results" / name)
        result.to_frame().to_csv(folder / "tables" / f"{name}.csv", index=False)
        for field, array in result.arrays().items():
            arrays[f"{name}/{field}"] = np.ascontiguousarray(array)
    (folder / ARRAYS_FILE).write_bytes(save(arrays))
    document = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    for name, content in (
        (HTML_FILE, render(report, found.stages)),
        (MARKDOWN_FILE, markdown(report)),
        (TEXT_FILE, text(report)),
        (JSON_FILE, document + "\n"),
    ):
        (folder / name).write_text(content, encoding="utf-8")
