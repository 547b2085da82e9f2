"""Gates: one quantity of the memory, by layer, stream and position."""

import streamlit as st

from engram_app.explorer import cached
from engram_app.explorer.ngrams import rows_hit
from engram_app.explorer.page import draw, finding, origin, plain
from engram_app.explorer.state import choose, choose_models, choose_text, pick, position, select
from engram_app.explorer.strip import token_strip
from engram_app.measures import loudest, memory_values
from engram_probes.gates import GateMap, What

ALL = "all"
NAMES: dict[What, str] = {"added": "What is added", "gate": "Gate", "score": "Score"}


def controls(gates: GateMap) -> tuple[What, int | None, int | None]:
    """What to show, of which layer and stream; None: of all."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        what = choose("Quantity", "what", tuple(NAMES), NAMES.__getitem__)
        layer = choose("Layer", "layer", [ALL, *map(str, gates.layers)])
        stream = ALL
        if gates.streams > 1:
            stream = choose("Stream", "stream", [ALL, *map(str, range(gates.streams))])
    return what, None if layer == ALL else int(layer), None if stream == ALL else int(stream)


def page() -> None:
    looking = choose_models()
    st.title("Gates", anchor=False)
    text = choose_text()
    gates = cached.gates(looking.path, text)
    what, layer, stream = controls(gates)
    at = position(len(gates.tokens), text, loudest(gates))
    values, scale = memory_values(gates, what, layer, stream)
    pick(text, token_strip(gates.tokens, values, gates.special, scale, at, what))
    finding(gates.summary())
    if layer is None and len(gates.layers) == 1:  # one row would say less than its streams
        layer = gates.layers[0]
    title = f"{NAMES[what]} by {'layer' if layer is None else 'stream'} and position"
    draw(
        gates.figure(what, layer, stream),
        title,
        "gate_map",
        at,
        gates.to_frame,
        on_cell=lambda _row, column: select(text, column),
    )
    st.subheader(f"Rows read at {plain(gates.tokens[at])}, position {at}", anchor=False)
    st.caption(
        "Each n-gram that ends here is hashed once a head; the rows below were read from the "
        "layer's table. Other n-grams may share a row."
    )
    st.dataframe(rows_hit(gates, at), hide_index=True, alt="Rows read at the chosen position")
    origin(gates, looking.command("gates", "--text", text))


page()
