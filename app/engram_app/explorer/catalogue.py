"""What lies on disk to be looked at: reports, results, evaluations, trainings, paper figures.

Only JSON is read, never arrays, models or pickles; what cannot be read has one line that says so.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from engram_app.explorer.opened import BUNDLED_RESULTS as BUNDLED
from engram_app.report.write import JSON_FILE as REPORT
from engram_model.checkpoint import bundled_checkpoints
from engram_model.errors import CheckpointError
from engram_probes.paper import SCHEMA as PAPER
from engram_probes.paper import read_paper_figure
from engram_probes.records import read_comparison, read_evaluation, read_training
from engram_probes.results import JSON_FILE as RESULT

DEEPEST, MOST = 5, 2000  # folders down, runs at most
LARGEST = 32 * 2**20  # bytes of a JSON file
HERE = ("reports", "runs")  # folders of the working directory that are looked into
SPEED = ("kernels-", "probes-")  # measurements of speed, which docs/kernels.md draws
KINDS = ("report", "result", "evaluation", "training", "comparison", "paper", "unreadable")


@dataclass(frozen=True)
class Run:
    """One thing to open.

    Attributes:
        path: folder or file.
        kind: one of `KINDS`.
        name: short, unlike any other's in the list.
        models, corpus, date: as far as the file says; else "".
        finding: one sentence; of an unreadable one, what is wrong.
    """

    path: str
    kind: str
    name: str
    models: str
    corpus: str
    date: str
    finding: str

    def has(self, words: str) -> bool:
        """Whether all words are somewhere in what is listed."""
        said = " ".join((self.name, self.kind, self.models, self.corpus, self.finding)).lower()
        return all(word in said for word in words.lower().split())


def roots(given: list[str]) -> list[Path]:
    """Where to look: what was given, the working directory's folders, what is bundled."""
    found = [_whole(Path(path)) for path in given]
    found += [Path.cwd() / name for name in HERE]
    found += [folder for folder in (BUNDLED, bundled_checkpoints()) if folder]
    return [path for path in dict.fromkeys(found) if path.exists()]


def _whole(folder: Path) -> Path:
    """The report that a result is a part of, else the result."""
    above = folder.parent.parent
    return above if folder.parent.name == "results" and (above / REPORT).is_file() else folder


def catalogue(given: list[str]) -> list[Run]:
    """Everything found, each once, in the order of `roots`."""
    found: dict[Path, Run] = {}
    for root in roots(given):
        for path in _candidates(root):
            if path not in found and len(found) < MOST:
                run = _run(path, root)
                if run:
                    found[path] = run
    often = Counter(run.name for run in found.values())
    return [replace(r, name=r.path) if often[r.name] > 1 else r for r in found.values()]


def _candidates(root: Path) -> Iterator[Path]:
    """Files that may say what a run is; links to folders are not followed."""
    if root.is_file():
        yield root
    depth = len(root.parts)
    for folder, below, files in os.walk(root):
        here = Path(folder)
        below[:] = sorted(name for name in below if not name.startswith("."))
        if len(here.parts) - depth >= DEEPEST or REPORT in files:
            below.clear()
        if "config.json" in files and "metrics.json" not in files:  # a checkpoint
            files = [name for name in files if name == "training_log.json"]
        if REPORT in files:
            files = [REPORT]
        elif RESULT in files:
            files = [RESULT]
        elif "metrics.json" in files:
            files = ["metrics.json"]
        yield from (here / name for name in sorted(files) if name.endswith(".json"))


def _run(file: Path, root: Path) -> Run | None:
    if file.name.startswith(SPEED):
        return None
    try:
        state = file.stat()
        return _read(str(file), str(root), state.st_mtime_ns, state.st_size)
    except OSError as error:
        return _unreadable(file, root, f"{file} cannot be read: {error.strerror}")


@lru_cache(maxsize=4 * MOST)
def _read(path: str, root: str, changed: int, size: int) -> Run:
    file = Path(path)
    try:
        if size > LARGEST:
            raise CheckpointError(f"{file} is larger than {LARGEST >> 20} MiB")
        document = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise CheckpointError(f"{file} is JSON of something else")
        return _listed(file, Path(root), document)
    except CheckpointError as error:
        return _unreadable(file, Path(root), str(error))
    except (OSError, ValueError, RecursionError) as error:
        return _unreadable(file, Path(root), f"{file} cannot be read: {error}")
    except (KeyError, TypeError, AttributeError) as error:
        return _unreadable(file, Path(root), f"{file} is damaged: {type(error).__name__}: {error}")


def _listed(file: Path, root: Path, document: dict[str, Any]) -> Run:
    if file.name == REPORT:
        facts = _report(document)
    elif file.name == RESULT:
        facts = _result(document)
    elif file.name == "metrics.json":
        one = read_evaluation(file.parent)
        facts = ("evaluation", one.name, one.data, one.date, one.summary())
    elif document.get("schema") == PAPER:
        paper = read_paper_figure(file)
        facts = ("paper", "", paper.source, "", paper.summary())
    elif "history" in document:
        log = read_training(file)
        facts = ("training", log.name, str(log.settings["data"]), "", log.summary())
    elif "differences" in document:
        facts = ("comparison", "", "", "", read_comparison(file).summary())
    else:
        raise CheckpointError(f"{file} is JSON of something else")
    folder = file.name in (REPORT, RESULT, "metrics.json")
    return Run(str(file.parent if folder else file), facts[0], _name(file, root), *facts[1:])


def _report(document: dict[str, Any]) -> tuple[str, str, str, str, str]:
    if not str(document["schema"]).startswith("engram.report"):
        raise CheckpointError("it is JSON of something else")
    came, findings = document["provenance"], document["findings"]
    found = str(findings[0]) if findings else f"{len(document['sections'])} parts."
    date = str(document["created_utc"])[:10]
    return "report", _models(came), str(document["spec"]["data"]), date, found


def _result(document: dict[str, Any]) -> tuple[str, str, str, str, str]:
    from engram_probes.results import KINDS as PROBES

    if document.get("kind") not in PROBES:
        raise CheckpointError("result.json is not the result of a probe")
    came = document["provenance"]
    corpus = came["corpus"].get("source") or came["corpus"].get("kind", "")
    read = str(corpus["spec"] if isinstance(corpus, dict) else corpus)
    return "result", _models(came), read, "", str(document["summary"])


def _models(came: dict[str, Any]) -> str:
    return " and ".join(dict.fromkeys(str(model["name"]) for model in came["models"]))


def _name(file: Path, root: Path) -> str:
    """From the root on, without the file where the folder says it."""
    inside = file.relative_to(root.parent)
    known = (REPORT, RESULT, "metrics.json")
    return str(inside.parent if file.name in known else inside.with_suffix(""))


def _unreadable(file: Path, root: Path, said: str) -> Run:
    line = " ".join(said.split())[:300]
    return Run(str(file), "unreadable", _name(file, root), "", "", "", line)


READERS: dict[str, Callable[[Path], Any]] = {
    "evaluation": read_evaluation,
    "training": read_training,
    "comparison": read_comparison,
    "paper": read_paper_figure,
}
