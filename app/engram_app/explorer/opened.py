"""What the explorer was asked to open. Passed to its sessions in the environment."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from engram_model.errors import CheckpointError
from engram_probes.results import JSON_FILE

OPENED = "ENGRAM_OPENED"
BUNDLED = ("engram-mini", "moe-mini")
BUNDLED_RESULTS = Path(__file__).parents[3] / "docs" / "results"
LONGEST_PATH = 1000  # characters


@dataclass(frozen=True)
class Opened:
    """models: checkpoints, the one to look at first. results: folders that `load_result` opens."""

    models: list[str]
    results: list[str]

    @classmethod
    def find(cls, paths: list[str]) -> "Opened":
        """Sort paths into checkpoints and saved results; the bundled pair where there are none.

        Raises:
            CheckpointError: a path that holds neither.
        """
        from engram_model.checkpoint import find_checkpoint

        models: list[str] = []
        results: list[str] = []
        for path in paths or [name for name in BUNDLED if name in _bundled()] or BUNDLED[:1]:
            found = results_in(Path(path))
            results += [str(folder) for folder in found]
            if not found:
                models.append(str(find_checkpoint(path)))
        return cls(models, results)

    @classmethod
    def now(cls) -> "Opened":
        """What this process serves."""
        given = os.environ.get(OPENED)
        return cls(**json.loads(given)) if given else cls.find([])

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def results_in(folder: Path) -> list[Path]:
    """Saved results in a folder: itself, and those two levels down (a report keeps them there)."""
    if not folder.is_dir() or (folder / "config.json").is_file():
        return []
    found = {p.parent for depth in ("", "*/", "*/*/") for p in folder.glob(f"{depth}{JSON_FILE}")}
    return sorted(found)


def bundled_models() -> list[str]:
    """Paths of the models that come with the project, those shown first in front."""
    from engram_model.checkpoint import bundled_checkpoints

    root = bundled_checkpoints()
    names = sorted(_bundled(), key=lambda name: (name not in BUNDLED, name))
    return [str(root / name) for name in names] if root else []


def find_model(path: str) -> str:
    """The folder of a checkpoint given by name or path.

    Raises:
        CheckpointError: there is none.
    """
    from engram_model.checkpoint import find_checkpoint

    if len(path) > LONGEST_PATH or not path.isprintable():
        raise CheckpointError("that is no path of a checkpoint")
    try:
        return str(find_checkpoint(Path(path).expanduser()).resolve())
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"no checkpoint at {path}: {error}") from None


def bundled_results() -> list[Path]:
    """Results over a corpus that come with the source tree, beside its documentation."""
    return results_in(BUNDLED_RESULTS)


def _bundled() -> list[str]:
    from engram_model.checkpoint import bundled_names

    return bundled_names()


def check_model(path: str) -> str:
    """The checkpoint's name.

    Raises:
        CheckpointError: it is no longer there.
    """
    if not (Path(path) / "config.json").is_file():
        raise CheckpointError(f"no checkpoint at {path} any more; start the explorer again")
    return Path(path).name
