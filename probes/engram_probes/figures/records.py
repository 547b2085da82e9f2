"""Figures of training logs, evaluations and comparisons."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from engram_probes.figures.style import CATEGORICAL, escaped, finish

if TYPE_CHECKING:
    from engram_probes.records import TrainingLog

DASHES = ("solid", "dash", "dot")
NAMES = {"eval_loss": "Valid loss", "loss": "Training loss"}
ROW = 26


def training_curves_figure(logs: Sequence["TrainingLog"], what: str) -> go.Figure:
    """A line a training; colours first, then dashes."""
    figure = go.Figure()
    for i, log in enumerate(logs):
        tokens, losses = log.points(what)
        dash = DASHES[i // len(CATEGORICAL) % len(DASHES)]
        figure.add_trace(
            go.Scatter(
                x=[count / 1e6 for count in tokens],
                y=losses,
                mode="lines+markers" if what == "eval_loss" else "lines",
                name=escaped(log.name),
                showlegend=True,
                line={"color": CATEGORICAL[i % len(CATEGORICAL)], "width": 2, "dash": dash},
                customdata=[escaped(log.name)] * len(tokens),
                hovertemplate="%{customdata}<br>%{x:.1f}M tokens: %{y:.3f}<extra></extra>",
            )
        )
    figure.update_xaxes(title={"text": "tokens read (millions)"})
    figure.update_yaxes(title={"text": f"{NAMES[what].lower()} (nats a token)"})
    said = " ".join(log.summary() for log in logs)
    return finish(figure, f"{NAMES[what]} during training", f"Lines of {NAMES[what]}. {said}")


def intervals_figure(
    rows: list[tuple[str, float, float, float]], title: str, axis: str, zero: float | None
) -> go.Figure:
    """Points with their 95% intervals, first on top.

    rows: what, value, low, high. zero: a line to read them against.
    """
    names = [escaped(name) for name, *_ in rows]
    values = [value for _, value, _, _ in rows]
    figure = go.Figure(
        go.Scatter(
            x=values,
            y=list(range(len(rows))),
            mode="markers",
            marker={"color": CATEGORICAL[0], "size": 9},
            error_x={
                "array": [high - value for _, value, _, high in rows],
                "arrayminus": [value - low for _, value, low, _ in rows],
                "color": CATEGORICAL[0],
            },
            customdata=[[n, low, high] for n, (_, _, low, high) in zip(names, rows, strict=True)],
            hovertemplate="%{customdata[0]}: %{x:.3f}<br>95% %{customdata[1]:.3f} to "
            "%{customdata[2]:.3f}<extra></extra>",
        )
    )
    if zero is not None:
        figure.add_vline(x=zero, line={"color": "#888888", "width": 1, "dash": "dot"})
    ticks = {"tickvals": list(range(len(rows))), "ticktext": names}
    figure.update_yaxes(**ticks, range=[len(rows) - 0.5, -0.5], automargin=True)
    figure.update_xaxes(title={"text": f"{axis}, 95% interval"})
    said = "; ".join(f"{name} {value:.3f}" for name, value, _, _ in rows[:6])
    height = min(900, 180 + ROW * len(rows))
    return finish(figure, escaped(title), f"Points with intervals of {title}: {said}.", height)
