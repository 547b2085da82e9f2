"""Files that are whole or not there, and what was installed when they were written."""

import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def write_whole(file: Path, content: str | bytes) -> None:
    """Write under a temporary name first: a reader never meets half a file. Text as UTF-8."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
