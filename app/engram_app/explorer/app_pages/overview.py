"""Overview: the text as the memory sees it, in one glance."""

import numpy as np
import streamlit as st

from engram_app.explorer import cached
from engram_app.explorer.bars import next_tokens, percent
from engram_app.explorer.ngrams import ngrams
from engram_app.explorer.page import finding, origin, plain
from engram_app.explorer.state import (
    Looking,
    choose,
    choose_models,
    choose_text,
    pick,
    position,
)
from engram_app.explorer.strip import token_strip
from engram_app.measures import helped_values, loudest, memory_values
from engram_probes.gates import GateMap, What
from engram_probes.interventions import Intervention

CARDS = (
    ("gates", "Gates", "Which n-grams were looked up, which rows they hit, and in which stream "
     "the gate let them through."),
    ("interventions", "Interventions", "Silence the memory, force its gate, give it another "
     "n-gram's rows, and see what the model then says."),
    ("lens", "Lens", "What every block would predict by itself, and after how many blocks the "
     "prediction is settled."),
    ("attribution", "Attribution", "Who wrote a logit: every block, every head, every row of the "
     "memory."),
)  # fmt: skip
COLOURS = {"added": "What is added", "helped": "What it helps"}
QUANTITIES = {"added": "added", "helped": "helped by, nats"}
MEASURES: tuple[What, ...] = ("added", "gate", "score")


def model_line(looking: Looking) -> None:
    """Name, size and device of the model, above everything else."""
    model = cached.held(looking.path).model
    config = model.config
    size = sum(weight.numel() for weight in model.parameters())
    layers = getattr(config, "engram_layer_ids", ())  # other causal models have none
    rows = sum(config.hasher(pad_id=0).rows(layer) for layer in layers)
    streams = getattr(config, "hc_mult", 1)
    facts = [
        f"**{plain(looking.name)}**",
        f"{size / 1e6:.1f}M parameters",
        f"{config.num_hidden_layers} layers",
        f"{streams} residual stream{'s' * (streams > 1)}",
        f"{rows:,} memory rows in layer {', '.join(map(str, layers))}" if rows else "no memory",
        f"{config.max_position_embeddings:,} tokens of context",
        plain(str(model.device).upper()),
    ]
    st.caption(" · ".join(facts))


def token_facts(gates: GateMap, without: Intervention, at: int) -> None:
    """What happened at the position: memory, n-grams, how expected the token was."""
    added, gate, score = (float(gates.values(what)[:, at].mean()) for what in MEASURES)
    first, second, third = st.columns(3)
    first.metric("Added", f"{added:.2f}", help="Size of what the memory adds / residual it enters")
    second.metric("Gate", f"{gate:.2f}", help="Mean over streams; 0.5 is neutral")
    third.metric("Score", f"{score:+.2f}", help="Fit of key and hidden state, mean over streams")
    looked_up = ", ".join(f"“{text}”" for text in ngrams(gates, at).values())
    st.markdown(plain(f"Looked up: {looked_up}"))
    if at > 0:
        surprise, helps = float(without.surprisal[0, at]), float(without.helped[at])
        st.caption(
            f"Surprisal of this token: {surprise:.2f} nats, given all before it; "
            f"{surprise + helps:.2f} without the memory."
        )


def helped(without: Intervention) -> str:
    """Which token the model would miss most without the memory."""
    at = without.most_helped
    if at is None or without.helped[at] <= 0:
        return "Without it no token would be less likely."
    before, after = (percent(float(np.exp(-value))) for value in without.surprisal[:, at])
    return (
        f"It helps most with {without.tokens[at]} (position {at}): without the memory the "
        f"probability of that token falls from {before} to {after}."
    )


def cards() -> None:
    """Where to go next."""
    for column, (page, title, text) in zip(st.columns(len(CARDS)), CARDS, strict=True):
        with column.container(border=True, height="stretch"):
            st.page_link(
                f"app_pages/{page}.py", label=f"**{title}**", icon=":material/arrow_forward:"
            )
            st.caption(text)


def page() -> None:
    looking = choose_models()
    st.title("What does the memory add?", anchor=False)
    model_line(looking)
    text = choose_text()
    gates = cached.probe("gate_map", looking.path, text)
    without = cached.probe("intervene", looking.path, text, ("zero",))
    colour = choose("Colour", "colour", tuple(COLOURS), COLOURS.__getitem__)
    if colour == "added":
        values, scale = memory_values(gates, "added")
        otherwise = loudest(gates)
    else:
        values, scale = helped_values(without)
        otherwise = without.most_helped or 0
    at = position(len(gates.tokens), text, otherwise)
    pick(text, token_strip(gates.tokens, values, gates.special, scale, at, QUANTITIES[colour]))
    finding(f"{gates.summary()} {helped(without)}")
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.subheader("What the model expects next", anchor=False)
        st.caption(f"After {plain(gates.tokens[at])}, position {at}")
        next_tokens(gates, at)
    with right:
        st.subheader(f"At {plain(gates.tokens[at])}", anchor=False)
        st.caption("Click another token to look at it")
        token_facts(gates, without, at)
    st.space("small")
    cards()
    origin(
        gates,
        looking.command("gates", "--text", text),
        looking.python("ep.gate_map(model, tokenizer, text)", text=text),
    )


page()
