"""What a session looks at: model, twin, text and position, shared by all pages and in the URL.

The text and the model are widgets bound to the URL. Streamlit forgets a widget that a page does
not draw, so a copy is kept; the position is picked in the strip and put into the URL here.
"""

from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from engram_app.examples import examples
from engram_app.explorer.opened import Opened, check_model
from engram_app.explorer.page import plain

LONGEST = 4000  # characters taken from the URL or the box


@dataclass(frozen=True)
class Looking:
    """path: checkpoint looked at. twin: checkpoint to compare with, or None."""

    path: str
    twin: str | None

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def twin_name(self) -> str:
        return Path(self.twin).name if self.twin else ""


def choose_models() -> Looking:
    """Selectors in the sidebar, where there is something to choose."""
    models = Opened.now().models
    path = models[0]
    if len(models) > 1:
        path = _selector("Model", "model", models)
    others = [model for model in models if model != path]
    twin = others[0] if others else None
    if len(others) > 1:
        twin = _selector("Twin to compare with", "twin", others)
    if twin:
        st.sidebar.caption(f"compared with {plain(Path(twin).name)}")
    check_model(path)
    return Looking(path, twin)


def _selector(label: str, key: str, paths: list[str]) -> str:
    """Offers names; a name that two checkpoints share comes with its folder."""
    names = [Path(path).name for path in paths]
    unique = [
        name if names.count(name) == 1 else path for name, path in zip(names, paths, strict=True)
    ]
    keep(key)
    chosen = st.sidebar.selectbox(label, unique, key=key, bind="query-params")
    remember(key)
    return paths[unique.index(chosen)] if chosen in unique else paths[0]


def keep(key: str) -> None:
    """Give a widget back the value it had on another page."""
    if key not in st.session_state and f"kept_{key}" in st.session_state:
        st.session_state[key] = st.session_state[f"kept_{key}"]


def remember(key: str) -> None:
    st.session_state[f"kept_{key}"] = st.session_state[key]


def choose_text() -> str:
    """The box for the text, with examples beneath it."""
    known = examples()
    keep("text")
    text = st.text_area(
        "Text to read",
        next(iter(known.values())),
        key="text",
        height="content",
        max_chars=LONGEST,
        bind="query-params",
    )
    remember("text")
    names = {example: name for name, example in known.items()}
    st.session_state["example"] = names.get(text)
    st.pills(
        "Examples",
        list(known),
        key="example",
        on_change=_take_example,
        label_visibility="collapsed",
    )
    return text


def _take_example() -> None:
    chosen = st.session_state["example"]
    if chosen:
        st.session_state["text"] = examples()[chosen]


def position(tokens: int, text: str, otherwise: int) -> int:
    """The position looked at: picked, from the URL, or `otherwise`."""
    state = st.session_state
    if "picked" not in state:
        asked = st.query_params.get("pos", "")
        state["picked"] = (text, int(asked)) if asked.isdecimal() else None
    chosen = state["picked"]
    if chosen and chosen[0] == text and chosen[1] < tokens:
        st.query_params["pos"] = str(chosen[1])
        return chosen[1]
    st.query_params.pop("pos", None)
    return otherwise


def pick(text: str, index: int | None) -> None:
    """Look at another position, on all pages."""
    if index is not None:
        st.session_state["picked"] = (text, index)
        st.rerun()
