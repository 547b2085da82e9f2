"""Figure of a `TrainingAlignment`."""

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from engram_probes.alignment_training import TrainingAlignment
from engram_probes.figures.style import SEQUENTIAL, escaped, finish, float32

AXES = {"soft": "layer of {} it is most like", "final": "debiased CKA with its last state"}


def training_figure(result: TrainingAlignment, what: str) -> go.Figure:
    """One line a layer, with 95% bars, over tokens trained on (logarithmic)."""
    value, low, high = {
        "soft": (result.soft_index, result.soft_low, result.soft_high),
        "final": (result.final, result.final_low, result.final_high),
    }[what]
    layers = value.shape[1]
    # Dark to bright is early to late; the brightest end would be hard to see on white.
    colours = sample_colorscale(SEQUENTIAL, list(np.linspace(0, 0.85, layers)))
    figure = go.Figure(
        [
            _line(result, layer, value[:, layer], low[:, layer], high[:, layer], colour)
            for layer, colour in enumerate(colours)
        ]
    )
    if what == "soft" and result.null_index is not None:
        figure.add_trace(_null(result, colours))
    figure.update_xaxes(
        title={"text": "tokens trained on"},
        type="log",
        tickvals=result.tokens,
        ticktext=[f"{tokens / 1e6:,.3g}M" for tokens in result.tokens],
    )
    figure.update_yaxes(title={"text": AXES[what].format(escaped(result.model_b))})
    title = escaped(result.model) + (
        f" over training, against {escaped(result.model_b)}"
        if what == "soft"
        else " over training, against itself at the end"
    )
    return finish(
        figure, title, f"{_alt(result, what, value)} {result.summary()}", 520
    ).update_layout(
        legend={"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"}
    )


def _line(
    result: TrainingAlignment,
    layer: int,
    value: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    colour: str,
) -> go.Scatter:
    memory = " (memory)" if layer in result.memory_layers else ""
    return go.Scatter(
        # Beside each other: bars of layers that are alike would cover one another.
        x=result.tokens * (1 + 0.02 * layer),
        y=float32(value),
        mode="lines+markers",
        name=f"layer {layer}{memory}",
        line={"color": colour, "width": 3 if memory else 2},
        marker={"symbol": layer, "size": 8},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": float32(high - value),
            "arrayminus": float32(value - low),
            "thickness": 1,
        },
        customdata=result.tokens,
        hovertemplate=f"layer {layer}, %{{customdata:,}} tokens: %{{y:.2f}}<extra></extra>",
    )


def _null(result: TrainingAlignment, colours: list[str]) -> go.Scatter:
    """Another training of the baseline, at the right end, in the layers' colours."""
    assert result.null_index is not None
    same = len(result.null_index) == len(colours)
    return go.Scatter(
        x=np.full(len(result.null_index), float(result.tokens[-1]) * 1.4),
        y=float32(result.null_index),
        mode="markers",
        name=f"{escaped(str(result.null_model))}<br>(another seed)",
        marker={"symbol": "line-ew-open", "size": 14, "color": colours if same else "#666666"},
        hovertemplate="another seed: %{y:.2f}<extra></extra>",
    )


def _alt(result: TrainingAlignment, what: str, value: np.ndarray) -> str:
    layers = value.shape[1]
    about = "the layer it is most like" if what == "soft" else "CKA with its own last state"
    first, last = (", ".join(f"{number:.2f}" for number in value[place]) for place in (0, -1))
    return (
        f"Lines of {layers} layers of {result.model} over tokens trained on, each {about}: "
        f"{first} at {result.tokens[0]:,} tokens and {last} at {result.tokens[-1]:,}."
    )
