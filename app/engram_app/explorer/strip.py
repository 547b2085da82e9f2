"""The text as a row of coloured tokens; a click picks one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from engram_app.colours import Scale

HERE = Path(__file__).parent
_strip = st.components.v2.component(
    "engram_token_strip",
    html='<div class="strip"></div>',
    css=(HERE / "strip.css").read_text(encoding="utf-8"),
    js=(HERE / "strip.js").read_text(encoding="utf-8"),
)


def token_strip(
    tokens: Sequence[str],
    values: Sequence[float],
    special: Sequence[bool],
    scale: Scale,
    selected: int,
    quantity: str,
) -> int | None:
    """Draw the strip.

    Args:
        tokens: texts as shown, a space in front as `·`.
        values: one a token.
        special: tokens that are left uncoloured.
        scale: what the colours mean.
        selected: position that is marked.
        quantity: one word for the value, for those who hear it.

    Returns:
        The position that was just clicked, if one was.
    """
    rows = zip(tokens, values, special, strict=True)
    data = {
        "name": f"Tokens, coloured by {quantity}",
        "title": scale.title,
        "low": f"{scale.low:.3g}",
        "high": f"{scale.high:.3g}",
        "gradients": scale.gradients(),
        "selected": selected,
        "tokens": [_token(i, *row, scale, quantity) for i, row in enumerate(rows)],
    }
    picked = _strip(key="strip", data=data, on_picked_change=lambda: None).picked
    return None if picked is None else int(picked)


def _token(
    position: int, text: str, value: float, special: bool, scale: Scale, quantity: str
) -> dict[str, Any]:
    number = f"{quantity} {value:.3g}" if np.isfinite(value) else f"no {quantity}"
    shown = float(value) if np.isfinite(value) and not special else scale.centre
    word = text.startswith("·") and len(text) > 1
    return {
        "text": text[1:] if word else text,
        "word": word,
        "breaks": text.endswith("↵"),
        "special": bool(special) and text.startswith("<"),
        "label": f"token {position} {text}, {number}",
        "shades": scale.shades(shown),
        "strength": scale.strength(shown),
    }
