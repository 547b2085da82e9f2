"""What the page Compare draws: the difference first, then both sides."""

from dataclasses import dataclass

import numpy as np
import streamlit as st

from engram_app.colours import Scale
from engram_app.explorer import cached
from engram_app.explorer.bars import next_tokens
from engram_app.explorer.page import draw, plain
from engram_app.explorer.strip import token_strip
from engram_model.errors import UsageError
from engram_probes.gates import GateMap
from engram_probes.predictions import Predictions
from engram_probes.token_comparison import WHAT, TokenComparison, compare_tokens

DIANA = "This study analyzes the media impact of Diana, Princess of"
PAIRS = {
    "A title completed otherwise": (f"{DIANA} Wales.", f"{DIANA} Spain."),
    "Another battle": (
        "The Battle of Waterloo was fought by Napoleon Bonaparte.",
        "The Battle of Trafalgar was fought by Napoleon Bonaparte.",
    ),
    "A phrase broken": (
        "On the other hand, the King of England was in the United States.",
        "On the other foot, the King of England was in the Divided States.",
    ),
}


@dataclass(frozen=True)
class Side:
    """One model on one text."""

    path: str
    name: str
    text: str
    expected: Predictions
    gates: GateMap | None


def side(path: str, name: str, text: str) -> Side:
    """Read the text with the model, and its gates where it has a memory."""
    expected = cached.probe("next_tokens", path, text)
    gates = cached.probe("gate_map", path, text) if cached.has_memory(path) else None
    return Side(path, name, text, expected, gates)


def compared(first: Side, second: Side) -> TokenComparison:
    return compare_tokens(
        first.expected, second.expected, (first.gates, second.gates), (first.name, second.name)
    )


def strips(sides: tuple[Side, Side], result: TokenComparison, what: str, at: int) -> int | None:
    """The text coloured by A less B; the second beneath where it is another one.

    Returns:
        The position in the first text of the token just clicked, if it is in common.
    """
    usual = result.difference(what)[~result.special]
    largest = float(np.nanmax(np.abs(usual), initial=0)) or 1.0
    first, second = result.names
    title = f"{WHAT[what][1]} ({WHAT[what][0]}): {first} less {second}"
    scale = Scale(title, -largest, largest, 0.0)
    clicked = None
    for index in range(1 if sides[0].text == sides[1].text else 2):
        one = sides[index].expected
        values = result.strip(index, what)
        marked = at if index == 0 else _across(result, at, 0)
        key = ("strip", "strip_second")[index]
        picked = token_strip(one.tokens, values, one.special, scale, marked, "difference", key)
        if picked is not None:
            clicked = picked if index == 0 else _across(result, picked, 1)
    return clicked


def _across(result: TokenComparison, at: int, side: int) -> int:
    """Where the other text is at the same token, or at the last one in common before."""
    here, there = result.positions[side], result.positions[1 - side]
    before = np.flatnonzero(here <= at)
    return int(there[before[-1]]) if len(before) else 0


def next_panels(sides: tuple[Side, Side], result: TokenComparison, at: int) -> None:
    """What each side expects after the selected token."""
    places = at, at if sides[0].text == sides[1].text else _across(result, at, 0)
    columns = st.columns(2, gap="large")
    for index, (column, one, place) in enumerate(zip(columns, sides, places, strict=True)):
        with column:
            st.subheader(plain(one.name), anchor=False)
            token = plain(one.expected.tokens[place])
            surprisal = float(one.expected.surprisal[place])
            said = f"; its surprisal {surprisal:.2f} nats" if np.isfinite(surprisal) else ""
            st.caption(f"After {token}, position {place}{said}")
            next_tokens(one.expected, place, f"next_{index}")
            if one.gates is not None:
                added = float(one.gates.values("added")[:, place].mean())
                gate = float(one.gates.values("gate")[:, place].mean())
                st.caption(f"Here the memory adds {added:.2f} of the residual, gate {gate:.2f}.")
                st.caption(plain(one.gates.summary()))


def memory(result: TokenComparison) -> None:
    """Where both sides have a memory: what it adds in each, and the gate."""
    for what in ("added", "gate"):
        if what in result.offered:
            draw(result.figure(what), WHAT[what][1], f"compare_{what}")


def lenses(first: Side, second: Side) -> None:
    """KL by depth of two models on one text, and the difference."""
    try:
        difference = cached.probe("logit_lens", first.path, first.text).minus(
            cached.probe("logit_lens", second.path, second.text)
        )
    except UsageError as error:
        st.caption(plain(f"Their lenses cannot be compared: {error}"))
        return
    title = "KL(final || layer) by depth, and the difference"
    draw(difference.figure("kl"), title, "compare_lens", frame=difference.to_frame)
    st.caption(plain(difference.summary()))
