"""Gates: what the memory adds where; at one token, what it looked up and what that is worth."""

import math

import streamlit as st

from engram_app.explorer import cached
from engram_app.explorer.indexes import index_of
from engram_app.explorer.ngrams import ending_at
from engram_app.explorer.page import draw, finding, not_here, numbers, origin, plain
from engram_app.explorer.rows import (
    choose_corpus,
    quoted,
    rows_read,
    sharing,
)
from engram_app.explorer.saved import saved_of
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
from engram_app.measures import loudest, memory_values
from engram_probes.gate_profiles import GateProfile
from engram_probes.gates import GateMap, What
from engram_probes.interventions import Intervention

NAMES: dict[What, str] = {"added": "What is added", "gate": "Gate", "score": "Score"}


def controls(gates: GateMap) -> tuple[What, int | None, int | None]:
    """What to show, of which layer and stream; None: of all."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        what = choose("Quantity", "what", tuple(NAMES), NAMES.__getitem__)
        layer = stream = ALL
        if len(gates.layers) > 1:
            layer = choose("Layer", "layer", [ALL, *map(str, gates.layers)])
        if gates.streams > 1:
            stream = choose("Stream", "stream", [ALL, *map(str, range(gates.streams))])
    return what, None if layer == ALL else int(layer), None if stream == ALL else int(stream)


@st.fragment
def picture(gates: GateMap, text: str, at: int) -> None:
    """Strip and map. Another quantity, layer or stream draws these two alone again."""
    if position(len(gates.tokens), text, at) != at:  # a cell was clicked: all of the page follows
        st.rerun()
    what, layer, stream = controls(gates)
    values, scale = memory_values(gates, what, layer, stream)
    pick(text, token_strip(gates.tokens, values, gates.special, scale, at, what))
    finding(gates.summary())
    if layer is None and len(gates.layers) == 1:  # one row would say less than its streams
        layer = gates.layers[0]
    draw(
        gates.figure(what, layer, stream if layer is None else None),
        f"{NAMES[what]} by {'layer' if layer is None else 'stream'} and position",
        "gate_map",
        at,
        gates.to_frame,
        on_cell=on_cell(gates, text, layer),
    )


def on_cell(gates: GateMap, text: str, layer: int | None):
    """What a click on the map does: its token is looked at, and its layer or stream."""
    rows = gates.layers if layer is None else range(gates.streams)
    key = "layer" if layer is None else "stream"

    def clicked(row: int, column: int) -> None:
        select(text, column)
        if len(rows) > 1:
            st.session_state[key] = str(rows[row])

    return clicked


def ngrams(looking: Looking, gates: GateMap, at: int) -> None:
    """The n-grams that end at the token, their rows, and who else reads them."""
    token = f"{quoted(gates.tokens[at])}, position {at}"
    st.subheader(f"What was looked up at {token}", anchor=False)
    ngram = ending_at(gates.token_ids, at, gates.max_ngram_size)
    if len(ngram) < 2:
        not_here("No n-gram ends at the start of the text. Choose another token.")
        return
    spec = choose_corpus()
    rows = rows_read(looking.path, ngram, spec, index_of(looking.path, spec))
    st.dataframe(
        sharing(rows),
        hide_index=True,
        alt="For each layer and order the n-gram, its rows, and other n-grams that read them",
    )
    numbers(rows.to_frame, "rows", "Each row")
    st.page_link(
        "app_pages/slots.py",
        label="These rows one by one, on the Slots page",
        icon=":material/table_rows:",
    )


def effect(looking: Looking, text: str, gates: GateMap, at: int) -> None:
    """What is lost when the memory adds nothing at this token alone."""
    st.subheader(f"Without the memory at {quoted(gates.tokens[at])}", anchor=False)
    edits = (f"zero@pos={at}",)
    lost: Intervention = cached.probe("intervene", looking.path, text, edits)
    following, later = st.columns(2)
    with following:
        st.metric(
            "Next-token distribution, KL",
            f"{lost.kl[at]:.3f} nats",
            help="KL(with || without) of what the model expects after this token",
        )
    with later:
        place = _hurt_most(lost, at)
        if place is not None:
            st.metric(
                f"Hurt most: {plain(lost.tokens[place])}, position {place}",
                f"{math.exp(-lost.surprisal[1, place]):.3g}",
                f"{math.exp(-lost.surprisal[1, place]) - math.exp(-lost.surprisal[0, place]):+.3g}",
                help="Probability of this later token without the memory here, and the change",
            )
    draw(
        lost.figure("next", at),
        f"Next token after {lost.tokens[at]}, with the memory here and without",
        "effect_next",
        frame=lost.to_frame,
    )
    st.caption(plain(lost.summary()))


def _hurt_most(lost: Intervention, at: int) -> int | None:
    """The later token that loses most; earlier ones cannot change."""
    import numpy as np

    helped = np.where(lost.special, -np.inf, lost.helped)[at + 1 :]
    return None if not len(helped) else at + 1 + int(np.nanargmax(helped))


def over_a_corpus(looking: Looking) -> None:
    """A saved profile of these weights: of what many texts say of gates, this one cannot."""
    profile = next(saved_of(GateProfile, looking.path), None)
    if profile is None:
        return
    st.subheader("Over a corpus", anchor=False)
    st.markdown(plain(profile.summary()))
    opened = st.expander("Its figure", icon=":material/bar_chart:", on_change="rerun")
    if opened.open:
        with opened:
            draw(profile.figure(), "Gates by group", "gate_profile", frame=profile.to_frame)


def page() -> None:
    looking = choose_models()
    st.title("Gates", anchor=False)
    if not cached.has_memory(looking.path):
        not_here(f"{looking.name} has no memory, so no gate. Choose a model with one at the left.")
        return
    text = choose_text()
    gates = cached.probe("gate_map", looking.path, text)
    at = position(len(gates.tokens), text, loudest(gates))
    picture(gates, text, at)
    ngrams(looking, gates, at)
    effect(looking, text, gates, at)
    over_a_corpus(looking)
    origin(
        gates,
        looking.command("gates", "--text", text),
        looking.python("ep.gate_map(model, tokenizer, text)", text=text),
    )


page()
