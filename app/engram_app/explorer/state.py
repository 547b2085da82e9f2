"""What a session looks at: model, twin, text and position, shared by all pages and in the URL.

The text and the model are widgets bound to the URL. Streamlit forgets a widget that a page does
not draw, so a copy is kept; the position is picked in the strip and put into the URL here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import streamlit as st

from engram_app.examples import examples
from engram_app.explorer.opened import Opened, check_model
from engram_app.explorer.page import plain
from engram_model.checkpoint import bundled_checkpoints

Option = TypeVar("Option", bound=str)
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

    def command(self, probe: str, *options: str) -> list[str]:
        """The command that measures the same, with the twin where there is one."""
        twin = ["--twin", as_given(self.twin)] if self.twin and probe != "gates" else []
        return ["engram", "probe", probe, as_given(self.path), *twin, *options, "--out", probe]


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
    keep(key, unique)
    chosen = st.sidebar.selectbox(label, unique, key=key, bind="query-params")
    remember(key)
    return paths[unique.index(chosen)] if chosen in unique else paths[0]


def turn_to(page: str) -> None:
    """Note which page is drawn: on another one than before, widgets begin anew."""
    state = st.session_state
    state["turned"] = state.get("page", page) != page
    state["page"] = page


def as_given(path: str) -> str:
    """The name of a bundled checkpoint, else its path."""
    bundled = bundled_checkpoints()
    name = Path(path).name
    return name if bundled and bundled / name == Path(path) else path


def keep(key: str, options: Sequence[Any] | None = None) -> None:
    """Give a widget back the value it had on another page, if it still is an option."""
    state, kept = st.session_state, f"kept_{key}"
    if state["turned"] and kept in state and (options is None or state[kept] in options):
        state[key] = state[kept]


def remember(key: str) -> None:
    st.session_state[f"kept_{key}"] = st.session_state[key]


def choose(
    label: str, key: str, options: Sequence[Option], shown: Callable[[Option], str] = str
) -> Option:
    """One of a few options, in the URL as `key` and remembered on other pages."""
    keep(key, options)
    chosen = st.segmented_control(
        label,
        options,
        default=options[0],
        key=key,
        format_func=shown,
        required=True,
        bind="query-params",
    )
    remember(key)
    return chosen or options[0]


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
        state["picked"] = (text, int(asked)) if asked.isdecimal() and len(asked) < 9 else None
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
