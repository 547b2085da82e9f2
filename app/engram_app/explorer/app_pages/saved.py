"""Saved results: opened without a model."""

from pathlib import Path

import streamlit as st

from engram_app.explorer import cached
from engram_app.explorer.opened import Opened
from engram_app.explorer.page import draw, finding, not_here, numbers, origin
from engram_app.explorer.state import keep, remember


def page() -> None:
    st.title("Saved results", anchor=False)
    folders = Opened.now().results
    if not folders:
        not_here("No saved result was given: engram explore FOLDER opens those in a folder.")
        return
    keep("result", folders)
    folder = st.selectbox(
        "Result",
        folders,
        key="result",
        format_func=lambda path: "/".join(Path(path).parts[-2:]),
        bind="query-params",
    )
    remember("result")
    result = cached.saved(folder)
    finding(result.summary())
    draw(result.figure(), f"{type(result).__name__}", "saved")
    numbers(result.to_frame(), f"saved_{result.kind}")
    origin(result, ["engram", "explore", folder])


page()
