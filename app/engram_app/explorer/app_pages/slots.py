"""Slots: an n-gram, the rows that it reads, and who else lives there."""

import numpy as np
import streamlit as st

from engram_app.explorer import cached
from engram_app.explorer.indexes import index_of
from engram_app.explorer.page import draw, finding, not_here, origin, plain, requested
from engram_app.explorer.rows import (
    Ngram,
    Row,
    choose_corpus,
    ending_at,
    has_memory,
    look_at,
    quoted,
    row_looked_at,
    rows_numbered,
    rows_read,
    rows_table,
)
from engram_app.explorer.state import (
    Looking,
    choose,
    choose_models,
    choose_text,
    keep,
    pick,
    position,
    remember,
)
from engram_app.explorer.strip import token_strip
from engram_app.measures import loudest, memory_values
from engram_probes.contexts import RowContexts
from engram_probes.gates import GateMap
from engram_probes.row_inspection import RowInspection
from engram_probes.slot_index import SlotIndex

WHICH = {"hot": "Read most", "cold": "Read least"}
RANKED = 10  # rows in the list of the most or least read
READ = 20_000  # tokens of the corpus that contexts are looked for in


def choose_ngram(gates: GateMap, at: int) -> Ngram:
    """What was typed, or what ends at the position looked at."""
    key = "slots_ngram"
    keep(key)
    here = "".join(gates.tokens[max(0, at + 1 - gates.max_ngram_size) : at + 1])
    typed = st.text_input(
        "N-gram to look up",
        key=key,
        max_chars=200,
        placeholder=f"{here}, which ends at position {at}; or type one",
        help="The n-grams that its last tokens form. A space in front is part of a token.",
        bind="query-params",
    )
    remember(key)
    return typed if typed.strip() else ending_at(gates, at)


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
    """On request, where in the corpus the row speaks loudest."""
    st.markdown("**Where it speaks loudest**")
    why = f"Reads {READ:,} tokens of the corpus with the model, which takes some seconds."
    if not requested(f"contexts_{looking.path}_{row}_{spec}", "Find its contexts", why):
        return

    def compute(one: cached.Held, progress) -> RowContexts:
        from engram_model.corpora import iter_documents
        from engram_probes import row_contexts

        rows = {row[0]: [row[1]]}
        documents = list(iter_documents(spec))
        options = {"max_tokens": READ, "progress": progress}
        return row_contexts(one.model, one.tokenizer, documents, rows, **options)

    found = cached.measured(("contexts", row, spec), (looking.path,), compute, slow=True)
    st.markdown(plain(found.summary()))
    if found.reads[0]:
        table = found.to_frame()[["strength", "before", "token", "after", "gate", "surprisal"]]
        st.dataframe(
            table,
            hide_index=True,
            alt=f"{len(table)} strongest reads of the row, with the text around",
            column_config={
                "strength": st.column_config.NumberColumn("Contribution", format="%.3f"),
                "gate": st.column_config.NumberColumn("Gate", format="%.2f"),
                "surprisal": st.column_config.NumberColumn("Surprisal", format="%.2f nats"),
            },
        )


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
    if not has_memory(looking.path):
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
    corpus_section(looking, index, spec, context)
    asked = ("--ngram", ngram) if isinstance(ngram, str) else ("--text", text)
    call = f"ep.inspect_rows(model, tokenizer, ngram={ngram!r}, corpus={spec!r})"
    origin(rows, looking.command("slots", *asked, "--data", spec), looking.python(call))


page()
