"""Lens: what each depth of the model would predict, beside its twin."""

import numpy as np
import streamlit as st

from engram_app.explorer import cached
from engram_app.explorer.page import draw, finding, numbers, origin, plain
from engram_app.explorer.saved import find_saved
from engram_app.explorer.state import (
    Looking,
    choose_models,
    choose_text,
    keep,
    pick,
    position,
    remember,
)
from engram_app.explorer.strip import token_strip
from engram_app.measures import settling_values
from engram_probes.lens import LogitLens
from engram_probes.lens_difference import LensDifference

GRIDS = {
    "kl": "KL to the end",
    "entropy": "Entropy",
    "log_prob": "Log-probability of the text",
    "top1_prob": "Probability of the top token",
}


def curves(lens: LogitLens, looking: Looking, text: str) -> None:
    """KL by depth, with the twin's where there is one."""
    if looking.twin is None:
        draw(lens.figure("kl", view="curve"), "KL(final || layer) by depth", "lens_curve")
        return
    saved = find_saved(LensDifference, looking)
    options = ["A corpus", "This text"] if saved else ["This text"]
    chosen = st.segmented_control("Curves over", options, default=options[0], required=True)
    if saved and chosen == "A corpus":
        difference = saved
    else:
        difference = lens.minus(cached.lens(looking.twin, text))
    draw(difference.figure("kl"), "KL(final || layer) by depth, and the difference", "lens_twins")
    st.caption(plain(difference.summary()))
    numbers(difference.to_frame(), "lens_difference", "Both models by depth")


def grid(lens: LogitLens, what: str):
    """The grid, its colours set by the blocks: the embedding alone is far off and hides them."""
    figure = lens.figure(what, view="grid")
    after = lens.grid(what)[1:, ~lens.special]
    figure.update_traces(zmin=float(np.nanmin(after)), zmax=float(np.nanmax(after)))
    return figure


def page() -> None:
    looking = choose_models()
    st.title("Logit lens", anchor=False)
    text = choose_text()
    lens = cached.lens(looking.path, text)
    at = position(len(lens.tokens), text, len(lens.tokens) - 1)
    values, scale = settling_values(lens)
    pick(text, token_strip(lens.tokens, values, lens.special, scale, at, "settled after"))
    finding(lens.summary())
    keep("grid")
    what = st.segmented_control(
        "Colour",
        list(GRIDS),
        default=None if "grid" in st.session_state else "kl",
        key="grid",
        format_func=GRIDS.__getitem__,
        required=True,
        bind="query-params",
    )
    remember("grid")
    draw(
        grid(lens, what or "kl"),
        f"{GRIDS[what or 'kl']}; in the cells the likeliest next token",
        "lens_grid",
        at,
    )
    numbers(lens.token_frame(), "lens_tokens", "Every depth and position")
    curves(lens, looking, text)
    command = ["engram", "probe", "lens", looking.path, "--text", text, "--out", "lens"]
    origin(lens, command + (["--twin", looking.twin] if looking.twin else []))


page()
