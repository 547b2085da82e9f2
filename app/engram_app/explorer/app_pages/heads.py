"""Heads and experts: where heads look, what tokens choose, and both without the memory."""

import streamlit as st

from engram_app.explorer import cached
from engram_app.explorer.experts import experts
from engram_app.explorer.page import FRAME, draw, finding, not_here, origin, plain
from engram_app.explorer.state import (
    ALL,
    Looking,
    choose,
    choose_models,
    choose_text,
    pick,
    position,
    select,
)
from engram_app.explorer.strip import token_strip
from engram_app.measures import moved_values
from engram_probes.figures.head_maps import head_at
from engram_probes.head_maps import AttentionMap, Shown

MOST = "most"
LONG = 1000  # characters of a text of which fewer draws are made
DRAWS, FEW_DRAWS = 8, 2
KEYS = 8  # in the table of what a token looks at
SIDE = 560  # pixels of the large pattern
COLUMNS = {
    "position": st.column_config.NumberColumn("At"),
    "with the memory": st.column_config.NumberColumn("With", format="%.3f"),
    "without": st.column_config.NumberColumn("Without", format="%.3f"),
    "difference": st.column_config.NumberColumn("Change", format="%+.3f"),
}
NAMES: dict[Shown, str] = {
    "difference": "Difference",
    "with": "With the memory",
    "without": "Without",
}


def heads(looking: Looking, text: str) -> None:
    draws = DRAWS if len(text) < LONG else FEW_DRAWS
    found = cached.probe("attention_map", looking.path, text, draws=draws, _slow=True, _hooked=True)
    tokens = found.tokens
    at = position(len(tokens), text, len(tokens) - 1)
    values, scale = moved_values(found)
    pick(text, token_strip(tokens, values, found.special, scale, at, "attention moved"))
    finding(found.summary())
    if found.moved is None:
        not_here(f"{looking.name} has no memory to take away; its patterns are below.")
    else:
        _overview(found)
    layer, head, shown = _controls(found)
    draw(
        found.figure("layer", layer, shown=shown),
        f"All heads of layer {layer}, {found.named(shown)}",
        "heads_layer",
        on_cell=lambda row, column: _take_head(layer, head_at(found, row, column)),
    )
    if found.block > 1:
        st.caption(f"The text is long: each cell is of {found.block} tokens by {found.block}.")
    _one_head(found, layer, head, shown, at, text)
    call = f"ep.attention_map(model, tokenizer, text, draws={draws})"
    options = ("--text", text, "--draws", str(draws))
    origin(found, looking.command("heads", *options), looking.python(call, text=text))


def _overview(found: AttentionMap) -> None:
    draw(
        found.figure("heads"),
        "How much of its attention each head moves to other tokens without the memory",
        "heads_moved",
        frame=found.to_frame,
        on_cell=lambda row, column: _take_head(found.layers[row], column),
    )
    st.caption(
        f"● more than in each of {found.draws} draws of both controls, which change the residual "
        "by as much in a random direction, or by what the memory adds to another token. Choose a "
        "head by a click, or below."
    )


def _controls(found: AttentionMap) -> tuple[int, int, Shown]:
    """Layer and head, by default those that are moved most, and what to show of them."""
    most = found.most_moved()
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        layers = [ALL, *map(str, found.layers)]
        chosen = choose("Layer", "layer", layers, lambda one: "most moved" if one == ALL else one)
        layer = most[0] if chosen == ALL else int(chosen)
        options = [MOST, *map(str, range(found.heads))]
        own = found.most_moved_of(layer)
        chosen = choose("Head", "heads_head", options, lambda o: "most moved" if o == MOST else o)
        head = own if chosen == MOST else int(chosen)
        kinds = tuple(NAMES) if found.changed is not None else ("with",)
        shown = choose("Pattern", "heads_shown", kinds, NAMES.__getitem__)
    return layer, head, shown


def _take_head(layer: int, head: int | None) -> None:
    if head is not None:
        st.session_state["layer"], st.session_state["heads_head"] = str(layer), str(head)


def _one_head(found: AttentionMap, layer: int, head: int, shown: Shown, at: int, text: str) -> None:
    """The large pattern, and what the token looked at attends to."""
    left, right = st.columns([3, 2], gap="medium")
    block = found.block
    figure = found.figure("pattern", layer, head, shown)
    row = at // block * block
    figure.update_layout(height=SIDE)
    figure.add_hrect(
        y0=row - 0.5,
        y1=row + block - 0.5,
        line={"color": FRAME, "width": 3},
        fillcolor="rgba(0,0,0,0)",
    )
    with left:
        draw(
            figure,
            f"Head {head} of layer {layer}, {found.named(shown)}",
            "heads_pattern",
            on_cell=lambda query, _key: select(text, min(query * block, len(found.tokens) - 1)),
        )
    with right:
        st.markdown(f"**{plain(f'What {found.tokens[at]}, position {at}, looks at')}**")
        table = found.keys_frame(layer, head, at)
        st.dataframe(
            table.head(KEYS),
            hide_index=True,
            alt=f"Keys that position {at} gives most attention, head {head} of layer {layer}",
            column_config=COLUMNS,
        )
        st.caption(f"The {min(KEYS, len(table))} keys with the most attention of {len(table)}.")


def page() -> None:
    looking = choose_models()
    st.title("Heads and experts", anchor=False)
    text = choose_text()
    parts = {"heads": "Attention heads", "experts": "Experts"}
    shown = choose("Show", "heads_part", tuple(parts), parts.__getitem__)
    (heads if shown == "heads" else experts)(looking, text)


page()
