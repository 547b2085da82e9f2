"""An Engram transformer: config, hashing, memory, model, hooks, corpora and training."""

import sys
from importlib import import_module

_HOME = {
    "EngramConfig": "config",
    "EngramForCausalLM": "modeling",
    "EngramMemory": "memory",
    "NgramHasher": "hashing",
    "compression_map": "compression",
    "hooked": "bridge",
    "load": "checkpoint",
    "load_corpus": "corpora",
}
_SUBMODULES = ("bridge", "errors", "world")
__all__ = [*_HOME, *_SUBMODULES]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str):
    if name in _SUBMODULES:
        return import_module(f"engram_model.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'engram_model' has no attribute {name!r}")
    value = getattr(import_module(f"engram_model.{_HOME[name]}"), name)
    globals()[name] = value
    return value


if sys.modules.get("transformers"):  # its Auto classes should know ours from the start
    import_module("engram_model.modeling")
