"""Compare: two models on one text, or one model on two texts; the difference first."""

import streamlit as st

from engram_app.explorer.compare_parts import (
    PAIRS,
    compared,
    lenses,
    memory,
    next_panels,
    side,
    strips,
)
from engram_app.explorer.page import draw, finding, not_here, origin
from engram_app.explorer.state import (
    LONGEST,
    as_given,
    choose,
    choose_models,
    choose_text,
    keep,
    pick,
    position,
    remember,
)
from engram_probes.token_comparison import WHAT

MODELS, TEXTS = "models", "texts"
NAMES = {MODELS: "Two models", TEXTS: "Two texts"}


def second_text(first: str) -> str:
    """The other text, and pairs to begin with."""
    partner = dict(PAIRS.values()).get(first, f"{first.rsplit(' ', 1)[0]} Spain.")
    keep("compare_text")
    text = st.text_area(
        "Second text",
        partner,
        key="compare_text",
        height="content",
        max_chars=LONGEST,
        bind="query-params",
    )
    remember("compare_text")
    with st.container(horizontal=True):
        for name, pair in PAIRS.items():
            st.button(name, key=f"pair_{name}", type="tertiary", on_click=_take, args=pair)
    return text


def _take(first: str, second: str) -> None:
    st.session_state["text"], st.session_state["compare_text"] = first, second


def page() -> None:
    looking = choose_models()
    st.title("Compare", anchor=False)
    what = choose("Compare", "compare_what", [MODELS, TEXTS], NAMES.__getitem__)
    if what == MODELS and looking.twin is None:
        not_here(
            "There is one model only: choose another under “Compared with” in the sidebar, or "
            "compare two texts."
        )
        return
    text = choose_text()
    other = second_text(text) if what == TEXTS else text
    if what == MODELS:
        assert looking.twin is not None
        names, path = (looking.name, looking.twin_name), looking.twin
        names = names if names[0] != names[1] else (looking.path, looking.twin)
    else:
        names, path = ("first text", "second text"), looking.path
    sides = side(looking.path, names[0], text), side(path, names[1], other)
    result = compared(*sides)
    finding(result.summary())
    quantity = choose("Coloured by", "compare_by", list(result.offered), _named)
    last = len(sides[0].expected.tokens) - 1
    at = position(last + 1, text, min(last, int(result.most_apart)))
    pick(text, strips(sides, result, quantity, at))
    next_panels(sides, result, at)
    draw(
        result.figure(quantity),
        f"{WHAT[quantity][1]} at the tokens in common",
        "compare_tokens",
        frame=result.to_frame,
    )
    memory(result)
    if what == MODELS:
        lenses(*sides)
    python = (
        "ep.compare_tokens(ep.next_tokens(model, tokenizer, text), "
        + ("ep.next_tokens(twin, tokenizer, text))" if what == MODELS else
           f"ep.next_tokens(model, tokenizer, {other!r}))")
    )  # fmt: skip
    opened = [as_given(looking.path), *([as_given(path)] if what == MODELS else [])]
    command = ["engram", "explore", *opened]
    origin(result, command, looking.python(python, text=text, twin=what == MODELS))


def _named(what: str) -> str:
    return {"surprisal": "Surprisal", "entropy": "Entropy", "gate": "Gate", "added": "Added"}[what]


page()
