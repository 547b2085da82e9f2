"""Figure of a `GateMap`."""

import numpy as np
import plotly.graph_objects as go

from engram_probes.figures.style import (
    DIVERGING,
    SEQUENTIAL,
    escaped,
    finish,
    float32,
    heatmap_height,
    layer_axis,
    peak,
    token_axis,
)
from engram_probes.gates import NEUTRAL_GATE, GateMap, What

NAMES = {
    "gate": "Gate (0 to 1, 0.5 is neutral)",
    "score": "Score before root and sigmoid",
    "added": "Size of what was added / residual it enters",
}
BARS = {"gate": "gate", "score": "score", "added": "added /<br>residual"}


def gate_figure(
    result: GateMap, what: What, layer: int | None = None, stream: int | None = None
) -> go.Figure:
    """Layers, or the streams of one layer, by position; colour: gate, score or size."""
    values, rows, axis_title = _rows(result, what, layer, stream)
    labels = np.array(
        [[f"{escaped(token)}<br>{axis_title} {row}" for token in result.tokens] for row in rows],
        dtype=object,
    )
    figure = go.Figure(
        go.Heatmap(
            z=float32(values),
            x=np.arange(len(result.tokens)),
            y=np.arange(len(rows)),
            customdata=labels,
            hovertemplate=f"%{{customdata}}, position %{{x}}<br>{what} %{{z:.3f}}<extra></extra>",
            colorbar={"title": {"text": BARS[what]}},
            **_colours(what, values[:, ~result.special]),
        )
    )
    figure.update_xaxes(**token_axis(result.tokens))
    figure.update_yaxes(**layer_axis(rows, axis_title))
    title = f"{NAMES[what]}, {_where(layer, stream)}"
    alt = _alt(result, title, values, rows, axis_title)
    return finish(figure, title, alt, heatmap_height(len(rows)))


def _rows(
    result: GateMap, what: What, layer: int | None, stream: int | None
) -> tuple[np.ndarray, tuple[int, ...], str]:
    """Values [rows, p], labels of the rows, and what they are."""
    if layer is None:
        return result.values(what, None, stream), result.layers, "layer"
    streams = tuple(range(result.streams)) if stream is None else (stream,)
    values = np.stack([result.values(what, layer, index) for index in streams])
    return values, streams, "stream"


def _colours(what: What, values: np.ndarray) -> dict:
    """The scale is set by ordinary tokens: <bos> may be far off."""
    finite = values[np.isfinite(values)]
    if what == "gate":
        return {"colorscale": DIVERGING, "zmin": 0, "zmid": NEUTRAL_GATE, "zmax": 1}
    largest = float(np.abs(finite).max(initial=0)) or 1.0
    if what == "score":
        return {"colorscale": DIVERGING, "zmin": -largest, "zmid": 0, "zmax": largest}
    return {"colorscale": SEQUENTIAL, "zmin": 0, "zmax": largest}


def _where(layer: int | None, stream: int | None) -> str:
    streams = "all streams" if stream is None else f"stream {stream}"
    return streams if layer is None else f"layer {layer}, {streams}"


def _alt(
    result: GateMap, title: str, values: np.ndarray, rows: tuple[int, ...], axis_title: str
) -> str:
    row, position = peak(values, result.special)
    return (
        f"Heatmap of {len(rows)} {axis_title}s by {len(result.tokens)} tokens. {title}. Highest at "
        f"token {result.tokens[position]} (position {position}), {axis_title} {rows[row]}: "
        f"{values[row, position]:.2f}."
    )
