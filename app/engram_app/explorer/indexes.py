"""Indexes of corpora: who hashes where. Built when they are asked for and kept on disk.

They live in a cache folder under a name made of the hash, the tokenizer and the corpus, so that
models which hash alike share them.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from engram_app.explorer import cached
from engram_model.errors import CheckpointError
from engram_probes.slot_index import JSON_FILE, SlotIndex

CORPORA = {
    "world:?seed=0&split=valid&tokens=40K": "Synthetic world, 40 thousand tokens",
    "world:?seed=0&split=valid&tokens=1M": "Synthetic world, 1 million tokens",
    "world:?seed=0&tokens=1M": "Its training split, 1 million tokens",
}


def cache_folder() -> Path:
    """Where this program may keep what it can make again: `XDG_CACHE_HOME`, else `~/.cache`."""
    asked = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(asked) if os.path.isabs(asked) else Path.home() / ".cache"
    return root / "engram-workbench"


def index_of(path: str, spec: str) -> SlotIndex:
    """The index of a corpus for a model's tables; progress is shown while it is built.

    Raises:
        UsageError, CorpusError: the spec or the corpus is wrong.
    """
    from engram_model.corpora import fingerprint

    def compute(one: cached.Held, progress: Any) -> SlotIndex:
        folder = cache_folder() / "indexes" / _name(one, spec)
        return _kept(folder) or _build(one, spec, folder, progress)

    return cached.measured(("index", spec, fingerprint(spec)), (path,), compute, slow=True)


def _name(one: cached.Held, spec: str) -> str:
    """Of all that an index depends on."""
    import numpy as np

    from engram_model.compression import compression_sha256, tokenizer_sha256
    from engram_model.corpora import fingerprint
    from engram_probes.memory_tables import tables_of

    tables = tables_of(one.model)
    parts = (
        tables.hasher.arguments(),
        compression_sha256(np.asarray(tables.compression)),
        tokenizer_sha256(one.tokenizer),
        fingerprint(spec),
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _kept(folder: Path) -> SlotIndex | None:
    """The index in a folder; None: there is none, or it is damaged and must be built anew."""
    from engram_probes.slot_index import open_index

    try:
        return open_index(folder) if (folder / JSON_FILE).is_file() else None
    except CheckpointError:
        return None


def _build(one: cached.Held, spec: str, folder: Path, progress: Any) -> SlotIndex:
    """Built beside the folder and moved there whole; in memory where nothing can be written."""
    from engram_probes.slot_index import build_index, open_index

    index = build_index(one.model, one.tokenizer, spec, progress=progress)
    building = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        index.save(building)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(building, folder)
        return open_index(folder)
    except OSError:
        return index
    finally:
        shutil.rmtree(building, ignore_errors=True)
