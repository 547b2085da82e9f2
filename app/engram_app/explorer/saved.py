"""Saved results that belong to the pair of models looked at."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from engram_app.explorer import cached
from engram_app.explorer.opened import Opened, bundled_results
from engram_app.explorer.state import Looking
from engram_probes.results import Result

Kind = TypeVar("Kind", bound=Result)


def find_saved(kind: type[Kind], looking: Looking) -> Kind | None:
    """One of this kind and of the pair looked at: opened, or one that comes with the project."""
    assert looking.twin is not None
    return next(saved_of(kind, looking.path, looking.twin), None)


def saved_of(kind: type[Kind], *paths: str) -> Iterator[Kind]:
    """Those of this kind that were measured on the very weights of these checkpoints."""
    weights = [cached.weights(path) for path in paths]
    for folder in [*map(Path, Opened.now().results), *bundled_results()]:
        result = cached.saved(folder)
        measured = [model["weights_sha256"] for model in result.provenance.models]
        if isinstance(result, kind) and measured == weights:
            yield result
