"""One look for all figures: colours that do not need colour vision, numeric axes, a text for each.

Token strings are never axis values: two equal tokens would fall on one place. Positions are
numbers, and tokens their labels.
"""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

SEQUENTIAL = "Cividis"
DIVERGING = "PuOr"
# Okabe and Ito's colours, the ones that are legible as lines on white.
CATEGORICAL = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MOST_LABELS = 64  # tokens written out below an axis
ROW = 34  # pixels of a heatmap's row


def finish(figure: go.Figure, title: str, alt: str, height: int = 420) -> go.Figure:
    """Title, margins, and `alt`: what the figure shows, in words."""
    figure.update_layout(
        title={"text": title, "font": {"size": 16}},
        template="plotly_white",
        height=height,
        margin={"l": 70, "r": 30, "t": 60, "b": 60},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1.0, "xanchor": "right"},
        meta={"alt": alt},
    )
    return figure


def heatmap_height(rows: int) -> int:
    return int(np.clip(180 + ROW * rows, 300, 900))


def peak(values: np.ndarray, special: np.ndarray) -> tuple[int, int]:
    """Row and position of the largest value [rows, p] at an ordinary token."""
    shown = np.where(special | ~np.isfinite(values), -np.inf, values)
    row, position = np.unravel_index(np.argmax(shown), shown.shape)
    return int(row), int(position)


def float32(values: np.ndarray) -> np.ndarray:
    """What plotly is given: small, and exact enough for a picture."""
    return np.asarray(values, dtype=np.float32)


def transparent(colour: str, opacity: float) -> str:
    """#rrggbb -> rgba()."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def token_axis(tokens: Sequence[str], start: int = 0) -> dict:
    """Numeric axis of positions labelled by their tokens; by numbers alone where there are many.

    start: position of the first token.
    """
    stop = start + len(tokens)
    axis = {"title": {"text": "position (token)"}, "range": [start - 0.5, stop - 0.5]}
    if len(tokens) > MOST_LABELS:
        return {**axis, "title": {"text": "position"}}
    labels = [escaped(token) for token in tokens]
    places = list(range(start, stop))
    return {**axis, "tickvals": places, "ticktext": labels, "tickangle": -60}


def escaped(text: str) -> str:
    """Plotly reads labels as HTML; a token may look like a tag."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def layer_axis(layers: Sequence[int], title: str) -> dict:
    """Numeric axis of rows, first at the bottom, each labelled."""
    return {
        "title": {"text": title},
        "tickvals": list(range(len(layers))),
        "ticktext": [str(layer) for layer in layers],
        "range": [-0.5, len(layers) - 0.5],
    }
