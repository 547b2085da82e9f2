"""`engram doctor`: can this machine do what the workbench does?"""

import shutil
from collections.abc import Callable
from typing import Annotated

import typer

from engram_app.console import print_json, print_rows

PACKAGES = (
    "engram-workbench",
    "torch",
    "transformers",
    "transformer-lens",
    "datasets",
    "plotly",
    "streamlit",
)
# Row totals that DeepSeek-V4.1-Flash's released tables have.
RELEASED_ROWS = {1: 384_006_168, 14: 384_016_682}
# A published vector: config, three compressed ids, and the slots of the last of them.
IDS, LAYER, SLOTS = [5, 17, 3], 1, [69, 164, 264, 330]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check versions, device, hash and bundled checkpoints; exit 1 if something is broken."""
    checks = [
        {"check": name, "state": state, "found": found}
        for name, check in CHECKS.items()
        for state, found in [_run(check)]
    ]
    if as_json:
        print_json({"ok": all(c["state"] != "broken" for c in checks), "checks": checks})
    else:
        print_rows(("check", "state", "found"), [tuple(check.values()) for check in checks])
    if any(check["state"] == "broken" for check in checks):
        raise typer.Exit(1)


def _run(check: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """A check that raises is broken: the doctor never falls ill itself."""
    try:
        return check()
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return "broken", f"{type(error).__name__}: {first}"


def _python() -> tuple[str, str]:
    import platform
    import sys

    state = "ok" if sys.version_info >= (3, 11) else "broken"
    return state, f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _package(name: str) -> Callable[[], tuple[str, str]]:
    def check() -> tuple[str, str]:
        from importlib.metadata import PackageNotFoundError, version

        try:
            return "ok", version(name)
        except PackageNotFoundError:
            return "broken", "not installed; run `make setup`"

    return check


def _device() -> tuple[str, str]:
    import torch

    if torch.cuda.is_available():
        return "ok", torch.cuda.get_device_name()
    return "ok", f"CPU, {torch.get_num_threads()} threads"


def _kernels() -> tuple[str, str]:
    from importlib.metadata import version

    import torch

    from engram_model.backend import DEFAULT, choose_backend

    device = "cuda" if torch.cuda.is_available() else "cpu"
    used = choose_backend(DEFAULT, None, torch.zeros(1, device=device))
    what = "Triton kernels" if used == "triton" else "plain operations"
    return "ok", f"{what}; Triton {version('triton')}"


def _chromium() -> tuple[str, str]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    return ("ok", found) if found else ("absent", "needed by the browser tests only")


def _hash() -> tuple[str, str]:
    import numpy as np

    from engram_model import NgramHasher

    small = NgramHasher([1, 3], 3, 2, [101, 101], compressed_vocab_size=100, pad_id=2)
    slots = small.slots(np.array(IDS), LAYER)[-1].tolist()
    if slots != SLOTS:
        return "broken", f"slots {slots} instead of {SLOTS}"
    released = NgramHasher([1, 14], 4, 8, [16_000_000] * 3, 99_092, pad_id=2)
    rows = {layer: released.rows(layer) for layer in RELEASED_ROWS}
    if rows != RELEASED_ROWS:
        return "broken", f"row totals {rows} instead of {RELEASED_ROWS}"
    return "ok", "published slots and row totals reproduced"


def _checkpoints() -> tuple[str, str]:
    from engram_model.checkpoint import bundled_names, check_weights, find_checkpoint, read_config

    names = bundled_names()
    for name in names:
        folder = find_checkpoint(name)
        read_config(folder)
        check_weights(folder)
    return ("ok", ", ".join(names)) if names else ("absent", "set ENGRAM_CHECKPOINTS to a folder")


CHECKS: dict[str, Callable[[], tuple[str, str]]] = {
    "python": _python,
    **{name: _package(name) for name in PACKAGES},
    "device": _device,
    "kernels": _kernels,
    "chromium": _chromium,
    "hash": _hash,
    "checkpoints": _checkpoints,
}
