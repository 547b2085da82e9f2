"""Folders that appear whole, and replace nothing but their like."""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from engram_model.errors import UsageError


def check_out(out: Path, force: bool, file: str, schema: str) -> None:
    """See before a long run that nothing else is lost.

    Args:
        file: JSON that an earlier one holds, whose `schema` begins with `schema`.

    Raises:
        UsageError: a file, or a folder that holds other things.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; give a folder")
    if force or not out.is_dir() or not any(out.iterdir()):
        return
    try:
        held = json.loads((out / file).read_text(encoding="utf-8"))["schema"]
    except (OSError, ValueError, KeyError, TypeError):
        held = ""
    if not str(held).startswith(schema):
        raise UsageError(f"{out} is not empty and holds no report; give another folder or --force")


def replace_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Write to a folder beside `out`, then put it in its place; nothing half is ever seen."""
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    fresh.mkdir()
    try:
        write(fresh)
        old = fresh.with_name(f"{fresh.name}.old")
        if out.exists():
            os.replace(out, old)
        os.replace(fresh, out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
