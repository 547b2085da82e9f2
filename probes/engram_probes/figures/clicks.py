"""Clicks on a heatmap's cells, which Streamlit's selections do not report.

Invisible markers over the cells are selected instead, and tell by hovering what the cells told.
"""

import re
from typing import Any

import numpy as np
import plotly.graph_objects as go

MOST_CELLS = 20_000


def clickable(figure: go.Figure) -> int | None:
    """Cover heatmaps with markers: the first, and if they are few those of its shape, whose cells
    are the same.

    Returns:
        Number of their columns; None: too many cells.
    """
    heatmaps = [trace for trace in figure.data if trace.type == "heatmap"]
    rows, columns = np.shape(heatmaps[0].z)
    alike = [trace for trace in heatmaps if np.shape(trace.z) == (rows, columns)]
    if rows * columns > MOST_CELLS:
        return None
    for heatmap in alike if rows * columns * len(alike) <= MOST_CELLS else alike[:1]:
        _cover(figure, heatmap)
    figure.update_layout(hoverdistance=-1, clickmode="event+select", dragmode="pan")
    return columns


def _cover(figure: go.Figure, heatmap: go.Heatmap) -> None:
    z = np.asarray(heatmap.z, dtype=float)
    rows, columns = z.shape
    x = np.arange(columns) if heatmap.x is None else np.asarray(heatmap.x)
    y = np.arange(rows) if heatmap.y is None else np.asarray(heatmap.y)
    own = None if heatmap.customdata is None else np.asarray(heatmap.customdata, dtype=object)
    text = None if heatmap.text is None else np.asarray(heatmap.text, dtype=object).ravel()
    unseen = {"marker": {"opacity": 0}}
    figure.add_trace(
        go.Scatter(
            x=np.tile(x, rows),
            y=np.repeat(y, columns),
            mode="markers",
            marker={"opacity": 0, "size": 6},
            selected=unseen,
            unselected=unseen,
            showlegend=False,
            customdata=_customdata(z, own),
            hovertext=text,
            hovertemplate=_template(heatmap.hovertemplate or "", own),
            xaxis=heatmap.xaxis,
            yaxis=heatmap.yaxis,
        )
    )
    heatmap.hoverinfo, heatmap.hovertemplate = "skip", None
    half = 0.5
    for axis, places in ((_axis(figure, "x", heatmap), x), (_axis(figure, "y", heatmap), y)):
        if axis.range is None and axis.autorange != "reversed":
            axis.range = [float(places[0]) - half, float(places[-1]) + half]


def _axis(figure: go.Figure, letter: str, heatmap: Any) -> Any:
    name = getattr(heatmap, f"{letter}axis") or letter
    return figure.layout[f"{letter}axis{name[1:]}"]


def _customdata(z: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    """Value of each cell first, then what the cell carried, [cells, 1 + k]."""
    cells = z.reshape(-1, 1).astype(object)
    if own is None:
        return cells
    return np.concatenate([cells, own.reshape(len(cells), -1)], axis=1)


def _template(template: str, own: np.ndarray | None) -> str:
    """The heatmap's hover text, said of `_customdata`."""
    if own is not None and own.ndim == 2:
        template = template.replace("%{customdata}", "%{customdata[1]}")
    elif own is not None:
        template = re.sub(
            r"%\{customdata\[(\d+)\]", lambda m: f"%{{customdata[{int(m[1]) + 1}]", template
        )
    return template.replace("%{z", "%{customdata[0]").replace("%{text}", "%{hovertext}")
