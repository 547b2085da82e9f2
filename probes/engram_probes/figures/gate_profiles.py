"""Figures of `GateProfile`."""

import re

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engram_probes.figures.style import CATEGORICAL, finish, float32, heatmap_height
from engram_probes.gate_profiles import CHANCE, WHAT, GateProfile

SAID = {"gate": "gate", "added": "size of what is added / residual it enters"}
TITLES = {
    "count": "{}-gram: times seen",
    "own share": "its share of reads",
    "tenants": "other n-grams, fifths",
    "reads": "others' reads, fifths",
}
SHORT = re.compile(r".*(seen|own share|fifth) | of \d+$")  # of a group's name, but for its band
BELOW = {"y": -0.14, "yanchor": "top", "x": 0, "xanchor": "left"}
AGAINST = {"matched": "matched tokens", "inside": "inside the same spans"}


def auc_figure(result: GateProfile, measure: str) -> go.Figure:
    """A point with its interval for each layer and stream; a colour for each label and control."""
    index = result.measures.index(measure)
    places = [
        (layer, stream) for layer in range(len(result.layers)) for stream in range(result.streams)
    ]
    names = [f"{result.layers[layer]}.{stream}" for layer, stream in places]
    figure, said = go.Figure(), []
    pairs = [(k, c) for k in range(len(result.labels)) for c in range(len(result.controls))]
    for number, (label, control) in enumerate(pairs):
        at = (label, control, index)
        values, low, high = (array[at].ravel() for array in (result.auc, result.low, result.high))
        if np.isnan(values).all():
            continue
        name = f"end of a {WHAT[result.labels[label]]}, against {AGAINST[result.controls[control]]}"
        said.append(f"{name}: {np.nanmin(values):.2f} to {np.nanmax(values):.2f}")
        figure.add_scatter(
            x=np.arange(len(places)) + 0.12 * (number - 1.5),
            y=float32(values),
            error_y={"array": float32(high - values), "arrayminus": float32(values - low)},
            mode="markers",
            marker={"color": CATEGORICAL[number], "size": 9},
            name=name,
        )
    figure.add_hline(y=CHANCE, line={"dash": "dot", "color": "#888"})
    figure.update_xaxes(
        title={"text": "layer.stream"}, tickvals=list(range(len(places))), ticktext=names
    )
    figure.update_yaxes(title={"text": "AUC (0.5 is chance)"})
    title = f"Does the {SAID[measure]} tell where a pattern ends?"
    alt = f"Points with 95% intervals of the AUC by layer and stream. {'; '.join(said)}."
    figure = finish(figure, title, alt, 480)
    legend = {"y": -0.18, "yanchor": "top", "x": 0, "xanchor": "left"}  # above, it hides the title
    return figure.update_layout(legend=legend, margin={"b": 130})


def groups_figure(result: GateProfile, measure: str) -> go.Figure:
    """Mean of each group of tokens by their text, a point a layer and stream."""
    index = result.measures.index(measure)
    shown = [g for g, kind in enumerate(result.group_kinds) if "-gram " not in kind]
    kept = [g for g in shown if result.group_tokens[g].any()]
    names = [f"{result.groups[g]} ({result.group_tokens[g].max():,})" for g in kept]
    figure = go.Figure()
    for layer, number in enumerate(result.layers):
        for stream in range(result.streams):
            at = (kept, index, layer, stream)
            mean, low, high = (
                array[at] for array in (result.group_mean, result.group_low, result.group_high)
            )
            figure.add_scatter(
                x=float32(mean),
                y=np.arange(len(kept)),
                error_x={"array": float32(high - mean), "arrayminus": float32(mean - low)},
                mode="markers",
                marker={
                    "color": CATEGORICAL[stream % len(CATEGORICAL)],
                    "symbol": layer,
                    "size": 9,
                },
                name=f"layer {number}, stream {stream}",
            )
    figure.update_yaxes(tickvals=list(range(len(kept))), ticktext=names, autorange="reversed")
    figure.update_xaxes(title={"text": SAID[measure]})
    means = result.group_mean[kept, index].mean((-1, -2))
    highest = kept[int(np.nanargmax(means))]
    alt = (
        f"Mean {SAID[measure]} of groups of tokens by layer and stream; highest over all of them "
        f"for {result.groups[highest]} ({np.nanmax(means):.2f})."
    )
    figure = finish(
        figure, f"Mean {SAID[measure]} by kind of token", alt, heatmap_height(len(kept))
    )
    return figure.update_layout(margin={"l": 260})


