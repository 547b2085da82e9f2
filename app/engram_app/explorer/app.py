"""The script that Streamlit runs: pages, look, and the model they share."""

from pathlib import Path

import streamlit as st

from engram_app.explorer.opened import Opened
from engram_app.explorer.page import one_line_errors
from engram_app.explorer.state import selection, turn_to
from engram_app.explorer.style import STYLE

HERE = Path(__file__).parent
ICON = str(HERE / "icon.svg")
SECTIONS = {
    "One text": {
        "overview": ("Overview", "visibility", "What the memory adds to each token of a text."),
        "gates": ("Gates", "tune", "Score, gate and rows of the memory, stream by stream."),
        "slots": ("Slots", "table_rows", "The rows an n-gram reads, and who else lives there."),
        "lens": ("Lens", "layers", "After how many blocks the prediction is settled."),
        "attribution": ("Attribution", "account_tree", "Who wrote this logit."),
        "heads": ("Heads and experts", "hub", "What heads look at and which experts are chosen."),
        "interventions": ("Interventions", "science", "What changes when the memory does."),
    },
    "Two models": {
        "compare": ("Compare", "compare_arrows", "Two models, or two texts: the difference."),
        "alignment": ("Alignment", "grid_on", "Which layers of two models are alike."),
    },
    "On disk": {
        "runs": ("Runs", "folder_open", "Saved reports and results, without a model."),
        "saved": ("Saved results", "folder_open", "Results from a report or engram probe."),
        "models": ("Models", "deployed_code", "Models at hand, and how to open another."),
    },
}


def navigation() -> dict[str, list]:
    """The pages by section. With nothing but saved results given, these come first."""
    first = "overview" if Opened.now().models else "saved"
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
            if (HERE / "app_pages" / f"{name}.py").exists()
        ]
        for section, pages in SECTIONS.items()
    }


st.set_page_config("Engram explorer", ICON, layout="wide")
st.logo(ICON, size="large")
st.html(STYLE)
with one_line_errors():
    page = st.navigation(navigation(), expanded=True)
    turn_to(page.title)
    page.run()
selection()
