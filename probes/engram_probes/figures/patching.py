"""Figures of an `AttributionPatching`: nodes by places, strongest cells, estimate against exact."""

import numpy as np
import plotly.graph_objects as go

from engram_probes.figures.style import (
    CATEGORICAL,
    DIVERGING,
    escaped,
    finish,
    float32,
    heatmap_height,
)
from engram_probes.patching import AttributionPatching

COLOURS = {
    "embed": "#999999",
    "attention": CATEGORICAL[0],
    "head": CATEGORICAL[5],
    "mlp": CATEGORICAL[2],
    "memory": CATEGORICAL[1],
    "rows": CATEGORICAL[4],
    "row": CATEGORICAL[4],
    "gate": CATEGORICAL[3],
}
NAMES = {
    "embed": "embedding",
    "mlp": "MLPs",
    "head": "heads",
    "rows": "a memory's rows",
    "row": "a row",
}
MOST_BARS = 20
BAR = 24  # pixels
TOLD = {"exact": "measured", "estimate": "estimated"}


def patching_figure(result: AttributionPatching, view: str, what: str, rows: bool) -> go.Figure:
    if view == "check":
        return _check(result)
    return _bars(result, what) if view == "bars" else _heatmap(result, what, rows)


def _heatmap(result: AttributionPatching, what: str, rows: bool) -> go.Figure:
    """Nodes, oldest at the bottom, by places; the mean effect over pairs."""
    shown = [i for i, kind in enumerate(result.kinds) if rows or kind != "row"]
    values, places = result.mean(what)[shown], len(result.places)
    largest = float(np.nanmax(np.abs(values)))
    figure = go.Figure(
        go.Heatmap(
            z=float32(values),
            colorscale=DIVERGING,
            zmid=0,
            zmin=-largest,
            zmax=largest,
            customdata=np.array([[result.nodes[i]] * places for i in shown]),
            colorbar={"title": {"text": "logits"}},
            hovertemplate="%{customdata}, place %{x}<br>%{z:.3f} logits<extra></extra>",
        )
    )
    figure.update_xaxes(
        title={"text": "position (token, clean/corrupted)" if result.clean else "place"},
        tickvals=list(range(places)),
        ticktext=[escaped(place) for place in result.places],
        tickangle=-60 if result.clean else 0,
    )
    figure.update_yaxes(
        title={"text": "node"},
        tickvals=list(range(len(shown))),
        ticktext=[result.nodes[i] for i in shown],
        automargin=True,
    )
    height = max(heatmap_height(0), min(170 + 20 * len(shown), 1200))
    return finish(figure, _title(result, what), _alt(result, what, "Heatmap"), height)


def _bars(result: AttributionPatching, what: str) -> go.Figure:
    """The strongest cells of nodes that do not nest, the strongest on top, with intervals."""
    cells = result.strongest(MOST_BARS, what)
    node, place = np.array(cells).T
    mean, (low, high) = result.mean(what), result.interval(what)
    null, null_low, null_high = result.null(what)
    figure = go.Figure()
    for kind in dict.fromkeys(result.kinds[i] for i in node):
        at = np.flatnonzero([result.kinds[i] == kind for i in node])
        cell = node[at], place[at]
        figure.add_trace(
            go.Bar(
                x=float32(mean[cell]),
                y=at,
                orientation="h",
                width=0.8,
                name=NAMES.get(kind, kind),
                marker={"color": COLOURS[kind]},
                error_x=_error(mean[cell], low[cell], high[cell]),
                hovertemplate="%{x:.3f} logits<extra></extra>",
            )
        )
    cell = node, place
    figure.add_trace(
        go.Scatter(
            x=float32(null[cell]),
            y=np.arange(len(cells)) + 0.28,  # below the bar's own interval
            mode="markers",
            name="patched from a text about neither, 95%",
            marker={
                "symbol": "diamond",
                "color": "white",
                "line": {"color": "#222222", "width": 2},
            },
            error_x=_error(null[cell], null_low[cell], null_high[cell]),
            hovertemplate="null: %{x:.3f} logits<extra></extra>",
        )
    )
    names = [f"{result.nodes[n]} at {escaped(result.places[p])}" for n, p in cells]
    figure.update_xaxes(title={"text": "effect (logits)"}, zerolinecolor="#555555")
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=names,
        range=[len(names) - 0.5, -0.5],
        automargin=True,
    )
    figure.update_layout(barmode="overlay")
    height = 190 + BAR * len(names)
    finish(figure, _title(result, what), _alt(result, what, "Bar chart"), height)
    # Below the axis: five names are too many for the line of the title.
    figure.update_layout(
        legend={"y": -70 / (height - 150), "yanchor": "top", "x": 0, "xanchor": "left"},
        margin={"b": 110},
    )
    return figure


