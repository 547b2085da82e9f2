"""The text as a row of coloured tokens; a click picks one."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import streamlit as st

from engram_app.colours import Scale
from engram_app.measures import strip_tokens

HERE = Path(__file__).parent
_strip = st.components.v2.component(
    "engram_token_strip",
    html='<div class="strip"></div>',
    css=(HERE / "strip.css").read_text(encoding="utf-8"),
    js=(HERE / "strip.js").read_text(encoding="utf-8"),
)


def token_strip(
    tokens: Sequence[str],
    values: np.ndarray,
    special: np.ndarray,
    scale: Scale,
    selected: int,
    quantity: str,
    key: str = "strip",
) -> int | None:
    """Draw the strip.

    Args:
        tokens: texts as shown, a space in front as `·`.
        values: one a token.
        special: tokens that are left uncoloured.
        scale: what the colours mean.
        selected: position that is marked.
        quantity: one word for the value, for those who hear it.
        key: of this strip, where a page has several.

    Returns:
        The position that was just clicked, if one was.
    """
    data = {
        "drawn": time.time(),
        "name": f"Tokens, coloured by {quantity}",
        "title": scale.title,
        "low": f"{scale.low:.3g}",
        "high": f"{scale.high:.3g}",
        "gradients": scale.gradients(),
        "selected": selected,
        "tokens": strip_tokens(tokens, values, special, scale, quantity),
    }
    picked = _strip(key=key, data=data, on_picked_change=lambda: None).picked
    return None if picked is None else int(picked)
