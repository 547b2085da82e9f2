"""Overview: the text as the memory sees it, in one glance."""

import streamlit as st

from engram_app.explorer import cached
from engram_app.explorer.bars import next_tokens
from engram_app.explorer.ngrams import ngrams
from engram_app.explorer.page import finding, origin, plain
from engram_app.explorer.state import Looking, choose_models, choose_text, pick, position
from engram_app.explorer.strip import token_strip
from engram_app.measures import loudest, memory_values
from engram_probes.gates import GateMap, What

CARDS = (
    ("gates", "Gates", "Which n-grams were looked up, which rows they hit, and in which stream "
     "the gate let them through."),
    ("lens", "Lens", "What every block would predict by itself, and after how many blocks the "
     "prediction is settled."),
    ("alignment", "Alignment", "Which layers of the model do the work that its twin without a "
     "memory does in other layers."),
)  # fmt: skip
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


def token_facts(gates: GateMap, at: int) -> None:
    """What happened at the position: memory, n-grams, how expected the token was."""
    added, gate, score = (float(gates.values(what)[:, at].mean()) for what in MEASURES)
    first, second, third = st.columns(3)
    first.metric("Added", f"{added:.2f}", help="Size of what the memory adds / residual it enters")
    second.metric("Gate", f"{gate:.2f}", help="Mean over streams; 0.5 is neutral")
    third.metric("Score", f"{score:+.2f}", help="Fit of key and hidden state, mean over streams")
    looked_up = ", ".join(f"“{text}”" for text in ngrams(gates, at).values())
    st.markdown(plain(f"Looked up: {looked_up}"))
    if at > 0:
        surprise = float(gates.next_surprisal[at - 1])
        st.caption(f"Surprisal of this token: {surprise:.2f} nats, given all before it.")


def cards() -> None:
    """Where to go next."""
    for column, (page, title, text) in zip(st.columns(3), CARDS, strict=True):
        with column.container(border=True, height="stretch"):
            st.page_link(
                f"app_pages/{page}.py", label=f"**{title}**", icon=":material/arrow_forward:"
            )
            st.caption(text)


looking = choose_models()
st.title("What does the memory add?", anchor=False)
model_line(looking)
text = choose_text()
gates = cached.gates(looking.path, text)
at = position(len(gates.tokens), text, loudest(gates))
values, scale = memory_values(gates, "added")
clicked = token_strip(gates.tokens, values, gates.special, scale, at, "added")
pick(text, clicked)
finding(gates.summary())
left, right = st.columns([3, 2], gap="large")
with left:
    st.subheader("What the model expects next", anchor=False)
    st.caption(f"After {plain(gates.tokens[at])}, position {at}")
    next_tokens(gates, at)
with right:
    st.subheader(f"At {plain(gates.tokens[at])}", anchor=False)
    st.caption("Click another token to look at it")
    token_facts(gates, at)
st.space("small")
cards()
origin(gates, looking.command("gates", "--text", text))