def frequency_figure(result: GateProfile, measure: str) -> go.Figure:
    """Means by bands of the n-grams: a row of panels an order, a panel for count, share, loads."""
    index = result.measures.index(measure)
    kinds = [kind for kind in dict.fromkeys(result.group_kinds) if "-gram " in kind]
    columns = len(kinds) // len(result.orders)
    figure = make_subplots(
        rows=len(result.orders),
        cols=columns,
        shared_yaxes=True,
        subplot_titles=[TITLES[kind.split("-gram ")[1]].format(kind[0]) for kind in kinds],
        vertical_spacing=0.22,
    )
    said = []
    for number, kind in enumerate(kinds):
        groups = [g for g, other in enumerate(result.group_kinds) if other == kind]
        place = {"row": number // columns + 1, "col": number % columns + 1}
        for layer, stream in np.ndindex(len(result.layers), result.streams):
            at = (groups, index, layer, stream)
            line = _line(result, layer, stream, number == 0)
            figure.add_scatter(**line, **_points(result, at), **place)
        names = [SHORT.sub("", result.groups[g]) for g in groups]
        figure.update_xaxes(
            tickvals=list(range(len(groups))), ticktext=names, tickangle=-45, **place
        )
        means = result.group_mean[groups, index].mean((-1, -2))
        means = means[np.isfinite(means)]
        if len(means):
            said.append(f"{kind} {means[0]:.2f} in the first band, {means[-1]:.2f} in the last")
    figure.update_yaxes(title={"text": f"mean {measure}"}, col=1)
    title = f"Mean {SAID[measure]} by the n-gram that ends there"
    alt = f"Lines by layer and stream with 95% intervals. {title}: {'; '.join(said)}."
    figure = finish(figure, title, alt, 60 + 300 * len(result.orders))
    return figure.update_layout(legend=BELOW, margin={"b": 110, "t": 80})


def correlations_figure(result: GateProfile, measure: str) -> go.Figure:
    """Partial rank correlations, a panel an order; grey: loads of rows that others would read."""
    found, control = result.correlations(), result.control()
    index = result.measures.index(measure)
    figure = make_subplots(
        rows=1,
        cols=len(result.orders),
        shared_yaxes=True,
        subplot_titles=[f"{order}-gram" for order in result.orders],
    )
    last = len(result.loads) - 1
    places = [(last, 0), *((load, 1) for load in range(len(result.loads))), (last, 2)]
    names = ["count", *(f"load: {load}" for load in result.loads), "surprisal"]
    loads, variables = (list(pair) for pair in zip(*places, strict=True))
    pairs = list(np.ndindex(len(result.layers), result.streams))
    said = []
    for order, n in enumerate(result.orders):
        for number, (layer, stream) in enumerate(pairs):
            shift = 0.6 * ((number + 0.5) / len(pairs) - 0.5)
            values, low, high = (
                array[order, loads, variables, index, layer, stream] for array in found
            )
            figure.add_scatter(
                **_line(result, layer, stream, order == 0) | {"mode": "markers"},
                x=np.arange(len(places)) + shift,
                y=float32(values),
                error_y={"array": float32(high - values), "arrayminus": float32(values - low)},
                row=1,
                col=order + 1,
            )
        for load in range(len(result.loads)):
            bottom = float(np.nanmin(control[0][order, load, index], initial=0))
            top = float(np.nanmax(control[1][order, load, index], initial=0))
            box = {"x0": load + 0.6, "x1": load + 1.4, "y0": bottom, "y1": top}
            figure.add_shape(
                type="rect", **box, fillcolor="#bbb", line_width=0, layer="below", row=1,
                col=order + 1,
            )  # fmt: skip
        means = found[0][order, loads, variables, index].mean((-1, -2))
        parts = zip(names, means, strict=True)
        said.append(f"{n}-gram: " + ", ".join(f"{name} {mean:+.2f}" for name, mean in parts))
    figure.add_scatter(  # a shape has no place in the legend
        x=[None], y=[None], mode="markers", name="rows of other hashes",
        marker={"color": "#bbb", "symbol": "square", "size": 12},
    )  # fmt: skip
    figure.add_hline(y=0, line={"dash": "dot", "color": "#888"})
    figure.update_xaxes(tickvals=list(range(len(places))), ticktext=names)
    figure.update_yaxes(title={"text": "partial rank correlation"}, col=1)
    title = f"What goes with the {SAID[measure]}, the others held fixed"
    alt = (
        f"Points by layer and stream with 95% intervals; grey boxes are rows that hashes of other "
        f"seeds would have read. {title}; means over layers and streams: {'; '.join(said)}."
    )
    return finish(figure, title, alt, 480).update_layout(legend=BELOW, margin={"b": 110, "t": 80})


def _line(result: GateProfile, layer: int, stream: int, legend: bool) -> dict:
    name = f"layer {result.layers[layer]}, stream {stream}"
    marker = {"color": CATEGORICAL[stream % len(CATEGORICAL)], "symbol": layer, "size": 7}
    return {
        "name": name,
        "legendgroup": name,
        "showlegend": legend,
        "mode": "lines+markers",
        "marker": marker,
    }


def _points(result: GateProfile, at: tuple) -> dict:
    mean, low, high = (
        array[at] for array in (result.group_mean, result.group_low, result.group_high)
    )
    return {
        "x": np.arange(len(mean)),
        "y": float32(mean),
        "error_y": {"array": float32(high - mean), "arrayminus": float32(mean - low)},
    }
