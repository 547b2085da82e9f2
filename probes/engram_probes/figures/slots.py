"""Figures of a `SlotTrace` and of a `RowLoad`."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engram_probes.figures.style import (
    CATEGORICAL,
    SEQUENTIAL,
    escaped,
    finish,
    float32,
    heatmap_height,
    layer_axis,
    peak,
    token_axis,
)
from engram_probes.row_use import RowLoad
from engram_probes.slots import SlotTrace, What

NAMES = {
    "tenants": "Other n-grams of the corpus in the row",
    "own_share": "Share of the row's reads that are this n-gram's",
    "row_norm": "Norm of the row",
    "value_norm": "Norm of the row's share of the value",
}
BARS = {
    "tenants": "other<br>n-grams",
    "own_share": "own<br>share",
    "row_norm": "norm",
    "value_norm": "norm",
}


def trace_figure(result: SlotTrace, what: What, layer: int | None) -> go.Figure:
    """Orders and heads by position; colour: load, share or norm."""
    shown = range(len(result.layers)) if layer is None else [result.layers.index(layer)]
    values = np.concatenate([result.values(what)[index].T for index in shown])
    names = [_column(result, index, c) for index in shown for c in range(result.slots.shape[2])]
    labels = np.concatenate([_labels(result, index) for index in shown])
    ordinary = values[:, ~result.special]
    largest = float(ordinary[np.isfinite(ordinary)].max(initial=0)) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=float32(values),
            x=np.arange(len(result.tokens)),
            y=np.arange(len(names)),
            customdata=labels,
            hovertemplate=f"%{{customdata}}<br>{what} %{{z:.3f}}<extra></extra>",
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1 if what == "own_share" else largest,
            colorbar={"title": {"text": BARS[what]}},
        )
    )
    figure.update_xaxes(**token_axis(result.tokens))
    axis = layer_axis(range(len(names)), "order, head")
    figure.update_yaxes(**{**axis, "ticktext": names})
    title = f"{NAMES[what]}, layer {', '.join(str(result.layers[index]) for index in shown)}"
    return finish(figure, title, _alt(result, title, values, names), heatmap_height(len(names)))


def _column(result: SlotTrace, layer: int, column: int) -> str:
    order, head = divmod(column, result.n_heads)
    name = f"{order + 2}-gram h{head}"
    return name if len(result.layers) == 1 else f"L{result.layers[layer]} {name}"


def _labels(result: SlotTrace, layer: int) -> np.ndarray:
    """What is said of each cell, [C, p]: n-gram, row, most frequent tenants, what the row says."""
    positions, columns = result.slots.shape[1:]
    labels = np.empty((columns, positions), dtype=object)
    for column, position in np.ndindex(labels.shape):
        order, head = divmod(column, result.n_heads)
        lines = [
            f"{result.ngram_texts[order][position]} (position {position})",
            f"head {head}, row {result.slots[layer, position, column]}",
        ]
        if result.ngram_counts is not None:
            lines[0] += f", {result.ngram_counts[order, position]:,} in the corpus"
            named = filter(None, result.tenant_texts[layer][position][column])
            lines.append("also read by: " + " | ".join(named))
        if result.says_ids is not None:
            lines.append("says: " + " | ".join(result.says_texts[layer][position][column]))
        labels[column, position] = "<br>".join(escaped(line) for line in lines)
    return labels


def _alt(result: SlotTrace, title: str, values: np.ndarray, names: list[str]) -> str:
    row, position = peak(values, result.special)
    return (
        f"Heatmap of {len(names)} orders and heads by {len(result.tokens)} tokens. {title}. Highest"
        f" at token {result.tokens[position]} (position {position}), {names[row]}: "
        f"{values[row, position]:.2f}."
    )


def load_figure(result: RowLoad, layer: int) -> go.Figure:
    """One panel an order: bars are rows by load, heads together; the line is the Poisson law."""
    index = result.layers.index(layer)
    orders, heads = len(result.distinct), result.n_heads
    titles = [f"{order + 2}-grams" for order in range(orders)]
    figure = make_subplots(rows=1, cols=orders, subplot_titles=titles)
    centres = (result.edges[:-1] + result.edges[1:] - 1) / 2
    rows, expected = result.rows_by_load[index], result.rows_expected()[index]
    for order in range(orders):
        columns = slice(order * heads, (order + 1) * heads)
        found, poisson = rows[columns].sum(0), expected[columns].sum(0)
        place = {"row": 1, "col": order + 1}
        shown = {"showlegend": order == 0}
        bars = go.Bar(x=centres, y=found, name="rows", marker_color=CATEGORICAL[0], **shown)
        line = go.Scatter(x=centres, y=float32(poisson), name="Poisson", mode="lines",
                          line={"color": CATEGORICAL[1], "width": 2}, **shown)  # fmt: skip
        figure.add_traces([bars, line], rows=[1, 1], cols=[order + 1] * 2)
        end = np.flatnonzero((found > 0) | (poisson >= 0.5)).max() + 1
        figure.update_xaxes(
            title={"text": "distinct n-grams in the row"}, range=[-0.5, result.edges[end]], **place
        )
    figure.update_yaxes(title={"text": "rows"}, row=1, col=1)
    figure.update_layout(bargap=0)
    title = f"Load of the rows of layer {layer}, its {heads} heads together"
    finish(figure, title, _load_alt(result, index, title))
    below = {"y": -0.25, "yanchor": "top", "x": 0, "xanchor": "left"}  # above are panels' titles
    return figure.update_layout(legend=below, margin_b=90)


def _load_alt(result: RowLoad, index: int, title: str) -> str:
    parts = []
    for order in range(len(result.distinct)):
        columns = slice(order * result.n_heads, (order + 1) * result.n_heads)
        parts.append(
            f"{order + 2}-grams: mean {result.load[index, columns].mean():.2f} a row, variance "
            f"{result.dispersion[index, columns].mean():.2f} times the mean, "
            f"{result.unused[index, columns].sum():,} rows unused where "
            f"{result.unused_expected[index, columns].sum():,.0f} are expected"
        )
    return (
        f"Histograms of rows by load with the Poisson law as a line. {title}. {'; '.join(parts)}."
    )
