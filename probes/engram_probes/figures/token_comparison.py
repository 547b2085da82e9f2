"""Figures of `Predictions` and `TokenComparison`."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engram_probes.figures.style import CATEGORICAL, escaped, finish, float32, token_axis
from engram_probes.predictions import Predictions
from engram_probes.token_comparison import WHAT, TokenComparison


def predictions_figure(result: Predictions) -> go.Figure:
    """Bars of surprisal; special tokens are left out."""
    values = np.where(result.special, np.nan, result.surprisal)
    figure = go.Figure(_bars(values, result.tokens, CATEGORICAL[0], result.model))
    figure.update_xaxes(**token_axis(result.tokens))
    figure.update_yaxes(title={"text": "surprisal (nats)"})
    alt = f"Bars of surprisal at {len(result.tokens)} tokens. {result.summary()}"
    return finish(figure, f"Surprisal of each token, {escaped(result.model)}", alt)


def comparison_figure(result: TokenComparison, what: str) -> go.Figure:
    """Above the difference, A less B; below both sides."""
    unit, name = WHAT[what]
    values = np.where(result.special, np.nan, result.values(what))
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[0.5, 0.5], vertical_spacing=0.08
    )
    label = f"{result.names[0]} − {result.names[1]}"
    figure.add_trace(_bars(values[0] - values[1], result.tokens, CATEGORICAL[2], label), 1, 1)
    for side, symbol in enumerate(("circle", "diamond-open")):
        figure.add_trace(_marks(result, values, side, symbol), 2, 1)
    figure.add_hline(y=0, line={"color": "#888888", "width": 1}, row=1)
    figure.update_xaxes(**token_axis(result.tokens), row=2)
    figure.update_xaxes(range=[-0.5, len(result.tokens) - 0.5], row=1)
    figure.update_yaxes(title={"text": f"difference ({unit})"}, row=1)
    figure.update_yaxes(title={"text": unit}, row=2)
    alt = (
        f"Above, bars of the difference in {name.lower()} at {len(result.tokens)} tokens in "
        f"common; below, the values of both sides. {result.summary()}"
    )
    return finish(figure, f"{name}, {escaped(label)}", alt, 520)


def _bars(values: np.ndarray, tokens: tuple[str, ...], colour: str, name: str) -> go.Bar:
    return go.Bar(
        x=np.arange(len(values)),
        y=float32(values),
        name=escaped(name),
        marker={"color": colour},
        customdata=[escaped(token) for token in tokens],
        hovertemplate="%{customdata}<br>%{y:.3f}<extra></extra>",
        showlegend=True,
    )


def _marks(result: TokenComparison, values: np.ndarray, side: int, symbol: str) -> go.Scatter:
    return go.Scatter(
        x=np.arange(values.shape[1]),
        y=float32(values[side]),
        mode="lines+markers",
        name=escaped(result.names[side]),
        line={"color": CATEGORICAL[side], "width": 1},
        marker={"symbol": symbol, "size": 8},
        customdata=[escaped(token) for token in result.tokens],
        hovertemplate="%{customdata}<br>%{y:.3f}<extra></extra>",
    )
