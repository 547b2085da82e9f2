"""Which rows a text reads, and how evenly the corpus uses all of them."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from engram_app.report.parts.base import (
    Figure,
    Inputs,
    KeyNumber,
    Part,
    Results,
    Section,
    table,
)
from engram_probes.row_use import RowLoad
from engram_probes.slots import SlotTrace


@dataclass(frozen=True)
class Slots(Part):
    """text: whose rows are traced; none: the first example. data: the corpus that shares the rows;
    none: the report's."""

    name = "slots"
    title = "Which rows are read, and who shares them"
    question = "Which rows does a text read, and does the hash spread a corpus evenly over them?"
    needs = ("memory",)
    rank = 7

    text: str = ""
    data: str = ""

    def size(self, inputs: Inputs) -> str:
        return f"all n-grams of {self.data or inputs.size}, and one text"

    def measure(self, inputs: Inputs) -> Results:
        from engram_app.examples import NAMES
        from engram_probes import inspect_slots, row_load
        from engram_probes.slot_index import build_index

        corpus: Any = self.data or inputs.documents
        with inputs.bar("counting n-grams", "documents") as update:
            index = build_index(inputs.model, inputs.tokenizer, corpus, progress=update)
        return {
            "slots": inspect_slots(inputs.model, inputs.tokenizer, self.text or NAMES, index),
            "row-load": row_load(index, inputs.tokenizer),
        }

    def section(self, results: Results) -> Section:
        trace, load = _trace(results), _load(results)
        return Section(
            finding=load.summary(),
            method=(
                "Every n-gram of the corpus is hashed as the memory does it. A row's load is the "
                "number of distinct n-grams that read it; under a uniform hash loads are Poisson "
                "distributed, and their variance over their mean (the dispersion) is 1. Tenants of "
                "a row are the other n-grams of the corpus that read it."
            ),
            caveats=[
                f"{load.tokens:,} n-grams of each order: a larger corpus fills more rows, and "
                "rows that are unused here are not unused in training.",
                "The traced text is an example; it is no sample of anything.",
            ],
            figures=[_load_figure(load), _trace_figure(trace)],
        )

    def key_numbers(self, results: Results) -> list[KeyNumber]:
        load, trace = _load(results), _trace(results)
        over = f"{load.tokens:,} n-grams of each order"
        unused = float(load.unused.sum() / load.table_rows.sum())
        hot = float(load.hot_share.mean())
        quiet = {"headline": False}
        reads = "Reads of the most read 1% of the rows"
        numbers = [
            KeyNumber(
                "slots.dispersion",
                "Spread of the rows' load",
                float(load.dispersion.mean()),
                "1 for a uniform hash",
                over,
            ),
            KeyNumber("slots.unused", "Rows that are unused", unused, "share", over, **quiet),
            KeyNumber("slots.hot", reads, hot, "share", over, **quiet),
        ]
        ordinary = ~trace.special
        if trace.tenants is not None and ordinary.any():
            shared, tenants = "Others in a row of the text", trace.tenants[:, ordinary].mean()
            numbers.append(
                KeyNumber("slots.tenants", shared, float(tenants), "n-grams", over, **quiet)
            )
        return numbers

    def alerts(self, results: Results) -> list[str]:
        load = _load(results)
        low, high = load.dispersion_band
        outside = int(((load.dispersion < low) | (load.dispersion > high)).sum())
        # One in twenty is outside by chance.
        if outside <= max(1, 0.1 * load.dispersion.size):
            return []
        return [
            f"In {outside} of {load.dispersion.size} heads the load of the rows is not spread as a "
            "uniform hash's."
        ]


def _trace(results: Results) -> SlotTrace:
    return cast(SlotTrace, results["slots"])


def _load(results: Results) -> RowLoad:
    return cast(RowLoad, results["row-load"])


def _load_figure(load: RowLoad) -> Figure:
    frame = load.to_frame()
    names = {
        "layer": "layer",
        "order": "order",
        "head": "head",
        "rows": "rows",
        "load": "load",
        "unused": "unused",
        "unused_expected": "expected",
        "dispersion": "dispersion",
        "largest": "largest load",
        "hottest_ngrams": "most read row",
    }
    numbers = table("Rows by layer, order and head", {names[name]: frame[name] for name in names})
    caption = (
        f"How many distinct n-grams read a row of layer {load.layers[0]}, and the Poisson law of a "
        "uniform hash."
    )
    return Figure("row-load", load.figure(), caption, numbers)


def _trace_figure(trace: SlotTrace) -> Figure:
    """One row of the table for each token and order, the heads together."""
    orders = len(trace.ngram_texts)
    columns: dict[str, list] = {"layer": [], "token": [], "n-gram": [], "rows": [], "tenants": []}
    for position in np.flatnonzero(~trace.special):
        for layer, order in np.ndindex(len(trace.layers), orders):
            heads = slice(order * trace.n_heads, (order + 1) * trace.n_heads)
            place = (layer, position, heads)
            columns["layer"].append(trace.layers[layer])
            columns["token"].append(trace.tokens[position])
            columns["n-gram"].append(trace.ngram_texts[order][position])
            columns["rows"].append(" ".join(map(str, trace.slots[place])))
            columns["tenants"].append(" ".join(map(str, trace.values("tenants")[place])))
    caption = f"Other n-grams of the corpus in each row that a text reads. {trace.summary()}"
    numbers = table("Rows of the text, a number for each head", columns)
    return Figure("slots", trace.figure("tenants"), caption, numbers)
