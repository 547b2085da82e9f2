"""Attribution: who wrote a logit, and what of it the memory did, row by row."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from engram_app.explorer import cached
from engram_app.explorer.page import draw, finding, origin, plain
from engram_app.explorer.state import (
    Looking,
    choose_models,
    choose_text,
    pick,
    pick_from,
    pick_or_type,
    position,
    select,
    switch,
)
from engram_app.explorer.strip import token_strip
from engram_app.explorer.tokens import Line, read_line
from engram_probes.attribution import ROW, Attribution

LIKELIEST, NOTHING = "the likeliest", "nothing"
LONG = 1000  # characters of a text that takes more than a second
COMPONENT = "attribution_component"


def choose_token(label: str, key: str, first: str, line: Line, at: int) -> int | str | None:
    """A token: the likeliest next ones are offered, any other can be typed; None: `first`."""
    offered = line.next_tokens(at)
    help = "Choose, or type one token; · is the space before it, as in ·Paris."
    chosen = pick_or_type(label, key, [first, *offered], help=help)
    if chosen == first:
        return None
    return offered.get(chosen, chosen.replace("·", " "))


def numbers_of(found: Attribution) -> None:
    """Logit and probability, with the memory and without."""
    columns = st.columns(4)
    columns[0].metric("Logit" if found.against is None else "Difference", f"{found.logit:.2f}")
    columns[1].metric("Probability", f"{found.probability:.2%}", help=f"rank {found.rank}")
    if found.logit_without_memory is None or found.probability_without_memory is None:
        return
    columns[2].metric(
        "Written by the memory itself",
        f"{found.memory:+.2f}",
        help="The memory's rows and convolution, read by the end of the model directly",
    )
    columns[3].metric(
        "Without the memory",
        f"{found.logit_without_memory:.2f}",
        f"{found.logit_without_memory - found.logit:+.2f}",
        delta_color="off",
        help="All memories silenced, and all that reads them changed accordingly: probability "
        f"{found.probability_without_memory:.2%}",
    )


def component_panel(found: Attribution, looking: Looking, text: str, at: int, line: Line) -> None:
    """One component in words, and the page on which to go on."""
    state, names = st.session_state, found.components
    chosen = pick_from("Component", COMPONENT, names, default=found.largest())
    st.markdown(plain(found.about(chosen)))
    layer, row = chosen.split("_")[0], ROW.fullmatch(chosen)
    ways: dict[str, tuple[str, str, dict[str, Any]]] = {}
    if row:
        slot = int(found.slots[names.index(chosen)])
        picked = ((looking.path, line.ngram(at)), (int(layer), slot))
        ways["This row in Slots"] = ("slots", "table_rows", {"picked_row": picked})
    if "_engram_" in chosen:
        ways["This memory in Gates"] = ("gates", "tune", {"kept_layer": layer})
    if "_attn_" in chosen:
        head = chosen.partition("_head")[2] or "most"
        ways["These heads"] = ("heads", "hub", {"kept_layer": layer, "kept_heads_head": head})
    with st.container(horizontal=True):
        for label, (page, icon, selected) in ways.items():
            if st.button(label, icon=f":material/{icon}:"):
                select(text, at)
                state.update(selected)
                # Streamlit refuses to drop what widgets hold in the URL; each page puts it back.
                st.switch_page(f"app_pages/{page}.py", query_params={"pos": str(at)})


def _taking(found: Attribution) -> Callable[[str], None]:
    def take(name: str) -> None:
        if name in found.components:  # not the bar of the smallest together
            st.session_state[COMPONENT] = name

    return take


def memory_figures(found: Attribution) -> None:
    """What each part of the model wrote, and each piece of the memory."""
    of = _of(found)
    draw(found.figure("parts"), f"Logit of {of} by part of the model", "attribution_parts")
    if found.logit_without_memory is not None:
        draw(
            found.figure("memory"),
            "What the memory wrote, piece by piece",
            "attribution_memory",
            frame=found.memory_frame,
            on_bar=_taking(found),
        )
        st.caption(
            "Lines: what rows drawn at random from the same part of the table would add through "
            "the same gate, 95%. A bar that ends within its line is no more than any row does."
        )


def _of(found: Attribution) -> str:
    less = "" if found.against is None else f" less “{found.against}”"
    return f"“{found.target}”{less}"


def page() -> None:
    looking = choose_models()
    st.title("Attribution", anchor=False)
    text = choose_text()
    line = read_line(looking.path, text)
    at = position(len(line.tokens), text, len(line.tokens) - 1)
    pick(text, token_strip(line.tokens, line.values, line.special, line.scale, at, line.quantity))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        target = choose_token("Logit of", "attribution_target", LIKELIEST, line, at)
        against = choose_token("less that of", "attribution_against", NOTHING, line, at)
        heads = switch("Attention by its heads", "attribution_heads")
    found = cached.probe(
        "attribute",
        looking.path,
        text,
        target,
        against,
        position=at,
        heads=heads,
        _slow=len(text) > LONG,
        _hooked=True,
    )
    finding(found.summary())
    numbers_of(found)
    memory_figures(found)
    component_panel(found, looking, text, at, line)
    draw(
        found.figure(),
        f"Logit of {_of(found)} by component",
        "attribution_components",
        frame=found.to_frame,
        on_bar=_taking(found),
    )
    options = {"target": target, "against": against}
    given = [f"{name}={value!r}" for name, value in options.items() if value is not None]
    given += [f"position={at}", *(["heads=True"] if heads else [])]
    words = [
        word
        for name, token in (("--target", target), ("--against", against))
        if token is not None
        for word in (name, line.as_typed(token) if isinstance(token, int) else token)
    ]
    words += ["--position", str(at), *(["--heads"] if heads else [])]
    call = f"ep.attribute(model, tokenizer, text, {', '.join(given)})"
    origin(
        found,
        looking.command("attribute", "--text", text, *words),
        looking.python(call, text=text),
    )


page()
