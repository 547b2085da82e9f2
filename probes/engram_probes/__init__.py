"""Probes of an Engram transformer: each gives a result that needs neither model nor torch."""

_HOME = {
    "Alignment": "alignment",
    "GateMap": "gates",
    "LinearProbe": "linear",
    "LogitLens": "lens",
    "cka": "alignment",
    "gate_map": "gates",
    "linear_cka": "hsic",
    "load_result": "results",
    "logit_lens": "lens",
}
_SUBMODULES = ("linear",)
__all__ = [*_HOME, *_SUBMODULES]


def __getattr__(name: str):
    from importlib import import_module

    if name in _SUBMODULES:
        return import_module(f"engram_probes.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'engram_probes' has no attribute {name!r}")
    value = getattr(import_module(f"engram_probes.{_HOME[name]}"), name)
    globals()[name] = value
    return value