def _error(mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict:
    return {
        "type": "data",
        "symmetric": False,
        "array": float32(np.nan_to_num(high - mean)),
        "arrayminus": float32(np.nan_to_num(mean - low)),
        "color": "#222222",
        "thickness": 1.5,
    }


def _check(result: AttributionPatching) -> go.Figure:
    """Every measured cell of every pair: its estimate and what patching it did."""
    known = np.isfinite(result.exact)
    ends = [float(f(result.exact[known].min(), result.exact[known].max())) for f in (min, max)]
    figure = go.Figure()
    for kind in dict.fromkeys(result.kinds):
        at = known & (np.array(result.kinds) == kind)[:, None]
        figure.add_trace(
            go.Scatter(
                x=float32(result.estimate[at]),
                y=float32(result.exact[at]),
                mode="markers",
                name=NAMES.get(kind, kind),
                marker={
                    "color": COLOURS[kind],
                    "symbol": "x-thin-open" if kind == "row" else "circle",  # `rows` in its colour
                    "size": 5,
                    "opacity": 0.7,
                },
                hovertemplate="estimate %{x:.2f}, exact %{y:.2f}<extra></extra>",
            )
        )
    line = {"color": "#222222", "dash": "dot"}
    figure.add_trace(go.Scatter(x=ends, y=ends, mode="lines", name="equal", line=line))
    figure.update_xaxes(title={"text": "estimate from gradients (logits)"})
    figure.update_yaxes(title={"text": "exact effect of patching (logits)"})
    agreement = result.agreement()
    title = (
        f"Estimates and exact effects: correlation {agreement['correlation']:.2f}, "
        f"largest error {agreement['largest_error']:.1f} logits"
    )
    alt = (
        f"Scatter plot of {int(known.sum()):,} measured effects by their estimates, in colours of "
        f"kinds of nodes, with the line where both are equal: the correlation is "
        f"{agreement['correlation']:.2f}, the slope {agreement['slope']:.2f}."
    )
    finish(figure, title, alt, 520)
    figure.update_layout(legend={"y": -0.18, "yanchor": "top", "x": 0, "xanchor": "left"})
    return figure


def _title(result: AttributionPatching, what: str) -> str:
    of = "one pair" if result.pairs == 1 else f"mean of {result.pairs} pairs"
    if result.clean:
        of = f"“{escaped(result.target)}” less “{escaped(result.against)}”"
    gap = f"{result.gap:+.1f} logits in all"
    return f"Effect of patching a node ({TOLD[what]}, {result.direction}): {of}, {gap}"


def _alt(result: AttributionPatching, what: str, kind: str) -> str:
    rows, places = len(result.nodes), len(result.places)
    values, [(node, place)] = result.mean(what), result.strongest(1, what)
    return (
        f"{kind} of effects ({TOLD[what]}) of {rows} nodes at {places} places, logits; largest "
        f"{values[node, place]:+.2f}, of {result.nodes[node]} at {result.places[place]}."
    )
