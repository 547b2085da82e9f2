"""Figures of the paper, drawn anew from the numbers read off them."""

import numpy as np
import plotly.graph_objects as go

from engram_probes.figures.alignment import ZMAX, ZMIN
from engram_probes.figures.style import CATEGORICAL, SEQUENTIAL, escaped, finish, float32
from engram_probes.paper import PaperFigure

SYMBOLS = ("circle", "diamond", "square")


def paper_figure(paper: PaperFigure) -> go.Figure:
    """Lines, bars, or a matrix."""
    if paper.matrix is not None:
        figure = _matrix(paper)
    elif paper.bars:
        figure = _bars(paper)
    else:
        figure = _lines(paper)
    figure.update_yaxes(title={"text": paper.y})
    title = f"The paper's figure {paper.number}: {paper.title}"
    return finish(figure, title, f"{title}. {paper.says}", 520 if paper.matrix is not None else 420)


def _lines(paper: PaperFigure) -> go.Figure:
    figure = go.Figure()
    for i, line in enumerate(paper.lines):
        figure.add_trace(
            go.Scatter(
                x=line["x"],
                y=line["y"],
                mode="lines+markers",
                name=escaped(line["name"]),
                line={"color": CATEGORICAL[i], "width": 2},
                marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8},
                hovertemplate=f"{escaped(line['name'])}<br>%{{x}}: %{{y}}<extra></extra>",
            )
        )
    figure.update_xaxes(title={"text": paper.x}, type="log" if paper.log_x else "linear")
    return figure


def _bars(paper: PaperFigure) -> go.Figure:
    """A colour a group. What lies close together is not drawn from zero: there, points."""
    figure = go.Figure()
    values = [bar["value"] for bar in paper.bars]
    close = min(values) > 0.9 * max(values)
    groups = list(dict.fromkeys(bar.get("group", "") for bar in paper.bars))
    for i, group in enumerate(groups):
        bars = [bar for bar in paper.bars if bar.get("group", "") == group]
        places = {"x": [bar["name"] for bar in bars], "y": [bar["value"] for bar in bars]}
        named = {
            "name": group,
            "showlegend": bool(group),
            "hovertemplate": "%{x}: %{y}<extra></extra>",
        }
        marker = {"color": CATEGORICAL[i], "size": 12} if close else {"color": CATEGORICAL[i]}
        kind = go.Scatter(mode="markers", **places, **named, marker=marker) if close else None
        figure.add_trace(kind or go.Bar(**places, **named, marker=marker))
    return figure


def _matrix(paper: PaperFigure) -> go.Figure:
    assert paper.matrix is not None and paper.soft is not None
    rows, columns = paper.matrix.shape
    figure = go.Figure(
        go.Heatmap(
            z=float32(paper.matrix),
            x=np.arange(columns),
            y=np.arange(rows),
            colorscale=SEQUENTIAL,
            zmin=ZMIN,
            zmax=ZMAX,
            colorbar={"title": {"text": "CKA"}},
            hovertemplate=f"{paper.y} %{{y}}, {paper.x} %{{x}}: %{{z:.3f}}<extra></extra>",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=np.arange(columns),
            y=float32(paper.soft),
            mode="lines+markers",
            name="soft alignment",
            line={"color": "white", "width": 3},
            marker={"color": "white", "size": 6, "line": {"color": "#222222", "width": 1.5}},
            hovertemplate="%{x} is most like %{y:.1f}<extra></extra>",
        )
    )
    ends = np.array([0, min(rows, columns) - 1])
    line = {"color": "#D55E00", "width": 1.5, "dash": "dash"}
    figure.add_trace(go.Scatter(x=ends, y=ends, mode="lines", name="same layer", line=line))
    figure.update_xaxes(title={"text": paper.x}, range=[-0.5, columns - 0.5])
    return figure.update_yaxes(range=[-0.5, rows - 0.5])
