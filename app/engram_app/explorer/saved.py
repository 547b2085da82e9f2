"""Saved results that belong to the pair of models looked at."""

from pathlib import Path
from typing import TypeVar

from engram_app.explorer import cached
from engram_app.explorer.opened import Opened, bundled_results
from engram_app.explorer.state import Looking
from engram_probes.results import Result

Kind = TypeVar("Kind", bound=Result)


def find_saved(kind: type[Kind], looking: Looking) -> Kind | None:
    """One of this kind and of these very weights: opened, or one that comes with the project."""
    assert looking.twin is not None
    weights = [cached.weights(path) for path in (looking.path, looking.twin)]
    folders = [*map(Path, Opened.now().results), *bundled_results()]
    for folder in folders:
        result = cached.saved(folder)
        measured = [model["weights_sha256"] for model in result.provenance.models]
        if isinstance(result, kind) and measured == weights:
            return result
    return None
