"""Where the command line writes: data to stdout, progress and remarks to stderr."""

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from engram_model.errors import UsageError

EVERY = 15  # seconds between two lines of progress where there is no terminal
Report = Callable[..., None]  # called with (done) or (done, total)


def out() -> Console:
    """stdout. Made for each use: a test, or a caller, may have replaced the stream."""
    return Console(highlight=False)


def err() -> Console:
    """stderr."""
    return Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """One remark on stderr."""
    err().print(text, markup=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """Exactly one JSON document on stdout."""
    print(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))


def print_text(text: str) -> None:
    """Text on stdout, as it is."""
    out().print(text, markup=False, soft_wrap=True)


def print_rows(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table on stdout: drawn in a terminal, separated by tabs in a file or pipe."""
    console = out()
    if not console.is_terminal:
        for row in (*([[title]] if title else []), headers, *rows):
            print("\t".join(row))
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for index, header in enumerate(headers):
        numbers = bool(rows) and all(_is_number(row[index]) for row in rows)
        table.add_column(Text(header), justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _is_number(text: str) -> bool:
    return text[:1] in "-+0123456789" or text in ("", "–")


@contextmanager
def progress(what: str, unit: str = "", total: int | None = None) -> Iterator[Report]:
    """A bar on stderr; without a terminal, a line when it begins, every 15 seconds, and when it is
    done.

    Yields:
        Function to call with what is done, and the total where it becomes known.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = err()
    if not console.is_terminal:
        console.print(f"{what} ...", markup=False)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task(what, total=total, state="")
    reached, said = 0, time.monotonic()

    def update(done: int, all_of_it: int | None = None) -> None:
        nonlocal reached, said
        reached, most = done, all_of_it if all_of_it is not None else total
        state = f"{done:,}{f' / {most:,}' if most else ''} {unit}"
        bar.update(task, completed=done, total=most, state=state)
        if not console.is_terminal and time.monotonic() - said > EVERY:
            said = time.monotonic()
            console.print(f"{what}: {state}", markup=False)

    with bar:
        yield update
        bar.update(task, completed=max(reached, 1), total=max(reached, 1))
    if not console.is_terminal and reached:
        console.print(f"{what}: {reached:,} {unit}", markup=False)


def command_line() -> str:
    """The command as it was typed, for provenance."""
    return shlex.join(["engram", *sys.argv[1:]])


def number(text: str) -> int:
    """`60M`, `500K` or `1000` as a number of tokens.

    Raises:
        UsageError: something else.
    """
    units = {"K": 10**3, "M": 10**6, "B": 10**9}
    try:
        value = float(text[:-1]) * units[text[-1].upper()] if text[-1:].isalpha() else float(text)
    except (KeyError, ValueError):
        value = 0
    if not 1 <= value < 2**53:
        raise UsageError(f"{text!r} is no number of tokens; write 60M, 500K or 1000")
    return int(value)
