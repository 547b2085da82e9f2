"""comparison.html and comparison.md, from what comparison.json holds and the figures of both."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engram_app.report.page import fill
from engram_app.report.plain import safe
from engram_model.markdown import table

if TYPE_CHECKING:
    from engram_app.report.compare import Pair

RULE = (
    "First less second. A difference is decided (more, less) if its 95% interval leaves out zero. "
    "Paired: documents or items were drawn together for both runs, which read the same. "
    "Otherwise the runs count as independent, which makes intervals too wide if they are not. Each "
    "model was trained once: nothing here speaks of other training seeds."
)
SIDES = ("first", "second")
HEADER = ("number", "first", "second", "difference", "95% interval", "first has", "paired", "what")


def render(document: dict[str, Any], told: Sequence["Pair"]) -> str:
    drawn = [figure for pair in told for figure in pair.overlaid]
    drawn += [figure for pair in told for both in pair.side_by_side for figure in both]
    return fill(
        "comparison.html.j2",
        drawn,
        document=document,
        title=title(document),
        summary=summary(document),
        rule=RULE,
        header=HEADER,
        rows=rows(document),
        pairs=told,
    )


def markdown(document: dict[str, Any], told: Sequence["Pair"]) -> str:
    numbers = [[safe(cell) for cell in row] for row in rows(document)]
    differ = [[safe(cell) for cell in row] for row in document["differing"]]
    parts = [
        f"# {safe(title(document))}",
        safe(summary(document)),
        safe(RULE),
        table(list(HEADER), numbers),
        "## What differs between the runs",
        table(["what", "first", "second"], differ) if differ else "Nothing.",
    ]
    for pair in told:
        parts += [f"## {pair.title}"]
        parts += [f"- {w}: {safe(f)}" for w, f in zip(SIDES, pair.findings, strict=True)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def title(document: dict[str, Any]) -> str:
    return " and ".join(
        f"{document[which]['folder']} ({' against '.join(document[which]['models'])})"
        for which in SIDES
    )


def summary(document: dict[str, Any]) -> str:
    """What is decided."""
    verdicts = [change["verdict"] for change in document["differences"]]
    decided = [
        f"{change['id']} {_signed(change['difference'])}"
        for change in document["differences"]
        if change["verdict"] in ("more", "less")
    ]
    total = len(verdicts)
    said = (
        f"{len(decided)} of {total} numbers differ: {', '.join(decided)}"
        if decided
        else (f"None of {total} numbers can be told to differ")
    )
    undecided, without = verdicts.count("undecided"), verdicts.count("no interval")
    return f"{said}; undecided: {undecided}; without an interval: {without}."


def rows(document: dict[str, Any]) -> list[list[str]]:
    return [
        [
            change["id"],
            _shown(change["first"]),
            _shown(change["second"]),
            _signed(change["difference"]),
            "–"
            if change["low"] is None
            else f"{_signed(change['low'])} to {_signed(change['high'])}",
            change["verdict"],
            "yes" if change["paired"] else "no",
            f"{change['name']}, {change['unit']}",
        ]
        for change in document["differences"]
    ]


def _shown(value: float) -> str:
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
