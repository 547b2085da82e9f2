"""Where in the corpus rows of the memory speak loudest."""

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from engram_app.report.parts.base import (
    Count,
    Figure,
    Inputs,
    KeyNumber,
    Part,
    Results,
    Section,
    Tokens,
    ends,
    few_documents,
    table,
)
from engram_probes.contexts import RowContexts

BEFORE = 16  # characters before a read that a table shows
UNITS = {"contribution": "of the residual", "gate": "gate"}


@dataclass(frozen=True)
class Rows(Part):
    """Options as of `engram_probes.row_contexts`. slots: "ROW,..." or "LAYER:ROW,..."; ngram: whose
    rows; neither: the most read row of each head. tokens: read at most, 0: all."""

    name = "rows"
    title = "Where rows speak loudest"
    question = "What do single rows of the memory answer to, and is it more than chance?"
    needs = ("memory",)

    slots: str = ""
    ngram: str = ""
    by: Literal["contribution", "gate"] = "contribution"
    top: Count = 5
    around: int = 8
    controls: int = 20
    tokens: Tokens = 10_000

    def size(self, inputs: Inputs) -> str:
        which = self.slots or self.ngram or "the most read row of each head"
        return f"{inputs.first(self.tokens)}, for {which}; {self.controls} random rows for each"

    def measure(self, inputs: Inputs) -> Results:
        from engram_app.commands.probe.common import slots_of
        from engram_probes import row_contexts

        chosen = slots_of(self.slots or None)
        with inputs.bar("reading rows", "documents") as update:
            found = row_contexts(
                inputs.model,
                inputs.tokenizer,
                inputs.documents,
                chosen,
                ngram=self.ngram or None,
                by=self.by,
                k=self.top,
                around=self.around,
                controls=self.controls,
                max_tokens=self.tokens or None,
                seed=inputs.seed,
                progress=update,
            )
        return {"rows": found}

    def section(self, results: Results) -> Section:
        result = _contexts(results)
        return Section(
            finding=result.summary(),
            method=(
                f"Every read of these rows in the corpus is ranked by {_said(result)} and the "
                "strongest are kept. Beside the mean of all of a row's reads stands that of random "
                "rows of the same head. Intervals draw documents."
            ),
            caveats=[
                "The strongest reads are the extremes of a row, no sample of its reads; the mean "
                "is over all of them.",
                "A row is shared by all n-grams that are hashed to it.",
                f"{result.tokens:,} tokens of {result.documents:,} documents.",
            ],
            figures=[_figure(result)],
        )

    def key_numbers(self, results: Results) -> list[KeyNumber]:
        result = _contexts(results)
        read = np.flatnonzero(result.reads)
        if not read.size:
            return []
        row = int(np.nanargmax(result.strength[:, 0]))
        unit, rows = UNITS[result.by], f"{read.size} rows that are read"
        numbers = [
            KeyNumber(
                "rows.strongest",
                f"Mean {result.by} of {result.name(row)}",
                float(result.mean[row]),
                unit,
                f"{result.reads[row]:,} reads",
                *ends(result.mean_low[row], result.mean_high[row]),
            ),
            _quiet("rows.mean", f"Mean {result.by} of a row", result.mean[read].mean(), unit, rows),
        ]
        known = read[np.isfinite(result.control[read])]
        if known.size:
            name, value = "The same of random rows", result.control[known].mean()
            apart = (_above(result) | _below(result))[known].mean()
            numbers += [
                _quiet("rows.control", name, value, unit, rows),
                _quiet("rows.apart", "Rows that differ from random ones", apart, "share", rows),
            ]
        return numbers

    def alerts(self, results: Results) -> list[str]:
        result = _contexts(results)
        said = few_documents(result.documents)
        if unread := int((result.reads == 0).sum()):
            said.append(f"{unread} of {len(result.reads)} rows are not read in the corpus.")
        known = (result.reads > 0) & np.isfinite(result.control)
        alike = known & ~(_above(result) | _below(result))
        if alike.any():
            said.append(
                f"The {result.by} of {alike.sum()} of {known.sum()} rows cannot be told from that "
                "of random rows of their heads."
            )
        return said


def _contexts(results: Results) -> RowContexts:
    return cast(RowContexts, results["rows"])


def _said(result: RowContexts) -> str:
    if result.by == "gate":
        return "its gate, the mean over streams,"
    return "its contribution (size of what gate and value projection make of it over the residual)"


def _quiet(name: str, said: str, value: float, unit: str, over: str) -> KeyNumber:
    return KeyNumber(name, said, float(value), unit, over, headline=False)


def _above(result: RowContexts) -> np.ndarray:
    """Rows whose interval lies above that of random rows, [R]; False where there is none."""
    return result.mean_low > result.control_high


def _below(result: RowContexts) -> np.ndarray:
    return result.mean_high < result.control_low


def _figure(result: RowContexts) -> Figure:
    rows = range(len(result.slots))
    columns: dict[str, Any] = {
        "row": [_short(result, row) for row in rows],
        "reads": result.reads,
        "n-grams": result.distinct,
        "mean": result.mean,
        "low": result.mean_low,
        "high": result.mean_high,
        "random rows": result.control,
        "strongest": result.strength[:, 0],
        "at": [_text(result, row) for row in rows],
    }
    caption = (
        f"The strongest reads of each row by {result.by}, the mean of all its reads and that of "
        "random rows of its head, with 95% intervals."
    )
    numbers = table(f"Rows by {result.by}, and their strongest read", columns)
    return Figure("rows", result.figure(), caption, numbers)


def _text(result: RowContexts, row: int) -> str:
    """The end of the strongest read, its token in brackets; more is in tables/rows.csv."""
    if not result.token[row]:
        return "–"
    return f"{result.before[row][0][-BEFORE:]}[{result.token[row][0]}]"


def _short(result: RowContexts, row: int) -> str:
    """As the figure has it."""
    place = f"L{result.layers[row]} {result.orders[row]}-gram h{result.heads[row]}"
    return f"{place}, row {result.slots[row]}"
