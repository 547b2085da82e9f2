"""Models and results, computed once for all sessions of the server.

A model is known by its path and a stamp of its files, a result by its models and by what was asked.
Sessions are threads: one of them runs a model at a time.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import streamlit as st

from engram_probes.results import JSON_FILE, Result

FILES = ("config.json", "tokenizer.json", "*.safetensors")
MOST_MODELS = 6
MOST_BYTES = 256 * 2**20  # of results
REDRAWN = 0.1  # seconds between two drawings of a progress bar
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, eq=False)
class Held:
    """An opened model. Run it in `measured` only."""

    model: Any
    tokenizer: Any


def stamp(path: str) -> str:
    """Changes when any file of the checkpoint does."""
    files = sorted(file for pattern in FILES for file in Path(path).glob(pattern))
    state = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(repr(state).encode()).hexdigest()[:16]


@st.cache_resource(max_entries=MOST_MODELS, show_spinner="Opening the model …")
def _held(path: str, stamp: str) -> Held:
    from engram_app.opening import open_model

    return Held(*open_model(path))


def held(path: str) -> Held:
    """The model at a path, opened once."""
    return _held(path, stamp(path))


class Store:
    """Results by key; those not asked for longest go first when there are too many bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable) -> Any:
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: Hashable, value: Any) -> None:
        with self._lock:
            self._kept[key] = (value, _bytes(value))
            while len(self._kept) > 1 and self.bytes > self._most:
                self._kept.popitem(last=False)

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self._kept.values())


def _bytes(value: Any) -> int:
    parts = value if isinstance(value, tuple) else (value,)
    results = [part for part in parts if isinstance(part, Result)]
    return sum(array.nbytes for result in results for array in result.arrays().values())


@st.cache_resource
def _store() -> Store:
    return Store(MOST_BYTES)


@st.cache_resource(max_entries=64)
def _running(path: str) -> Lock:
    return Lock()


@st.cache_resource(max_entries=MOST_MODELS, show_spinner="Hooking the model …")
def _bridge(path: str, stamp: str) -> Any:
    from engram_model.bridge import hooked

    one = _held(path, stamp)
    return hooked(one.model, one.tokenizer)


def has_memory(path: str) -> bool:
    """Whether the model has a memory of n-grams."""
    from engram_probes.capture import Subject

    return bool(Subject.of(held(path).model).memories)


def probe(
    name: str,
    path: str,
    *arguments: Hashable,
    _slow: bool = False,
    _hooked: bool = False,
    **options: Any,
) -> Any:
    """A probe's result for one model: `engram_probes.NAME(model, tokenizer, *arguments)`.

    Args:
        arguments, options: of the probe, hashable; they and the model are what it is kept by.
        _slow: it may take more than a second: progress is shown and it can be stopped.
        _hooked: it needs TransformerLens's hooks, which take longer to make than the probe to run:
            the model's bridge is made once.
    """

    def compute(one: Held, progress: Progress | None) -> Any:
        import engram_probes

        model = _bridge(path, stamp(path)) if _hooked else one.model
        told = {"progress": progress} if progress else {}
        return getattr(engram_probes, name)(model, one.tokenizer, *arguments, **options, **told)

    return measured((name, arguments, tuple(sorted(options.items()))), (path,), compute, _slow)


def measured(
    key: Hashable, paths: tuple[str, ...], compute: Callable[..., Any], slow: bool = False
) -> Any:
    """What `compute(*models, progress=)` gives, computed once; treat it as read-only.

    Args:
        key: what is asked, models apart.
        paths: of the models; nobody else runs them meanwhile.
        slow: as in `probe`; else `progress` is None.
    """
    whole = (key, tuple((path, stamp(path)) for path in paths))
    found = _store().get(whole)
    if found is None:
        with _shown(whole, slow) as progress:
            models = [held(path) for path in paths]
            with _alone(paths):
                found = _store().get(whole)  # another session may have computed it meanwhile
                if found is None:
                    found = compute(*models, progress=progress)
                    _store().put(whole, found)
    return found


@contextmanager
def _alone(paths: tuple[str, ...]) -> Iterator[None]:
    """While open, no other session runs these models.

    Who waits is told so, and each telling lets Streamlit end a run that nobody looks at any more.
    """
    place = None
    with ExitStack() as stack:
        for path in sorted(set(paths)):
            lock = _running(path)
            while not lock.acquire(timeout=REDRAWN):
                place = place or st.empty()
                place.caption("Waiting for another session that runs the model …")
            stack.callback(lock.release)
        if place:
            place.empty()
        yield


@contextmanager
def _shown(key: Hashable, slow: bool) -> Iterator[Progress | None]:
    """A progress bar with a button that stops the work; a click interrupts the next drawing."""
    if not slow:
        yield None
        return
    stopped: set = st.session_state.setdefault("stopped", set())
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
    if key in stopped:
        st.info("Stopped before it was done.", icon=":material/stop_circle:")
        st.button("Run it again", key=f"again_{name}", on_click=stopped.discard, args=(key,))
        st.stop()
    place = st.empty()
    with place.container(horizontal=True, vertical_alignment="center"):
        bar = st.progress(0.0, "Working …")
        st.button("Cancel", key=f"cancel_{name}", on_click=stopped.add, args=(key,))
    yield _updating(bar)
    place.empty()


def _updating(bar: Any) -> Progress:
    drawn = 0.0

    def update(done: int, total: int | None) -> None:
        nonlocal drawn
        now = time.monotonic()
        if now - drawn > REDRAWN:
            drawn = now
            share = min(1.0, done / total) if total else 0.0
            bar.progress(share, f"{done:,} of {total:,}" if total else f"{done:,} done")

    return update


@st.cache_resource(max_entries=64, show_spinner=False)
def _saved(folder: str, stamp: int) -> Result:
    from engram_probes import load_result

    return load_result(folder)


def result_stamp(folder: str | Path) -> int:
    """Changes when the saved result does; 0 where there is none."""
    file = Path(folder) / JSON_FILE
    return file.stat().st_mtime_ns if file.exists() else 0


def saved(folder: str | Path) -> Result:
    """A saved result."""
    return _saved(str(folder), result_stamp(folder))
