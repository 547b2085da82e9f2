"""Models and results, computed once for all sessions of the server.

A model is known by its path and a stamp of its files. Sessions are threads: one of them runs a
model at a time.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import streamlit as st

from engram_probes.alignment import Alignment
from engram_probes.gates import GateMap
from engram_probes.lens import LogitLens
from engram_probes.results import Result

FILES = ("config.json", "tokenizer.json", "*.safetensors")
ALIGNMENT_DATA = "world:?seed=0&split=valid&tokens=20K"
ALIGNMENT_DOCUMENTS = 200
ALIGNMENT_OPTIONS: dict[str, Any] = {"positions": "entity"}
RUNNING = Lock()


@dataclass(frozen=True, eq=False)
class Held:
    """An opened model. Take `RUNNING` to run it."""

    model: Any
    tokenizer: Any


def stamp(path: str) -> str:
    """Changes when any file of the checkpoint does."""
    files = sorted(file for pattern in FILES for file in Path(path).glob(pattern))
    state = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(repr(state).encode()).hexdigest()[:16]


@st.cache_resource(max_entries=4, show_spinner="Opening the model …")
def _held(path: str, stamp: str) -> Held:
    from engram_app.opening import open_model

    return Held(*open_model(path))


def held(path: str) -> Held:
    """The model at a path, opened once."""
    return _held(path, stamp(path))


def weights(path: str) -> str:
    """Checksum of a model's weights, as results carry it."""
    from engram_probes.provenance import weights_sha256

    return weights_sha256(held(path).model)


@st.cache_resource(max_entries=64, show_spinner=False)
def _gates(path: str, stamp: str, text: str) -> GateMap:
    from engram_probes import gate_map

    one = _held(path, stamp)
    with RUNNING:
        return gate_map(one.model, one.tokenizer, text)


def gates(path: str, text: str) -> GateMap:
    """Gate map of a text; treat it as read-only."""
    return _gates(path, stamp(path), text)


@st.cache_resource(max_entries=64, show_spinner=False)
def _lens(path: str, stamp: str, text: str) -> LogitLens:
    from engram_probes import logit_lens

    one = _held(path, stamp)
    with RUNNING:
        return logit_lens(one.model, one.tokenizer, text)


def lens(path: str, text: str) -> LogitLens:
    """Logit lens of a text; treat it as read-only."""
    return _lens(path, stamp(path), text)


@st.cache_resource(max_entries=4, show_spinner=False)
def _alignment(path: str, stamp_a: str, other: str, stamp_b: str, _progress: Any) -> Alignment:
    from itertools import islice

    from engram_model.corpora import describe, iter_documents
    from engram_probes import cka

    first, second = _held(path, stamp_a), _held(other, stamp_b)
    documents = list(islice(iter_documents(ALIGNMENT_DATA), ALIGNMENT_DOCUMENTS))
    with RUNNING:
        result = cka(
            first.model,
            second.model,
            first.tokenizer,
            documents,
            progress=_progress,
            **ALIGNMENT_OPTIONS,
        )
    corpus = {**result.provenance.corpus, "source": describe(ALIGNMENT_DATA)}
    return result.with_provenance(corpus=corpus)


def alignment(path: str, other: str, progress: Any) -> Alignment:
    """Alignment of two models, computed here; `progress` is called with (done, total)."""
    return _alignment(path, stamp(path), other, stamp(other), progress)


@st.cache_resource(max_entries=64, show_spinner=False)
def _saved(folder: str, stamp: int) -> Result:
    from engram_probes import load_result

    return load_result(folder)


def saved(folder: str | Path) -> Result:
    """A saved result."""
    file = Path(folder) / "result.json"
    return _saved(str(folder), file.stat().st_mtime_ns if file.exists() else 0)
