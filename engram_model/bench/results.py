"""A stage's rows, from its run to its file."""

import gc
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from engram_model.bench import Stage
from engram_model.bench.measure import Machine, Row
from engram_model.files import installed, write_whole

PACKAGES = ("torch", "triton", "numpy", "transformers", "tile-kernels")


@dataclass
class Results:
    """What one stage found; `error` says in a line why it ended early."""

    stage: Stage
    machine: Machine
    rows: list[Row] = field(default_factory=list)
    error: str | None = None

    def to_dict(self, command: str = "") -> dict[str, Any]:
        machine = {
            "name": self.machine.name,
            "copy_bytes_per_second": self.machine.copy,
            "matrix_operations_per_second": self.machine.matrix,
            "threads": torch.get_num_threads(),
        }
        return {
            "stage": self.stage.name,
            "machine": machine,
            "quick": self.machine.quick,
            "versions": {"python": platform.python_version(), **installed(PACKAGES)},
            "command": command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "error": self.error,
            "rows": [row.to_dict() for row in self.rows],
        }

    def save(self, folder: Path, command: str = "") -> Path:
        """Write `<kind>-<stage>.json`; a reader never meets half a file."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.stage.kind}-{self.stage.name}.json"
        write_whole(file, json.dumps(self.to_dict(command), indent=1, allow_nan=False) + "\n")
        return file


def run(stage: Stage, machine: Machine, on_row: Callable[[Row], None] | None = None) -> Results:
    """Run a stage; whatever goes wrong in it is its result.

    Args:
        on_row: called with each row as soon as it is measured.
    """
    results = Results(stage, machine)
    try:
        for row in stage.function(machine):
            results.rows.append(row)
            if on_row is not None:
                on_row(row)
    except Exception as error:
        if os.environ.get("ENGRAM_DEBUG") == "1":
            raise
        first = (str(error).splitlines() or [""])[0]
        results.error = f"{type(error).__name__}: {first}"
    gc.collect()  # tables of many gigabytes, before the next stage makes its own
    if machine.device == "cuda":
        torch.cuda.empty_cache()
    return results
