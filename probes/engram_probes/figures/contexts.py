"""Figure of `RowContexts`."""

import numpy as np
import plotly.graph_objects as go

from engram_probes.contexts import RowContexts
from engram_probes.figures.style import CATEGORICAL, escaped, finish, float32, heatmap_height


def contexts_figure(result: RowContexts) -> go.Figure:
    """A line a row: its strongest reads, the mean of all, and that of random rows of its head."""
    figure, places = go.Figure(), np.arange(len(result.slots))
    row, rank = np.nonzero(result.document >= 0)
    labels = [
        f"{escaped(result.before[r][k])}<b>{escaped(result.token[r][k])}</b>"
        f"{escaped(result.after[r][k])}<br>document {result.document[r, k]}, position "
        f"{result.position[r, k]}"
        for r, k in zip(row, rank, strict=True)
    ]
    figure.add_scatter(
        x=float32(result.strength[row, rank]),
        y=row,
        mode="markers",
        marker={"color": CATEGORICAL[0], "symbol": "line-ns-open", "size": 11},
        customdata=labels,
        hovertemplate="%{customdata}<br>%{x:.3f}<extra></extra>",
        name="its strongest reads",
    )
    means = (
        ("mean of its reads", 1, -0.15, result.mean, result.mean_low, result.mean_high),
        ("mean of random rows of the head", 2, 0.15, result.control, result.control_low,
         result.control_high),
    )  # fmt: skip
    for name, colour, shift, mean, low, high in means:
        figure.add_scatter(
            x=float32(mean),
            y=places + shift,
            error_x={"array": float32(high - mean), "arrayminus": float32(mean - low)},
            mode="markers",
            marker={"color": CATEGORICAL[colour], "size": 9},
            name=name,
        )
    names = [
        f"L{result.layers[r]} {result.orders[r]}-gram h{result.heads[r]}, row {result.slots[r]} "
        f"({result.reads[r]:,} reads)"
        for r in places
    ]
    figure.update_yaxes(tickvals=places.tolist(), ticktext=names, autorange="reversed")
    said = "contribution / residual" if result.by == "contribution" else "mean gate of the streams"
    figure.update_xaxes(title={"text": said}, rangemode="tozero")
    title = "Where rows speak loudest"
    alt = (
        f"Points by row of the table, {len(places)} rows. {title}: {result.by} of each row's "
        "strongest reads, mean of all its reads and of random rows of its head, with 95% intervals."
    )
    figure = finish(figure, title, alt, heatmap_height(len(places)) + 60)
    legend = {"y": -0.18, "yanchor": "top", "x": 0, "xanchor": "left"}
    return figure.update_layout(legend=legend, margin={"l": 260, "b": 110})
