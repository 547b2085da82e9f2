"""Lens: what each depth of the model would predict, beside its twin."""

from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from engram_app.explorer import cached
from engram_app.explorer.page import draw, finding, numbers, origin, plain
from engram_app.explorer.saved import find_saved
from engram_app.explorer.state import Looking, choose, choose_models, choose_text, pick, position
from engram_app.explorer.strip import token_strip
from engram_app.measures import settling_values
from engram_probes.lens import LogitLens
from engram_probes.lens_difference import LensDifference

if TYPE_CHECKING:
    import plotly.graph_objects as go

WINDOW = 18  # positions of the grid in view
GRIDS = {
    "kl": "KL to the end",
    "entropy": "Entropy",
    "log_prob": "Log-probability of the text",
    "top1_prob": "Probability of the top token",
}


def of_text(lens: LogitLens) -> tuple[tuple[str, ...], np.ndarray]:
    """Tokens of a lens of one text, and which of them are special."""
    assert lens.tokens is not None and lens.special is not None
    return lens.tokens, lens.special


def curves(lens: LogitLens, looking: Looking, text: str) -> None:
    """KL by depth, with the twin's where there is one."""
    if looking.twin is None:
        draw(lens.figure("kl", view="curve"), "KL(final || layer) by depth", "lens_curve")
        return
    saved = find_saved(LensDifference, looking)
    options = ["A corpus", "This text"] if saved else ["This text"]
    if choose("Curves over", "over", options) == "A corpus" and saved:
        difference = saved
    else:
        difference = lens.minus(cached.lens(looking.twin, text))
    draw(difference.figure("kl"), "KL(final || layer) by depth, and the difference", "lens_twins")
    st.caption(plain(difference.summary()))
    numbers(difference.to_frame(), "lens_difference", "Both models by depth")


def grid(lens: LogitLens, what: str, at: int) -> "go.Figure":
    """The grid, as many positions at a time as tokens can be read in.

    Its colours are set by the blocks: the embedding alone is far off and would hide them.
    """
    figure = lens.figure(what, view="grid")
    tokens, special = of_text(lens)
    after = lens.grid(what)[1:, ~special]
    figure.update_traces(zmin=float(np.nanmin(after)), zmax=float(np.nanmax(after)))
    start = max(0, min(at - WINDOW // 2, len(tokens) - WINDOW))
    figure.update_xaxes(range=[start - 0.5, min(start + WINDOW, len(tokens)) - 0.5])
    return figure.update_layout(dragmode="pan")


def page() -> None:
    looking = choose_models()
    st.title("Logit lens", anchor=False)
    text = choose_text()
    lens = cached.lens(looking.path, text)
    tokens, special = of_text(lens)
    at = position(len(tokens), text, len(tokens) - 1)
    values, scale = settling_values(lens)
    pick(text, token_strip(tokens, values, special, scale, at, "settled after"))
    finding(lens.summary())
    what = choose("Colour", "grid", tuple(GRIDS), GRIDS.__getitem__)
    draw(
        grid(lens, what, at),
        f"{GRIDS[what]}; in the cells the likeliest next token",
        "lens_grid",
        at,
    )
    if len(tokens) > WINDOW:
        st.caption(f"{WINDOW} of {len(tokens)} positions are in view; drag to see the others.")
    numbers(lens.token_frame(), "lens_tokens", "Every depth and position")
    curves(lens, looking, text)
    origin(lens, looking.command("lens", "--text", text, twin=True))


page()
