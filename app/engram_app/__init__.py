"""The three doors of the workbench: command line, report and explorer."""

_HOME = {"write_report": "report"}
__all__ = list(_HOME)


def __getattr__(name: str):
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module 'engram_app' has no attribute {name!r}")
    value = getattr(import_module(f"engram_app.{_HOME[name]}"), name)
    globals()[name] = value
    return value
