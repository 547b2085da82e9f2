"""An Engram transformer: config, hashing, memory, model, hooks, corpora and training."""

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


def __getattr__(name: str):
    from importlib import import_module

    if name in _SUBMODULES:
        return import_module(f"engram_model.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'engram_model' has no attribute {name!r}")
    value = getattr(import_module(f"engram_model.{_HOME[name]}"), name)
    globals()[name] = value
    return value
