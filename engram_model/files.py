"""Files that are whole or not there, and what was installed when they were written."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file that a reader never meets half. Text as UTF-8."""
    with becoming(file) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def becoming(file: Path) -> Iterator[Path]:
    """A path to write to; what is there at the end takes the place of `file`, after an error
    nothing does."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def file_sha256(file: str | Path) -> str:
    """Checksum of a file's bytes, without holding them."""
    with Path(file).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
