"""Read UTF-8 text from plain, .gz and .xz files, and say where a damaged one breaks."""

import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from engram_model.errors import CorpusError

OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open}
DAMAGE = (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError)


def read_lines(path: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of each line. Raises CorpusError with the path and the place."""
    number = offset = 0
    try:
        with _open(path) as file:
            for line in file:
                number += 1
                yield number, _decode(line, path, offset)
                offset += len(line)
    except DAMAGE as error:
        raise CorpusError(
            f"{path}: damaged after line {number} ({error}); fetch or write it again"
        ) from None
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_text(path: str) -> str:
    """The whole file. Raises CorpusError with the path and the place."""
    return "".join(line for _, line in read_lines(path))


def _open(path: str) -> IO[bytes]:
    for suffix, opener in OPENERS.items():
        if path.endswith(suffix):
            return opener(path, "rb")
    return open(path, "rb")


def _decode(line: bytes, path: str, offset: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}: not UTF-8 at byte {offset + error.start}; convert it to UTF-8"
        ) from None
