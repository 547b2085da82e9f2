"""The script that Streamlit runs: pages, look, and the model they share."""

from pathlib import Path

import streamlit as st

from engram_app.explorer.opened import Opened
from engram_app.explorer.page import one_line_errors
from engram_app.explorer.state import turn_to
from engram_app.explorer.style import STYLE

ICON = str(Path(__file__).with_name("icon.svg"))
PAGES = {
    "overview": ("Overview", "visibility", "What the memory adds to each token of a text."),
    "gates": ("Gates", "tune", "Score, gate and rows of the memory, stream by stream."),
    "lens": ("Lens", "layers", "After how many blocks the prediction is settled."),
    "alignment": ("Alignment", "grid_on", "Which layers of the model and its twin are alike."),
    "saved": ("Saved results", "folder_open", "Results from a report or from engram probe."),
}


def names() -> list[str]:
    """The pages that have something to show."""
    opened = Opened.now()
    models = ["overview", "gates", "lens", "alignment"] if opened.models else []
    return models + (["saved"] if opened.results else [])


st.set_page_config("Engram explorer", ICON, layout="wide")
st.logo(ICON, size="large")
st.html(STYLE)
with one_line_errors():
    page = st.navigation(
        [
            st.Page(
                f"app_pages/{name}.py",
                title=PAGES[name][0],
                icon=f":material/{PAGES[name][1]}:",
                help=PAGES[name][2],
                default=index == 0,
            )
            for index, name in enumerate(names())
        ]
    )
    turn_to(page.title)
    page.run()
