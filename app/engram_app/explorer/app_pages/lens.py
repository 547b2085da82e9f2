"""Lens: what each depth of the model would predict; alone, or beside another."""

import numpy as np
import streamlit as st

from engram_app.explorer import lenses
from engram_app.explorer.lenses import ALONE, PLAIN, TUNED, TWIN
from engram_app.explorer.page import draw, finding, not_here, origin, plain
from engram_app.explorer.saved import find_saved
from engram_app.explorer.state import (
    Looking,
    choose,
    choose_models,
    choose_text,
    pick,
    pick_from,
    position,
    put,
    select,
)
from engram_app.explorer.strip import token_strip
from engram_app.measures import settling_values
from engram_probes.lens import LogitLens
from engram_probes.lens_difference import LensDifference

WINDOW = 18  # positions of the grid in view
GRIDS = {
    "kl": "KL to the end",
    "entropy": "Entropy",
    "rank": "Rank of the text's token",
    "final_rank": "Rank of the final top token",
    "log_prob": "Log-probability of the text",
    "top1_prob": "Probability of the top token",
}
LENSES = {PLAIN: "Plain", TUNED: "Tuned"}
OVER = {"corpus": "A corpus", "text": "This text"}


def of_text(lens: LogitLens) -> tuple[tuple[str, ...], np.ndarray]:
    """Tokens of a lens of one text, and which of them are special."""
    assert lens.tokens is not None and lens.special is not None
    return lens.tokens, lens.special


def choose_lens(looking: Looking) -> str:
    """Plain or tuned; plain where there is no tuned one."""
    through = choose("Read through the lens", "lens_through", tuple(LENSES), LENSES.__getitem__)
    if through == TUNED and not lenses.has_tuned(looking.path):
        not_here(lenses.no_tuned(looking.path))
        return PLAIN
    return through


def compared(
    lens: LogitLens, looking: Looking, text: str, through: str
) -> tuple[str, LogitLens | None]:
    """What it is shown beside, and that lens."""
    names = lenses.beside(lens, looking)
    what = choose("Beside", "lens_beside", tuple(names), lambda name: names.get(name, name))
    if what == TWIN and through == TUNED and not lenses.has_tuned(looking.twin or ""):
        not_here(lenses.no_tuned(looking.twin or ""))
        return ALONE, None
    return what, None if what == ALONE else lenses.other(looking, text, through, what)


def grid(lens: LogitLens, difference: LensDifference | None, what: str, at: int, text: str) -> None:
    """As many positions at a time as tokens can be read in."""
    tokens, _ = of_text(lens)
    start = max(0, min(at - WINDOW // 2, len(tokens) - WINDOW))
    shown = start, min(start + WINDOW, len(tokens))

    def look_at(row: int, column: int) -> None:
        select(text, start + column)
        put("lens_depth", str(row))

    one = difference or lens
    title = f"{GRIDS[what]}; in the cells the likeliest next token"
    if difference:
        title = f"{GRIDS[what]}: {difference.model}, {difference.other}, and their difference"
    draw(
        one.figure(what, "grid", shown), title, "lens_grid", at,
        frame=difference.token_frame if difference else lens.token_frame,
        on_cell=look_at,
    )  # fmt: skip
    said = "Click a cell, or choose a token above and a depth beneath."
    if len(tokens) > WINDOW:
        said = f"Positions {shown[0]} to {shown[1] - 1} of {len(tokens)}, by the chosen one. {said}"
    st.caption(said)


def cell(lens: LogitLens, other: LogitLens | None, at: int) -> None:
    """The likeliest tokens at one depth and position, beside the final ones."""
    tokens, _ = of_text(lens)
    depths = tuple(map(str, range(lens.depths)))
    st.subheader(f"After {plain(tokens[at])}, position {at}", anchor=False)
    depth = int(pick_from("Blocks run", "lens_depth", depths, default=depths[len(depths) // 2]))
    if at + 1 < len(tokens):
        here, end = (int(lens.grid("rank")[row, at]) for row in (depth, -1))
        st.caption(
            plain(
                f"The text goes on with {tokens[at + 1]}: of rank {here:,} after {depth} blocks, "
                f"{end:,} at the end."
            )
        )
    shown = [lens] if other is None else [lens, other]
    for column, one in zip(st.columns(len(shown)), shown, strict=True):
        with column:
            name = one.name if one.lens == PLAIN else f"{one.name}, tuned lens"
            st.markdown(f"**{plain(name)}**")
            candidates(one, min(depth, one.depths - 1), at)


def candidates(lens: LogitLens, depth: int, at: int) -> None:
    """A table of them."""
    share = st.column_config.ProgressColumn
    st.dataframe(
        lens.cell_frame(depth, at),
        hide_index=True,
        column_order=["token", "prob_here", "prob_final"],
        alt=f"Likeliest next tokens of {lens.name} after {depth} blocks, and at the end",
        column_config={
            "token": "Token",
            "prob_here": share(f"After {depth}", format="percent", min_value=0, max_value=1),
            "prob_final": share("At the end", format="percent", min_value=0, max_value=1),
        },
    )


def curves(lens: LogitLens, difference: LensDifference | None, looking: Looking, beside: str,
           what: str) -> None:  # fmt: skip
    """The measure by depth, over the text, or over a corpus where that is saved."""
    what = "kl" if what == "top1_prob" else what
    title = f"{GRIDS[what]} by depth"
    if difference is None:
        draw(lens.figure(what, "curve"), title, "lens_curve", frame=lens.to_frame)
        return
    saved = None
    if beside == TWIN:
        saved = find_saved(
            LensDifference,
            looking,
            lambda one: one.tuned == difference.tuned and what in one.metrics,
        )
    over = choose("Curves over", "lens_over", tuple(OVER), OVER.__getitem__) if saved else "text"
    found = saved if saved and over == "corpus" else difference
    draw(found.figure(what), f"{title}, and the difference", "lens_curves", frame=found.to_frame)
    st.caption(plain(found.summary()))


def page() -> None:
    looking = choose_models()
    st.title("Lens", anchor=False)
    text = choose_text()
    with st.container(horizontal=True, gap="medium"):
        through = choose_lens(looking)
        lens = lenses.read(looking.path, text, through)
        beside, other = compared(lens, looking, text, through)
    tokens, special = of_text(lens)
    at = position(len(tokens), text, len(tokens) - 1)
    values, scale = settling_values(lens)
    pick(text, token_strip(tokens, values, special, scale, at, "settled after"))
    difference = lens.minus(other) if other else None
    finding((difference or lens).summary())
    what = choose("Colour", "lens_colour", tuple(GRIDS), GRIDS.__getitem__)
    grid(lens, difference, what, at, text)
    cell(lens, other, at)
    curves(lens, difference, looking, beside, what)
    origin(
        difference or lens,
        lenses.command(looking, text, through, beside),
        lenses.python(looking, text, through, beside),
    )


page()
