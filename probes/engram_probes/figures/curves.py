"""Curves by depth with their intervals, and the blocks that have a memory."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from engram_probes.figures.style import escaped, float32, transparent

DEPTH_TITLE = "blocks run (0: embedding)"


def add_curve(
    figure: go.Figure,
    mean: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    name: str,
    colour: str,
    row: int | None = None,
    depth: np.ndarray | None = None,
    dash: str = "solid",
) -> None:
    """A line with markers, and a band where there is an interval.

    Args:
        mean, low, high: [D].
        row: of a figure with subplots.
        depth: of each point; None: 0 to D - 1.
        dash: of the line, plotly's name.
    """
    place = {} if row is None else {"row": row, "col": 1}
    depth = np.arange(len(mean)) if depth is None else depth
    if np.isfinite(low).all():
        figure.add_trace(
            go.Scatter(
                x=np.concatenate([depth, depth[::-1]]),
                y=float32(np.concatenate([high, low[::-1]])),
                mode="lines",
                fill="toself",
                fillcolor=transparent(colour, 0.2),
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                name=f"{name}, 95% interval",
            ),
            **place,
        )
    figure.add_trace(
        go.Scatter(
            x=depth,
            y=float32(mean),
            mode="lines+markers",
            name=name,
            showlegend=True,
            line={"color": colour, "width": 2, "dash": dash},
            hovertemplate=f"{escaped(name)}, %{{x}} blocks: %{{y:.3f}}<extra></extra>",
        ),
        **place,
    )


def mark_memory(figure: go.Figure, layers: Sequence[float]) -> None:
    """Shade the blocks with a memory: block i runs between depth i and i + 1."""
    for layer in layers:
        figure.add_vrect(
            x0=layer, x1=layer + 1, fillcolor="#999999", opacity=0.18, line_width=0, layer="below"
        )
    if layers:
        figure.add_annotation(
            text="shaded: blocks with a memory",
            xref="paper", yref="paper", x=0, y=1, yanchor="bottom", showarrow=False,
            font={"size": 11, "color": "#555555"},
        )  # fmt: skip
