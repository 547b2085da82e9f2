"""Slots: an n-gram, the rows that it reads, and who else lives there."""

import numpy as np
import streamlit as st

from engram_app.explorer import cached
from engram_app.explorer.indexes import index_of
from engram_app.explorer.ngrams import ending_at, ngrams
from engram_app.explorer.page import draw, finding, not_here, origin, plain, requested
from engram_app.explorer.rows import (
    Ngram,
    Row,
    choose_corpus,
    look_at,
    quoted,
    row_looked_at,
    rows_numbered,
    rows_read,
    rows_table,
)
from engram_app.explorer.saved import saved_of
from engram_app.explorer.state import (
    Looking,
    choose,
    choose_models,
    choose_text,
    pick,
    position,
    select,
    type_in,
)
from engram_app.explorer.strip import token_strip
from engram_app.measures import loudest, memory_values
from engram_probes.contexts import RowContexts
from engram_probes.gates import GateMap
from engram_probes.row_inspection import RowInspection
from engram_probes.slot_index import SlotIndex
from engram_probes.slots import SlotTrace, What

WHICH = {"hot": "Read most", "cold": "Read least"}
RANKED = 10  # rows in the list of the most or least read
READ = 10_000  # tokens of the corpus that contexts are looked for in
LONG = 200  # tokens of a text whose map is drawn on request only
COLOURS: dict[What, str] = {
    "tenants": "Other n-grams in the row",
    "own_share": "Its own share of the reads",
    "row_norm": "Norm of the row",
}
CONTEXT = {
    "strength": st.column_config.NumberColumn("Strength", format="%.3f"),
    "before": "Before",
    "token": "Token",
    "after": "After",
    "gate": st.column_config.NumberColumn("Gate", format="%.2f"),
    "surprisal": st.column_config.NumberColumn(
        "Surprisal", format="%.2f nats", help="Of the token that follows"
    ),
}


def choose_ngram(gates: GateMap, at: int) -> Ngram:
    """What was typed, or what ends at the position looked at."""
    here = ngrams(gates, at)[gates.max_ngram_size]
    typed = type_in(
        "N-gram to look up",
        "slots_ngram",
        200,
        f"{here}, which ends at position {at}; or type one",
        "The n-grams that its last tokens form. A space in front is part of a token.",
    )
    return typed if typed.strip() else ending_at(gates.token_ids, at, gates.max_ngram_size)


def as_words(looking: Looking, ngram: Ngram, rows: RowInspection) -> tuple[str, str]:
    """What the command line is asked for: the n-gram, or its rows where no text has its tokens."""
    tokenizer = cached.held(looking.path).tokenizer
    typed = ngram if isinstance(ngram, str) else tokenizer.decode(ngram)
    read = tokenizer(typed, add_special_tokens=False)["input_ids"]
    if isinstance(ngram, str) or tuple(read) == ngram:
        return "--ngram", typed
    numbers = zip(rows.layers, rows.slots.tolist(), strict=True)
    return "--rows", ",".join(f"{layer}:{slot}" for layer, slot in numbers)


def row_panel(
    looking: Looking, rows: RowInspection, index: SlotIndex, spec: str, context: tuple
) -> None:
    """One row: sentence, who reads it, what it says, where it speaks loudest."""
    known: list[Row] = [(n, int(s)) for n, s in zip(rows.layers, rows.slots, strict=True)]
    row = row_looked_at(context, _most_its_own(rows, known))
    options = known if row in known else [*known, row]
    state, key = st.session_state, "slots_chosen"
    state[key] = row
    st.selectbox(
        "Row to look at",
        options,
        key=key,
        format_func=lambda one: _named(rows, known, one),
        on_change=lambda: look_at(state[key], context),
    )
    place = known.index(row) if row in known else 0
    result = rows if row in known else rows_numbered(looking.path, (row,), spec, index)
    st.markdown(plain(result.about(place)))
    draw(
        result.figure(place),
        f"Who reads {result.name(place)}, and what it says",
        "slots_row_figure",
        frame=result.tenants_frame,
    )
    contexts(looking, row, spec)


def _most_its_own(rows: RowInspection, known: list[Row]) -> Row:
    """The row that is most the n-gram's own; that read most, where the corpus lacks it."""
    assert rows.own_reads is not None and rows.reads is not None
    share = rows.own_reads / np.maximum(rows.reads, 1)
    return known[int(np.lexsort((rows.reads, share))[-1])]


def _named(rows: RowInspection, known: list[Row], row: Row) -> str:
    if row not in known:
        return f"layer {row[0]}, row {row[1]}"
    place = known.index(row)
    return (
        f"layer {row[0]}, {rows.orders[place]}-gram {rows.ngram_texts[place]}, head "
        f"{rows.heads[place]}, row {row[1]}"
    )


def contexts(looking: Looking, row: Row, spec: str) -> None:
    """Where in a corpus the row speaks loudest: from a saved result, or on request."""
    st.markdown("**Where it speaks loudest**")
    saved = (one for one in saved_of(RowContexts, looking.path) if row in _rows_of(one))
    found = next(saved, None)
    if found is None:
        why = f"Reads {READ:,} tokens of the corpus with the model, which takes some seconds."
        if not requested(f"contexts_{looking.path}_{row}_{spec}", "Find its contexts", why):
            return
        compute = _contexts(row, spec)
        found = cached.measured(("contexts", row, spec), (looking.path,), compute, slow=True)
        st.markdown(plain(found.summary()))
    else:
        read = f"{found.tokens:,} tokens of {found.documents:,} documents"
        st.markdown(plain(f"From a saved result, over {read}."))
    table = found.to_frame()
    table = table[(table.layer == row[0]) & (table.slot == row[1])][list(CONTEXT)]
    if len(table):
        alt = f"{len(table)} strongest reads of the row, with the text around"
        st.dataframe(table, hide_index=True, column_config=CONTEXT, alt=alt)


