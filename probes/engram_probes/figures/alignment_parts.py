"""An `Alignment` in parts: the soft alignment by each measure, and one pair with its neighbours."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engram_probes.alignment import SECOND, Alignment
from engram_probes.figures.alignment import NAMES
from engram_probes.figures.curves import add_curve
from engram_probes.figures.style import CATEGORICAL, escaped, finish, float32


def soft_figure(result: Alignment) -> go.Figure:
    """Which layer of the baseline each layer is most like, a line with its band a measure."""
    figure = go.Figure()
    measures = ["cka", *(SECOND if result.second_soft is not None else ())]
    for what, colour in zip(measures, CATEGORICAL, strict=False):
        add_curve(figure, *result.soft(what), NAMES[what], colour)
    figure.update_traces(
        hovertemplate=f"layer %{{x}} of {escaped(result.model_a)} is most like layer "
        f"%{{y:.2f}} of {escaped(result.model_b)}<extra></extra>",
        selector={"mode": "lines+markers"},
    )
    layers = np.arange(len(result.soft_index))
    figure.add_trace(
        go.Scatter(x=layers, y=layers, mode="lines", name="same layer", hoverinfo="skip",
                   line={"color": "#777777", "width": 1.5, "dash": "dash"})
    )  # fmt: skip
    for layer in result.memory_layers:
        figure.add_vrect(x0=layer - 0.4, x1=layer + 0.4, fillcolor="#999999", opacity=0.18,
                         line_width=0, layer="below")  # fmt: skip
    figure.update_xaxes(title={"text": f"layer of {escaped(result.model_a)}"}, dtick=1)
    figure.update_yaxes(title={"text": f"layer of {escaped(result.model_b)}"})
    memory = "; shaded: layers with a memory" if result.memory_layers else ""
    title = f"Soft alignment with 95% intervals{memory}"
    said = "; ".join(
        f"{NAMES[what]}: " + ", ".join(f"{index:.1f}" for index in result.soft(what)[0])
        for what in measures
    )
    alt = f"Lines of the layer of {result.model_b} that each layer of {result.model_a} is most like"
    return finish(figure, title, f"{alt}. {said}. {result.summary()}", 460)


def pair_figure(result: Alignment, what: str, row: int, column: int) -> go.Figure:
    """Left: a layer of `model_a` with each of `model_b`; right: the other way. Ringed: the pair."""
    values, null = result.shown(what)
    names = escaped(result.model_a), escaped(result.model_b)
    titles = (f"layer {column} of {names[0]}", f"layer {row} of {names[1]}")
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.06)
    sides: tuple[tuple[tuple, int, str], ...] = (
        (np.s_[:, column], row, f"layer of {names[1]}"),
        (np.s_[row, :], column, f"layer of {names[0]}"),
    )
    for col, (cells, here, title) in enumerate(sides, 1):
        for trace in _side(result, what, values[cells], null[cells], cells, here, col == 1):
            figure.add_trace(trace, row=1, col=col)
        figure.update_xaxes(title={"text": title}, dtick=1, row=1, col=col)
    figure.update_yaxes(title={"text": NAMES[what]}, col=1)
    title = f"{NAMES[what]} of layer {column} of {names[0]} and layer {row} of {names[1]}"
    alt = (
        f"Two line charts of {NAMES[what]}: layer {column} of {result.model_a} with each layer of "
        f"{result.model_b}, and layer {row} of {result.model_b} with each layer of "
        f"{result.model_a}; the pair has {values[row, column]:.2f}. "
        f"{result.pair_summary(row, column)}"
    )
    figure = finish(figure, title, alt, 400)
    return figure.update_layout(legend={"y": -0.25, "yanchor": "top", "x": 0, "xanchor": "left"})


def _side(
    result: Alignment,
    what: str,
    values: np.ndarray,
    null: np.ndarray,
    cells: tuple,
    here: int,
    legend: bool,
) -> list[go.Scatter]:
    """Values with bars, what chance gives, and a ring around the pair."""
    bars = None
    if what == "cka" and np.isfinite(result.low[cells]).all():
        bars = {
            "type": "data",
            "symmetric": False,
            "array": float32(result.high[cells] - values),
            "arrayminus": float32(values - result.low[cells]),
        }
    layers = np.arange(len(values))
    chance = "without special tokens" if what == "sinks" else "by chance"
    line = {"color": CATEGORICAL[0], "width": 2}
    ring = {"symbol": "circle-open", "size": 18, "color": CATEGORICAL[1], "line": {"width": 3}}
    return [
        go.Scatter(x=layers, y=float32(null), mode="lines", name=chance, showlegend=legend,
                   line={"color": "#777777", "dash": "dash"}),
        go.Scatter(x=layers, y=float32(values), mode="lines+markers", name=NAMES[what],
                   showlegend=legend, line=line, error_y=bars,
                   hovertemplate="layer %{x}: %{y:.3f}<extra></extra>"),
        go.Scatter(x=[here], y=float32(values[here : here + 1]), mode="markers", name="this pair",
                   showlegend=legend, marker=ring, hoverinfo="skip"),
    ]  # fmt: skip
