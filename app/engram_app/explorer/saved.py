"""Saved results that belong to the models looked at: found by what their JSON says they are of.

No model is opened, and no result but those that are shown.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import streamlit as st

from engram_app.explorer import cached
from engram_app.explorer.opened import Opened, bundled_results
from engram_app.explorer.state import Looking
from engram_model.errors import CheckpointError
from engram_probes.results import JSON_FILE, Result

Kind = TypeVar("Kind", bound=Result)


@dataclass(frozen=True)
class Saved:
    """folder: of the result. kind: of it. models, weights: names and checksums of what it is of."""

    folder: str
    kind: str
    models: tuple[str, ...]
    weights: tuple[str, ...]

    @property
    def name(self) -> str:
        return Path(self.folder).name


@st.cache_data(max_entries=512, show_spinner=False)
def _described(folder: str, stamp: int) -> Saved | None:
    try:
        document = json.loads((Path(folder) / JSON_FILE).read_text(encoding="utf-8"))
        models = document["provenance"]["models"]
        names, weights = zip(*((m["name"], m["weights_sha256"]) for m in models), strict=True)
        return Saved(folder, document["kind"], names, weights)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the page of saved results says what is wrong with it


def all_saved(*kinds: type[Result]) -> list[Saved]:
    """Those of these kinds: opened ones, then those that come with the project."""
    folders = dict.fromkeys([*Opened.now().results, *map(str, bundled_results())])
    found = [_described(folder, cached.result_stamp(folder)) for folder in folders]
    names = {kind.kind for kind in kinds}
    return [one for one in found if one is not None and one.kind in names]


@st.cache_data(max_entries=64, show_spinner=False)
def _weights(path: str, stamp: str) -> str:
    from engram_probes.provenance import checkpoint_sha256

    try:
        return checkpoint_sha256(path)
    except CheckpointError:  # weights in another format: no saved result is found
        return ""


def weights(*paths: str | None) -> tuple[str, ...]:
    """Checksums of the weights of checkpoints, as results carry them."""
    return tuple(_weights(path, cached.stamp(path)) for path in paths if path)


def saved_of(kind: type[Kind], *paths: str | None) -> Iterator[Kind]:
    """Those of this kind that were measured on the very weights of these checkpoints."""
    of = weights(*paths)
    for one in all_saved(kind):
        if one.weights == of:
            result = cached.saved(one.folder)
            assert isinstance(result, kind)
            yield result


def find_saved(
    kind: type[Kind], looking: Looking, fits: Callable[[Kind], bool] = lambda _: True
) -> Kind | None:
    """The first of this kind, of the models looked at, that fits."""
    found = saved_of(kind, looking.path, looking.twin)
    return next((result for result in found if fits(result)), None)
