"""Figures of `GateProfile`."""

import numpy as np
import plotly.graph_objects as go

from engram_probes.figures.style import CATEGORICAL, finish, float32, heatmap_height
from engram_probes.gate_profiles import CHANCE, WHAT, GateProfile

SAID = {"gate": "gate", "added": "size of what is added / residual it enters"}
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
    """Mean of each group of tokens, a point a layer and stream."""
    index = result.measures.index(measure)
    kept = [g for g in range(len(result.groups)) if result.group_tokens[g]]
    names = [f"{result.groups[g]} ({result.group_tokens[g]:,})" for g in kept]
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
