"""Writing a report: measure, describe, render, and put all of it in place at once."""

import json
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from engram_app.console import say
from engram_app.report.config import Check, refuse_failed, run_checks
from engram_app.report.findings import KeyNumber, alerts, findings, key_numbers
from engram_app.report.measure import DEFAULT_DATA, Measured, Spec, measure
from engram_model.errors import UsageError

SCHEMA = "engram.report/1"
JSON_FILE, HTML_FILE, ARRAYS_FILE = "report.json", "report.html", "arrays.safetensors"


def write_report(
    checkpoint: str,
    out: str | Path,
    *,
    twin: str | None = None,
    data: str | None = None,
    tokens: int = 20_000,
    seed: int = 0,
    force: bool = False,
    checks: Sequence[str] = (),
    command: str = "",
) -> Path:
    """Run the probes and write report.html, report.json, arrays.safetensors, tables and results.

    Args:
        checkpoint: a folder, or the name of a bundled checkpoint.
        out: folder of the report; it appears, or is replaced, only when all is done.
        twin: a model to compare with.
        data: a corpus; default the synthetic world's valid split.
        tokens: most tokens of it to read.
        seed: of every random choice.
        force: replace a folder that holds something other than a report.
        checks: limits of key numbers, such as "lens.settling < 0"; see docs/report.md.
        command: the command line, for the section Reproduction.

    Returns:
        Path of report.html.

    Raises:
        UsageError: `out` holds something other than a report.
        CheckFailed: a check does not hold; the report is there.
        CheckpointError, CorpusError: what was given cannot be opened.
    """
    out = Path(out)
    _check_out(out, force)
    spec = Spec(checkpoint, twin, data or DEFAULT_DATA, tokens, seed)
    found = measure(spec, command)
    say("writing the report")
    numbers = key_numbers(found)
    checked = run_checks(checks, numbers)
    report = describe(spec, found, numbers, checked, command)
    _replace(out, lambda folder: _write(folder, report, found))
    refuse_failed(checked, out / HTML_FILE)
    return out / HTML_FILE


def describe(
    spec: Spec, found: Measured, numbers: list[KeyNumber], checked: list[Check], command: str
) -> dict[str, Any]:
    """What report.json holds; its schema is docs/report.schema.json."""
    return {
        "schema": SCHEMA,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "spec": asdict(spec),
        "model": {name: found.facts[name] for name in ("architecture", "parameters", "memory")},
        "provenance": _provenance(found),
        "findings": findings(found),
        "key_numbers": [asdict(number) for number in numbers],
        "checks": [check.to_dict() for check in checked],
        "alerts": alerts(found),
        "results": [_result(name, result) for name, result in found.results().items()],
        "timings": found.seconds,
    }


def _provenance(found: Measured) -> dict[str, Any]:
    widest = found.alignment or found.difference or found.lens
    assert widest is not None
    came = widest.provenance
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
    from engram_app.report.sections import sections

    (folder / "tables").mkdir()
    arrays = {}
    for name, result in found.results().items():
        result.save(folder / "results" / name)
        result.to_frame().to_csv(folder / "tables" / f"{name}.csv", index=False)
        for field, array in result.arrays().items():
            arrays[f"{name}/{field}"] = np.ascontiguousarray(array)
    (folder / ARRAYS_FILE).write_bytes(save(arrays))
    (folder / HTML_FILE).write_text(render(report, sections(found)), encoding="utf-8")
    document = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / JSON_FILE).write_text(document + "\n", encoding="utf-8")


def _check_out(out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; give a folder")
    if force or not out.is_dir() or not any(out.iterdir()):
        return
    try:
        schema = json.loads((out / JSON_FILE).read_text(encoding="utf-8"))["schema"]
    except (OSError, ValueError, KeyError, TypeError):
        schema = None
    if schema != SCHEMA:
        raise UsageError(f"{out} is not empty and holds no report; give another folder or --force")


def _replace(out: Path, write: Callable[[Path], None]) -> None:
    """Write to a folder beside `out`, then put it in its place; nothing half is ever seen."""
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    fresh.mkdir()
    try:
        write(fresh)
        old = fresh.with_name(f"{fresh.name}.old")
        if out.exists():
            os.replace(out, old)
        os.replace(fresh, out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
