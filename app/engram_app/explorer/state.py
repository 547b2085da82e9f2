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
from engram_app.explorer.opened import Opened, bundled_models, check_model, find_model
from engram_app.explorer.page import one_line_errors
from engram_app.local_models import look
from engram_model.checkpoint import bundled_checkpoints

Option = TypeVar("Option", bound=str)
LONGEST = 8000  # characters taken from the URL or the box
NONE = "nothing"
ALL = "all"


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

    def command(self, probe: str, *options: str, twin: bool = False) -> list[str]:
        """The command that measures the same. twin: it takes the twin too."""
        other = ["--twin", as_given(self.twin)] if self.twin and twin else []
        return ["engram", "probe", probe, as_given(self.path), *other, *options, "--out", probe]

    def python(self, call: str, *, text: str | None = None, twin: bool = False) -> str:
        """The same in a notebook.

        call: says `model`, `tokenizer`, and `text` or `twin` where they are asked for.
        """
        lines = ["import engram_model as em", "import engram_probes as ep", ""]
        lines.append(f"model, tokenizer = em.load({as_given(self.path)!r})")
        lines += [f"twin, _ = em.load({as_given(self.twin)!r})"] if self.twin and twin else []
        lines += [] if text is None else [f"text = {text!r}"]
        return "\n".join([*lines, f"result = {call}", "result.figure()"])


def choose_models() -> Looking:
    """Selectors in the sidebar: what was opened first, then the bundled models."""
    opened = Opened.now().models
    taken: set = st.session_state.setdefault("models_asked", set())  # once: then others are chosen
    for key in ("model", "twin"):
        asked = st.query_params.get(key, "")
        if "/" in asked and (key, asked) not in taken:
            with one_line_errors():  # and go on with what is at hand
                select_model(asked, key)
                taken.add((key, asked))
    models = models_at_hand()
    path = _selector("Model", "model", models, models[0])
    first = opened[1] if len(opened) > 1 else None
    twin = _selector("Compared with", "twin", [None, *models], first if first != path else None)
    check_model(path)
    return Looking(path, twin if twin != path else None)


def models_at_hand() -> list[str]:
    """Paths of all models that the sidebar offers."""
    return list(dict.fromkeys([*Opened.now().models, *_added(), *bundled_models()]))


def select_model(path: str, key: str) -> None:
    """Offer another checkpoint in this session and choose it; before the selectors are drawn.

    Args:
        key: `model`, or `twin` to compare with.

    Raises:
        CheckpointError: there is no checkpoint, or one that is not opened; nothing in it is run.
    """
    found = find_model(path)
    look(Path(found))
    if found not in models_at_hand():
        _added().append(found)
    st.session_state[key] = _labels(models_at_hand())[models_at_hand().index(found)]


def _added() -> list[str]:
    return st.session_state.setdefault("models_added", [])


def _labels(paths: Sequence[str | None]) -> list[str]:
    """Names; of those added here, and of those that share a name, the path."""
    names = [Path(path).name if path else NONE for path in paths]
    return [
        path if path and (path in _added() or names.count(name) > 1) else name
        for name, path in zip(names, paths, strict=True)
    ]


def _selector(label: str, key: str, paths: list[Any], default: str | None) -> Any:
    labels = _labels(paths)
    keep(key, labels)
    chosen = st.sidebar.selectbox(label, labels, paths.index(default), key=key, bind="query-params")
    remember(key)
    return paths[labels.index(chosen)] if chosen in labels else default


def turn_to(page: str) -> None:
    """Note which page is drawn: on another one than before, widgets begin anew."""
    state = st.session_state
    turned = state.get("page", page) != page
    state["restoring"] = {key for key in state if str(key).startswith("kept_")} if turned else set()
    state["page"] = page


def as_given(path: str) -> str:
    """The name of a bundled checkpoint, else its path."""
    bundled = bundled_checkpoints()
    name = Path(path).name
    return name if bundled and bundled / name == Path(path) else path


def keep(key: str, options: Sequence[Any] | None = None) -> None:
    """Give a widget back the value it had on another page, if it still is an option."""
    state, kept = st.session_state, f"kept_{key}"
    if kept in state["restoring"]:
        state["restoring"].discard(kept)  # once: a fragment runs again without its page
        if options is None or state[kept] in options:
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


def pick_from(
    label: str,
    key: str,
    options: Sequence[Option],
    shown: Callable[[Option], str] = str,
    default: Option | None = None,
) -> Option:
    """One of many options, in the URL as `key` and remembered on other pages."""
    keep(key, options)
    first = 0 if default is None else options.index(default)
    chosen = st.selectbox(label, options, first, key=key, format_func=shown, bind="query-params")
    remember(key)
    return chosen if chosen in options else options[first]


def pick_or_type(
    label: str,
    key: str,
    options: Sequence[str],
    shown: Callable[[str], str] = str,
    help: str | None = None,
) -> str:
    """One of the options or another that is typed, in the URL and remembered like theirs."""
    keep(key)
    asked = st.session_state.get(key) or st.query_params.get(key)
    offered = list(dict.fromkeys([*options, asked] if asked else options))
    chosen = st.selectbox(
        label,
        offered,
        key=key,
        format_func=shown,
        accept_new_options=True,
        help=help,
        bind="query-params",
    )
    remember(key)
    return chosen or offered[0]


def type_in(label: str, key: str, most: int, placeholder: str, help: str | None = None) -> str:
    """A line that may stay empty, in the URL as `key` and remembered on other pages."""
    keep(key)
    typed = st.text_input(
        label, key=key, max_chars=most, placeholder=placeholder, help=help, bind="query-params"
    )
    remember(key)
    return typed or ""


def put(key: str, option: str) -> None:
    """Choose an option of `choose` or `pick_from` in a callback."""
    st.session_state[key] = st.session_state[f"kept_{key}"] = option


def switch(label: str, key: str, default: bool = False) -> bool:
    """On or off, in the URL as `key` and remembered on other pages."""
    keep(key)
    chosen = st.toggle(label, default, key=key, bind="query-params")
    remember(key)
    return bool(chosen)


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
    chosen = st.session_state.get("example")  # gone where the page was left meanwhile
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
        select(text, index)
        st.rerun()


def select(text: str, index: int) -> None:
    """The same in a callback, which is followed by a run anyway."""
    st.session_state["picked"] = (text, index)


def selection() -> None:
    """In the sidebar, what is selected on all pages, and a button that clears it."""
    state = st.session_state
    parts = [f"position {state['picked'][1]}"] if state.get("picked") else []
    parts += [
        f"{key} {state[f'kept_{key}']}"
        for key in ("layer", "stream")
        if state.get(f"kept_{key}") not in (None, ALL)
    ]
    if parts:
        with st.sidebar.container(horizontal=True, vertical_alignment="center"):
            st.caption("Selected: " + ", ".join(parts))
            st.button(
                "Clear", key="clear", on_click=_clear, type="tertiary", icon=":material/close:"
            )


def _clear() -> None:
    st.session_state["picked"] = None
    for key in ("layer", "stream"):
        st.session_state.pop(f"kept_{key}", None)
        if key in st.session_state:
            st.session_state[key] = ALL
