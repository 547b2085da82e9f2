"""Finished parts of a report that was stopped, for the run that takes it up again."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engram_app.report.parts.base import Part, Results
from engram_model.errors import CheckpointError
from engram_model.files import write_whole
from engram_probes.provenance import Provenance
from engram_probes.results import load_result

DONE = "done.json"


class Kept:
    """Parts in a folder, each with a key of all that its numbers depend on."""

    def __init__(self, folder: Path, came: Provenance) -> None:
        self._folder = folder
        self._came = {name: value for name, value in asdict(came).items() if name != "command"}

    def find(self, part: Part, depends: list[str]) -> tuple[Results, float, list[str]] | None:
        """Results, seconds and notes of the part if it was measured on the same in every way."""
        folder = self._folder / part.name
        try:
            done = json.loads((folder / DONE).read_text(encoding="utf-8"))
            if done["key"] != self._key(part, depends):
                return None
            results = {name: load_result(folder / name) for name in done["results"]}
            return results, float(done["seconds"]), list(done["notes"])
        except (OSError, ValueError, KeyError, TypeError, CheckpointError):
            return None  # measured again

    def keep(
        self, part: Part, depends: list[str], results: Results, seconds: float, notes: list[str]
    ) -> None:
        """What is written last says that all is there."""
        folder = self._folder / part.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DONE).unlink(missing_ok=True)
        for name, result in results.items():
            result.save(folder / name)
        done = {
            "key": self._key(part, depends),
            "results": list(results),
            "seconds": seconds,
            "notes": notes,
        }
        write_whole(folder / DONE, json.dumps(done) + "\n")

    def _key(self, part: Part, depends: list[str]) -> str:
        own: dict[str, Any] = {"part": part.name, "options": asdict(part), "depends": depends}
        text = json.dumps({**own, **self._came}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()
