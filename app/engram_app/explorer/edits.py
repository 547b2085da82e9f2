"""The edits of the memory that a session has made: built, undone, and kept in the URL as `edit`."""

import streamlit as st

from engram_app.explorer.page import plain
from engram_app.explorer.state import choose
from engram_probes.gates import GateMap
from engram_probes.interventions import OF_ROWS, MemoryEdit

HOWS = {
    "zero": "Add nothing",
    "gate": "Force the gate",
    "scale": "Multiply what is added",
    "rows_zero": "Rows read as zero",
    "swap": "Rows of another n-gram",
}
VALUES = {"gate": "Gate, 0 to 1", "scale": "Factor", "swap": "Text that ends in the n-gram"}
USUAL = {"gate": "1", "scale": "2", "swap": "New York"}
EVERYWHERE = ("zero",)
ALL = "all"


def edits() -> tuple[str, ...]:
    """Those in force; a session that asked for none begins without the memory."""
    state = st.session_state
    if "edits" not in state:
        state["edits"] = tuple(st.query_params.get_all("edit")) or EVERYWHERE
        state["edits_before"] = []
    if state["edits"] == EVERYWHERE:
        st.query_params.pop("edit", None)
    else:
        st.query_params["edit"] = list(state["edits"])
    return state["edits"]


def show_edits() -> None:
    """What is in force, each with a button that takes it back."""
    with st.container(horizontal=True, vertical_alignment="center", key="edits_in_force"):
        st.markdown("**In force**")
        for index, edit in enumerate(edits()):
            st.button(
                plain(edit),
                key=f"edit_{index}",
                icon=":material/close:",
                help="Take this edit back",
                on_click=_change,
                args=(_without(index),),
            )
        if not edits():
            st.caption("Nothing: the memory is as it was trained.")
        st.button(
            "Undo",
            icon=":material/undo:",
            type="tertiary",
            disabled=not st.session_state["edits_before"],
            on_click=_undo,
        )


def build_edit(gates: GateMap, at: int) -> None:
    """A row of choices that makes one more edit."""
    how = choose("Change", "how", tuple(HOWS), HOWS.__getitem__)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        value = ""
        if how in VALUES:
            value = st.text_input(VALUES[how], USUAL[how], key=f"value_{how}", width=220)
        place = _one_of("Where", {f"token {at}": at, **({} if how == "swap" else {ALL: None})})
        found = {"layer": _one_of("Layer", {ALL: None, **{str(n): n for n in gates.layers}})}
        if how in OF_ROWS:
            orders = range(2, gates.max_ngram_size + 1)
            found["order"] = _one_of("Order", {ALL: None, **{str(n): n for n in orders}})
            heads = range(gates.n_heads)
            found["head"] = _one_of("Head", {ALL: None, **{str(n): n for n in heads}})
        elif gates.streams > 1:
            streams = range(gates.streams)
            found["stream"] = _one_of("Stream", {ALL: None, **{str(n): n for n in streams}})
        st.button(
            "Add this edit",
            type="primary",
            icon=":material/add:",
            on_click=_add,
            args=(how, value, place, found),
        )
    if said := st.session_state.pop("edit_refused", None):
        st.error(plain(said), icon=":material/error:")


def _one_of(label: str, options: dict[str, int | None]) -> int | None:
    chosen = st.selectbox(label, list(options), key=f"edit_{label.lower()}", width=110)
    return options.get(chosen)


def _add(how: str, value: str, place: int | None, targets: dict[str, int | None]) -> None:
    from engram_model.errors import UsageError

    try:
        number = _value(how, value) if how in VALUES else None
        made = str(
            MemoryEdit(
                how=how, value=number, pos=None if place is None else (place, place), **targets
            )
        )
    except UsageError as error:
        st.session_state["edit_refused"] = str(error)
        return
    now = edits()
    _change((*(now if now != EVERYWHERE else ()), made))


def _value(how: str, text: str) -> float | str:
    if how == "swap":
        return text
    try:
        return float(text)
    except ValueError:
        from engram_model.errors import UsageError

        raise UsageError(f"{how} needs a number, and {text!r} is none") from None


def _without(index: int) -> tuple[str, ...]:
    now = edits()
    return now[:index] + now[index + 1 :]


def _change(new: tuple[str, ...]) -> None:
    st.session_state["edits_before"].append(st.session_state["edits"])
    st.session_state["edits"] = new


def _undo() -> None:
    st.session_state["edits"] = st.session_state["edits_before"].pop()
