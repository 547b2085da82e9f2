"""Models: those at hand, what is known of them, and how to open one's own."""

from pathlib import Path

import streamlit as st

from engram_app.explorer.models_parts import applying, model_row
from engram_app.explorer.opened import LONGEST_PATH, Opened, bundled_models, find_model
from engram_app.explorer.page import finding, numbers, plain
from engram_app.explorer.state import add_model, as_given, as_option, choose_models
from engram_app.local_models import look
from engram_model.errors import EngramError

REFUSED = "models_refused"


def at_hand() -> list[str]:
    """Paths of all models that the sidebar offers."""
    added = st.session_state.get("models_added", [])
    return list(dict.fromkeys([*Opened.now().models, *added, *bundled_models()]))


def open_own(where: str) -> None:
    """A box for a path. In the address it is `model=PATH`."""
    st.subheader("Open your own", anchor=False)
    with st.form("models_open", border=False):
        st.text_input(
            "Folder on this machine",
            key="models_path",
            placeholder="/home/me/checkpoints/mine",
            help="An Engram checkpoint, or a causal model of transformers saved as safetensors.",
        )
        first, second = st.columns(2)
        first.form_submit_button(
            "Look at it", type="primary", on_click=_open, args=("model",), width="stretch"
        )
        second.form_submit_button(
            "Compare with it", on_click=_open, args=("twin",), width="stretch"
        )
    said = st.session_state.pop(REFUSED, None)
    if said:
        st.error(plain(said), icon=":material/error:")
    st.caption(
        "Nothing in the folder is run: weights are read from safetensors only, code beside a "
        "model is refused, and nothing is fetched from a network. "
        f"{where}"
    )


def _open(key: str) -> None:
    """Check what was typed and choose it; a refusal is said in one line."""
    path = st.session_state["models_path"].strip()
    try:
        if not path:
            raise EngramError("type the path of a folder")
        if len(path) > LONGEST_PATH or not path.isprintable():
            raise EngramError("that is no path of a checkpoint")
        look(Path(find_model(str(Path(path).expanduser()))))
        found = add_model(str(Path(path).expanduser()))
    except (EngramError, OSError, RuntimeError, ValueError) as error:
        st.session_state[REFUSED] = " ".join(str(error).split())[:300]
        return
    st.session_state[key] = as_option(found, at_hand())


def page() -> None:
    looking = choose_models()
    st.title("Models", anchor=False)
    facts = look(Path(looking.path))
    memory = ", ".join(map(str, facts.memory))
    has = f"a memory in layer {memory}" if memory else "no memory"
    finding(
        f"{looking.name} is open: {facts.layers} layers of width {facts.width}, {has}, "
        f"{facts.context:,} tokens of context."
        + (f" It is compared with {looking.twin_name}." if looking.twin else "")
    )
    rows = [model_row(path) for path in at_hand()]
    st.dataframe(rows, hide_index=True, height="content", alt=f"{len(rows)} models at hand")
    st.caption("Losses are those that the cards state, in nats a token, on the texts held out.")
    left, right = st.columns(2, gap="large")
    with left:
        open_own(f"From the command line: engram explore {plain(as_given(looking.path))}")
    with right:
        st.subheader(f"Pages for {plain(looking.name)}", anchor=False)
        table = applying(looking.path, looking.twin)
        st.dataframe(table, hide_index=True, alt="Which pages apply, and why others do not")
    import pandas as pd

    numbers(lambda: pd.DataFrame(rows), "models", "The models as a table")


page()
