"""Interventions: the memory changed by hand, and what the model then says."""

from typing import Any

import streamlit as st

from engram_app.explorer import cached
from engram_app.explorer.edits import build_edit, edits, show_edits
from engram_app.explorer.page import draw, finding, origin, plain
from engram_app.explorer.state import (
    Looking,
    choose_models,
    choose_text,
    pick,
    position,
    switch,
    type_in,
)
from engram_app.explorer.strip import token_strip
from engram_app.measures import helped_values
from engram_probes.gates import GateMap
from engram_probes.interventions import Intervention

CONTROLS = 10
GENERATED = 24


def write_fact(looking: Looking, gates: GateMap, at: int) -> Any:
    """A fact for the rows read at the token: the edit that writes it, None for none."""
    with st.expander("Write a fact into the rows", icon=":material/edit_note:"):
        st.caption(
            plain(f"The rows read at {gates.tokens[at]} (position {at}) are trained until the ")
            + "text up to there goes on with this answer. The model itself is left as it is."
        )
        answer = type_in("Answer", "answer", 60, " Paris")
        if not answer.strip():
            return None
        return _edit(looking, gates, at, answer)


def _edit(looking: Looking, gates: GateMap, at: int, answer: str) -> Any:
    ids = tuple(gates.token_ids[1 : at + 1].tolist())

    def compute(one: cached.Held, progress: Any) -> Any:
        from engram_probes.editing import edit

        prompt = one.tokenizer.decode(ids)
        return edit(one.model, one.tokenizer, prompt, answer, progress=progress)

    result, patch = cached.measured(("edit", ids, answer), (looking.path,), compute, slow=True)
    st.markdown(plain(result.summary()))
    return patch


def intervene(
    looking: Looking, text: str, patch: Any, answer: tuple, controls: int, generate: int
) -> Intervention:
    given = edits()

    def compute(one: cached.Held, progress: Any) -> Intervention:
        from engram_probes import intervene

        return intervene(
            one.model,
            one.tokenizer,
            text,
            given,
            patch=patch,
            generate=generate,
            controls=controls,
            progress=progress,
        )

    key = ("intervene", text, given, answer, controls, generate)
    return cached.measured(key, (looking.path,), compute, slow=True)


def continuations(result: Intervention) -> None:
    """Both greedy continuations side by side; what is no longer the same is bold."""
    same = len(result.generated_texts[0]) if result.parts_at is None else result.parts_at
    titles = ("As it is", "Edited")
    for column, title, texts in zip(st.columns(2), titles, result.generated_texts, strict=True):
        with column.container(border=True, height="stretch"):
            st.caption(title)
            first, rest = (
                "".join(part).replace("·", " ").replace("↵", "\n")
                for part in (texts[:same], texts[same:])
            )
            bold = f" **{plain(rest.strip())}**" if rest.strip() else ""
            st.markdown(f"… {plain(first.strip())}{bold}")
    if result.parts_at is None:
        st.caption("The continuations are the same.")


def reproduce(looking: Looking, result: Intervention, text: str) -> tuple[list[str], str]:
    """Command and Python of what is on the page."""
    settings = result.provenance.settings
    options = [word for edit in result.edits for word in ("--edit", edit)]
    options += ["--controls", str(settings["controls"]), "--generate", str(settings["generate"])]
    call = (
        f"ep.intervene(model, tokenizer, text, {list(result.edits)!r}, "
        f"controls={settings['controls']}, generate={settings['generate']})"
    )
    return looking.command("intervene", "--text", text, *options), looking.python(call, text=text)


def page() -> None:
    looking = choose_models()
    st.title("Interventions", anchor=False)
    text = choose_text()
    gates = cached.probe("gate_map", looking.path, text)
    shown = st.container()
    bare = cached.probe("intervene", looking.path, text, ("zero",))
    at = position(len(gates.tokens), text, bare.most_helped or 0)
    build_edit(gates, at)
    show_edits()
    patch = write_fact(looking, gates, at)
    with st.container(horizontal=True):
        controls = switch("Set beside random changes as large", "controls", True)
        generate = switch("Let it go on writing", "generate")
    answer = (at, st.session_state.get("answer")) if patch else ()
    result = intervene(looking, text, patch, answer, CONTROLS * controls, GENERATED * generate)
    with shown:
        values, scale = helped_values(result)
        pick(text, token_strip(gates.tokens, values, gates.special, scale, at, "lost, nats"))
    finding(result.summary())
    draw(
        result.figure(),
        "What each token loses by the edit: rise of its surprisal",
        "intervention",
        at,
        result.to_frame,
    )
    if generate:
        st.subheader("How the text goes on", anchor=False)
        continuations(result)
    draw(
        result.figure("next", at),
        f"The next token after {gates.tokens[at]} (position {at})",
        "intervention_next",
    )
    command, python = reproduce(looking, result, text)
    origin(result, command, python)


page()
