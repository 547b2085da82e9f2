"""Likeliest next tokens as a table with bars: the first screen needs no plotting library."""

import math
import time
from pathlib import Path

import numpy as np
import streamlit as st

from engram_probes.gates import GateMap
from engram_probes.predictions import Predictions

HERE = Path(__file__).parent
_bars = st.components.v2.component(
    "engram_next_tokens",
    html="<table></table>\n",
    css=(HERE / "bars.css").read_text(encoding="utf-8"),
    js=(HERE / "bars.js").read_text(encoding="utf-8"),
)


def next_tokens(gates: GateMap | Predictions, position: int, key: str = "next") -> None:
    """What the model expects after a position; the token that follows in the text is marked.

    key: of this table, where a page has several.
    """
    rows = [
        _row(text, float(probability), int(token) == _following(gates, position))
        for text, token, probability in zip(
            gates.next_texts[position],
            gates.next_ids[position],
            gates.next_probs[position],
            strict=True,
        )
    ]
    following = _following(gates, position)
    if following is not None and not any(row["isTrue"] for row in rows):
        probability = math.exp(-float(gates.next_surprisal[position]))
        rows.append(_row(gates.tokens[position + 1], probability, True))
    _bars(key=key, data={"drawn": time.time(), "name": "Next tokens", "rows": rows})


def _following(gates: GateMap | Predictions, position: int) -> int | None:
    last = position + 1 >= len(gates.tokens)
    return None if last else int(gates.token_ids[position + 1])


def _row(text: str, probability: float, is_true: bool) -> dict:
    return {
        "text": text,
        "probability": probability,
        "shown": percent(probability),
        "isTrue": is_true,
    }


def percent(probability: float) -> str:
    """A probability as text, small ones with one digit that counts."""
    if probability >= 0.001:
        return f"{probability:.1%}"
    return np.format_float_positional(100 * probability, precision=1, fractional=False) + "%"