def _rows_of(result: RowContexts) -> list[Row]:
    return list(zip(result.layers, result.slots.tolist(), strict=True))


def _contexts(row: Row, spec: str):
    def compute(one: cached.Held, progress) -> RowContexts:
        from engram_model.corpora import iter_documents
        from engram_probes import row_contexts

        documents = iter_documents(spec)
        options = {"max_tokens": READ, "progress": progress}
        return row_contexts(one.model, one.tokenizer, documents, {row[0]: [row[1]]}, **options)

    return compute


def text_map(
    looking: Looking, text: str, gates: GateMap, at: int, index: SlotIndex, spec: str
) -> None:
    """All rows that the text reads, order and head by position; a cell is a row to look at."""
    st.subheader("The whole text", anchor=False)
    length = len(gates.tokens)
    why = f"The text has {length:,} tokens; all of their rows are drawn on request."
    if length > LONG and not requested(f"map_{looking.path}_{text}_{spec}", "Draw them", why):
        return

    def compute(one: cached.Held, progress) -> SlotTrace:
        from engram_probes import inspect_slots

        return inspect_slots(one.model, one.tokenizer, text, index, topk=0, progress=progress)

    trace = cached.measured(("slots", text, spec), (looking.path,), compute, slow=True)
    what = choose("Colour", "slots_colour", tuple(COLOURS), COLOURS.__getitem__)

    def clicked(cell: int, column: int) -> None:
        layer, place = divmod(cell, trace.slots.shape[2])
        row = (trace.layers[layer], int(trace.slots[layer, column, place]))
        st.session_state["slots_ngram"] = ""
        select(text, column)
        look_at(row, (looking.path, ending_at(gates.token_ids, column, gates.max_ngram_size)))

    st.caption("A cell is a row of the table; click one to look at it.")
    title = f"{COLOURS[what]}, by order, head and position"
    draw(trace.figure(what), title, "slots_map", at, trace.to_frame, on_cell=clicked)


def corpus_section(looking: Looking, index: SlotIndex, spec: str, context: tuple) -> None:
    """How the corpus uses the rows; those read most and least."""
    load = cached.measured(("row_load", spec), (looking.path,), _load(index), slow=False)
    st.subheader("How the corpus uses the rows", anchor=False)
    st.markdown(plain(load.summary()))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        layers = [str(layer) for layer in load.layers]
        layer = int(choose("Layer", "slots_layer", layers)) if len(layers) > 1 else load.layers[0]
        orders = [str(order) for order in range(2, load.max_ngram_size + 1)]
        order = int(choose("Order", "slots_order", orders))
        head = int(choose("Head", "slots_head", [str(head) for head in range(load.n_heads)]))
        which = choose("Rows", "slots_which", tuple(WHICH), WHICH.__getitem__)
    slots = index.ranked(layer, order, head, RANKED, coldest=which == "cold")
    listed = tuple((layer, int(slot)) for slot in slots)
    ranked = rows_numbered(looking.path, listed, spec, index)
    rows_table(ranked, "slots_ranked", context, alike=True)
    draw(
        load.figure(layer),
        f"Load of the rows of layer {layer}, its heads together",
        "slots_load",
        frame=load.to_frame,
    )


def _load(index: SlotIndex):
    def compute(one: cached.Held, progress):
        from engram_probes import row_load
        from engram_probes.memory_tables import tables_of

        return row_load(index, one.tokenizer, tables_of(one.model).compression)

    return compute


def page() -> None:
    looking = choose_models()
    st.title("Slots", anchor=False)
    if not cached.has_memory(looking.path):
        not_here(f"{looking.name} has no memory of n-grams. Choose a model with one at the left.")
        return
    text = choose_text()
    gates = cached.probe("gate_map", looking.path, text)
    at = position(len(gates.tokens), text, loudest(gates))
    values, scale = memory_values(gates, "added")
    pick(text, token_strip(gates.tokens, values, gates.special, scale, at, "added"))
    left, right = st.columns(2)
    with left:
        ngram = choose_ngram(gates, at)
    with right:
        spec = choose_corpus()
    if isinstance(ngram, tuple) and len(ngram) < 2:
        not_here(f"No n-gram ends at {gates.tokens[at]}, the start. Choose another token.")
        return
    index = index_of(looking.path, spec)
    rows = rows_read(looking.path, ngram, spec, index)
    context = (looking.path, ngram)
    finding(rows.summary())
    st.subheader(f"The rows of {quoted(rows.ngram_texts[-1])}", anchor=False)
    st.caption("Select a row of the table to look at it.")
    rows_table(rows, "slots_rows", context)
    row_panel(looking, rows, index, spec, context)
    text_map(looking, text, gates, at, index, spec)
    corpus_section(looking, index, spec, context)
    asked = as_words(looking, ngram, rows)
    call = f"ep.inspect_rows(model, tokenizer, ngram={ngram!r}, corpus={spec!r})"
    origin(rows, looking.command("slots", *asked, "--data", spec), looking.python(call))


page()
