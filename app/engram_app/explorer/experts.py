"""Experts on the page of heads: which are chosen for each token, and which without the memory."""

import streamlit as st

from engram_app.explorer import cached
from engram_app.explorer.page import draw, finding, not_here, origin, plain
from engram_app.explorer.state import Looking, choose, pick, position, select
from engram_app.explorer.strip import token_strip
from engram_app.measures import anew_values
from engram_model.errors import UsageError
from engram_probes.figures.routing import NAMES
from engram_probes.routing import ExpertRouting


def experts(looking: Looking, text: str) -> None:
    try:
        found = cached.probe("expert_routing", looking.path, text, _slow=True, _hooked=True)
    except UsageError as error:
        if "no experts" not in str(error):
            raise
        not_here(f"{looking.name} is dense: it has no experts. Choose a mixture of experts.")
        return
    tokens = found.tokens
    at = position(len(tokens), text, len(tokens) - 1)
    values, special, scale = anew_values(found)
    pick(text, token_strip(tokens, values, special, scale, at, "experts chosen anew"))
    finding(found.summary())
    change = _changed(found, at, text) if found.changes else 0
    draw(
        found.figure("experts", change),
        "Expert with the most weight, with the memory",
        "heads_experts",
        at,
        on_cell=lambda _row, column: select(text, column),
    )
    st.markdown(f"**{plain(f'Experts of {tokens[at]}, position {at}, and their weights')}**")
    table = found.token_frame(at)
    shown = {name: name if name in ("layer", "kept") else NAMES.get(name, name) for name in table}
    st.dataframe(
        table.rename(columns=shown),
        hide_index=True,
        alt=f"Experts of position {at} by layer, with the memory and under each change",
        column_config={"kept": st.column_config.NumberColumn("Kept", format="percent")},
    )
    call = "ep.expert_routing(model, tokenizer, text)"
    origin(found, looking.command("routing", "--text", text), looking.python(call, text=text))


def _changed(found: ExpertRouting, at: int, text: str) -> int:
    """What a change of the memory makes of the choices, with its controls; the one looked at."""
    chosen = choose(
        "Change", "heads_change", found.changes, lambda name: NAMES.get(name, name).capitalize()
    )
    change = found.changes.index(chosen)
    draw(
        found.figure("text", change),
        f"Share of its experts that each token keeps: {NAMES.get(chosen, chosen)}",
        "heads_kept_text",
        at,
        on_cell=lambda _row, column: select(text, column),
    )
    draw(
        found.figure("kept"),
        "Share kept by layer, beside changes as large and chance",
        "heads_kept",
        frame=found.to_frame,
    )
    return change
