"""Markdown that several files write."""

from collections.abc import Sequence


def table(header: Sequence, rows: Sequence[Sequence]) -> str:
    """A table; cells are shown as they print."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
