"""The script that Streamlit runs: pages, look, and the model they share."""

from pathlib import Path

import streamlit as st

from engram_app.explorer.opened import Opened
from engram_app.explorer.page import one_line_errors
from engram_app.explorer.pages import SECTIONS
from engram_app.explorer.state import selection, turn_to
from engram_app.explorer.style import NIGHT_STYLE, STYLE

ICON = str(Path(__file__).with_name("icon.svg"))


def navigation() -> dict[str, list]:
    """The pages by section. With nothing but saved results given, these come first."""
    first = "overview" if Opened.now().models else "runs"
    return {
        section: [
            st.Page(
                f"app_pages/{name}.py",
                title=title,
                icon=f":material/{icon}:",
                help=about,
                default=name == first,
            )
            for name, (title, icon, about) in pages.items()
        ]
        for section, pages in SECTIONS.items()
    }


st.set_page_config("Engram explorer", ICON, layout="wide")
st.logo(ICON, size="large")
st.html(STYLE)
if st.context.theme.type == "dark":
    st.html(NIGHT_STYLE)
with one_line_errors():
    page = st.navigation(navigation(), expanded=True)
    turn_to(page.title)
    page.run()
selection()
