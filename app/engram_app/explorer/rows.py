"""The rows that an n-gram reads, as pages show them; which row is looked at, in the URL."""

from typing import TYPE_CHECKING, Any

import streamlit as st

from engram_app.explorer import cached
from engram_app.explorer.indexes import CORPORA
from engram_app.explorer.page import plain
from engram_app.explorer.state import pick_or_type
from engram_probes.row_inspection import RowInspection
from engram_probes.slot_index import SlotIndex

if TYPE_CHECKING:
    import pandas as pd

Row = tuple[int, int]  # layer and row of its table
Ngram = str | tuple[int, ...]
URL_KEY = "slots_row"
COLUMNS = {
    "layer": "Layer",
    "order": "Order",
    "ngram": "n-gram",
    "head": "Head",
    "slot": "Row",
    "row_norm": st.column_config.NumberColumn("Norm", format="%.2f"),
    "value_norm": st.column_config.NumberColumn(
        "Value", format="%.2f", help="Size of what the row alone adds to the value"
    ),
    "tenants": st.column_config.NumberColumn(
        "n-grams", help="Distinct n-grams of the corpus that read the row"
    ),
    "reads": st.column_config.NumberColumn("Reads", help="Their occurrences in the corpus"),
    "own_share": st.column_config.ProgressColumn(
        "Its own", format="percent", help="Share of the reads that are this n-gram's"
    ),
    "most_frequent": st.column_config.TextColumn("Read most by", width="large"),
    "says": st.column_config.TextColumn("Favours", width="large"),
}
OF_NGRAM = ("layer", "order", "ngram", "head", "own_share")


def choose_corpus() -> str:
    """The corpus in which others are looked for: one of ours, or the SPEC of another."""
    return pick_or_type(
        "Who else, in this corpus",
        "slots_corpus",
        list(CORPORA),
        lambda spec: CORPORA.get(spec, spec),
        "Or type a SPEC, as json:FILE#text. Its n-grams are counted once and kept on disk.",
    )


def rows_read(path: str, ngram: Ngram, spec: str, index: SlotIndex) -> RowInspection:
    """The rows that an n-gram reads, in all layers, orders and heads."""
    return _inspected(path, spec, index, ngram=ngram)


def rows_numbered(path: str, rows: tuple[Row, ...], spec: str, index: SlotIndex) -> RowInspection:
    """Rows by number."""
    return _inspected(path, spec, index, rows=rows)


def _inspected(path: str, spec: str, index: SlotIndex, **asked: Any) -> RowInspection:
    def compute(one: cached.Held, progress: Any) -> RowInspection:
        from engram_probes import inspect_rows

        options = dict(asked)
        if rows := options.pop("rows", None):
            layers = dict.fromkeys(layer for layer, _ in rows)
            options["rows"] = {n: [slot for layer, slot in rows if layer == n] for n in layers}
        return inspect_rows(one.model, one.tokenizer, corpus=index, **options)

    return cached.measured(("rows", spec, tuple(asked.items())), (path,), compute)


def look_at(row: Row, context: Any) -> None:
    """Look at another row; `context`: the model and n-gram that it is looked at beside."""
    st.session_state["picked_row"] = (context, row)


def row_looked_at(context: Any, otherwise: Row) -> Row:
    """The row picked, from the URL, or `otherwise`."""
    state = st.session_state
    if "picked_row" not in state:
        layer, _, slot = st.query_params.get(URL_KEY, "").partition(":")
        known = layer.isdecimal() and slot.isdecimal() and len(layer + slot) < 18
        state["picked_row"] = (context, (int(layer), int(slot))) if known else None
    picked = state["picked_row"]
    if picked and picked[0] == context:
        st.query_params[URL_KEY] = "{}:{}".format(*picked[1])
        return picked[1]
    st.query_params.pop(URL_KEY, None)
    return otherwise


def rows_table(result: RowInspection, key: str, context: Any, alike: bool = False) -> None:
    """A table of rows; a row that is selected in it is looked at.

    alike: they are all of one order and head, and none is an n-gram's own.
    """
    frame = result.to_frame()
    shown = [name for name in COLUMNS if name in frame and not (alike and name in OF_NGRAM)]

    def selected() -> None:
        if chosen := st.session_state[key].selection.rows:
            row = chosen[0]
            look_at((result.layers[row], int(result.slots[row])), context)

    st.dataframe(
        frame[shown],
        hide_index=True,
        column_config=COLUMNS,
        key=key,
        on_select=selected,
        selection_mode="single-row",
        alt=f"{len(frame)} rows of the memory; select one to look at it",
    )


def sharing(result: RowInspection) -> "pd.DataFrame":
    """One line a layer and order: the n-gram, its rows, and who else reads them most."""
    import pandas as pd

    frame = result.to_frame()
    lines = []
    for (layer, order), part in frame.groupby(["layer", "order"], sort=True):
        others = result.tenants_frame()
        others = others[(others.layer == layer) & (others.order == order) & ~others.own]
        ranked = others.groupby("ngram")["count"].max().sort_values(ascending=False, kind="stable")
        lines.append(
            {
                "layer": layer,
                "order": order,
                "n-gram": part.ngram.iloc[0],
                "rows, by head": ", ".join(map(str, part.slot)),
                "in the corpus": int(part.own_reads.iloc[0]),
                "others in its rows": int((part.tenants - (part.own_reads > 0)).sum()),
                "most frequent of them": ", ".join(f"{n} ({c:,})" for n, c in ranked[:4].items()),
            }
        )
    return pd.DataFrame(lines)


def quoted(text: str) -> str:
    return f"“{plain(text)}”"
