"""Buttons that save a figure as a picture: PNG or SVG, drawn by the browser."""

from pathlib import Path

import streamlit as st

HERE = Path(__file__).parent
_export = st.components.v2.component(
    "engram_export",
    html='<div class="export"></div>',
    css=(HERE / "export.css").read_text(encoding="utf-8"),
    js=(HERE / "export.js").read_text(encoding="utf-8"),
)


def picture_buttons(figure: str, name: str, title: str) -> None:
    """Buttons for the figure in the container with key `figure`.

    name: of the file, without its ending. title: of the figure, for those who hear the buttons.
    """
    _export(key=f"export_{figure}", data={"figure": figure, "name": name, "title": title})
