"""Figures of `ExpertRouting`."""

import numpy as np
import plotly.graph_objects as go

from engram_model.errors import UsageError
from engram_probes.figures.curves import add_curve
from engram_probes.figures.style import (
    CATEGORICAL,
    MOST_LABELS,
    SEQUENTIAL,
    finish,
    float32,
    heatmap_height,
    layer_axis,
    token_axis,
)
from engram_probes.routing import ExpertRouting

NAMES = {
    "zero": "memory silenced",
    "noise": "random vector as large added",
    "other": "another token's taken away, as large",
    "shuffle": "rows permuted",
}


def kept_figure(result: ExpertRouting, _change: int) -> go.Figure:
    """What each change keeps, by layer, and what is expected by chance."""
    figure, said = go.Figure(), []
    layers = np.array(result.layers)
    for change, name in enumerate(result.changes):
        called = NAMES.get(name, name)
        mean, low, high = (a[change, 0] for a in (result.kept, result.kept_low, result.kept_high))
        colour = CATEGORICAL[change % len(CATEGORICAL)]
        add_curve(figure, mean, low, high, called, colour, depth=layers)
        said.append(f"{called}: {result.kept[change, 0].mean():.0%}")
    expected = result.chance[0, 0]
    none = np.full(len(layers), np.nan)
    add_curve(figure, expected, none, none, "by chance", "#777777", None, layers, "dot")
    figure.update_xaxes(title={"text": "layer"}, tickvals=layers.tolist())
    figure.update_yaxes(title={"text": "share of a token's experts kept"}, range=[0, 1.02])
    alt = (
        f"Share of a token's {result.chosen} experts that stay the same, by layer; means: "
        f"{', '.join(said)}; by chance {expected.mean():.0%}."
    )
    return _legend_below(
        finish(figure, "Are the same experts chosen without the memory?", alt, 460)
    )


def mechanism_figure(result: ExpertRouting, change: int) -> go.Figure:
    """What one change keeps, a row a kind of token."""
    groups = [g for g in range(len(result.groups)) if result.group_tokens[g]]
    names = [f"{result.groups[g]} ({result.group_tokens[g]:,})" for g in groups]
    values = result.kept[change, groups]
    figure = _heatmap(values, result.layers, "share kept")
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, autorange="reversed")
    name = NAMES.get(result.changes[change], result.changes[change])
    alt = (
        f"Heatmap of the share of a token's experts kept ({name}) by kind of the predicted token "
        f"and layer, from {np.nanmin(values):.0%} to {np.nanmax(values):.0%}."
    )
    figure = finish(figure, f"Share of experts kept: {name}", alt, heatmap_height(len(names)))
    return figure.update_layout(margin={"l": 170})


def load_figure(result: ExpertRouting, _change: int) -> go.Figure:
    """Load of every expert, the largest of each layer first."""
    load = -np.sort(-result.load, axis=1)
    figure = go.Figure(
        go.Heatmap(
            z=float32(load),
            x=list(range(result.experts)),
            y=list(range(len(result.layers))),
            colorscale=SEQUENTIAL,
            zmin=0,
            colorbar={"title": {"text": "share of tokens"}},
            customdata=np.argsort(-result.load, axis=1),
            hovertemplate="expert %{customdata}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(title={"text": "experts of the layer, the most chosen first"})
    figure.update_yaxes(layer_axis(result.layers, "layer"))
    even = result.chosen / result.experts
    alt = (
        f"Heatmap of the share of tokens that choose each of {result.experts} experts by layer; an "
        f"even load is {even:.2f}, the largest {load.max():.2f}, the smallest {load.min():.2f}."
    )
    return finish(figure, "Load of each expert", alt, heatmap_height(len(result.layers)))


def information_figure(result: ExpertRouting, _change: int) -> go.Figure:
    """Mutual information of expert and mechanism, and of shifted mechanisms."""
    layers, figure = np.array(result.layers), go.Figure()
    mean, low, high = result.information, result.information_low, result.information_high
    add_curve(figure, mean, low, high, "expert and mechanism", CATEGORICAL[0], depth=layers)
    null = result.information_null
    low, high = np.quantile(null, (0.025, 0.975), axis=0)
    add_curve(figure, null.mean(0), low, high, "mechanisms shifted", "#777777", None, layers, "dot")
    figure.update_xaxes(title={"text": "layer"}, tickvals=layers.tolist())
    figure.update_yaxes(title={"text": "mutual information (nats)"}, rangemode="tozero")
    alt = (
        f"Mutual information of expert and mechanism by layer, {result.information.min():.3f} to "
        f"{result.information.max():.3f} nats; with shifted mechanisms {null.mean():.3f}."
    )
    return _legend_below(finish(figure, "Do experts specialise by mechanism?", alt, 460))


def text_figure(result: ExpertRouting, change: int) -> go.Figure:
    """Of a single text what each token keeps; on hover the experts with and without."""
    kept = result.text_kept(change)
    assert result.expert_ids is not None
    ids = np.sort(result.expert_ids[[0, 1 + change]], -1)
    chosen = [
        [[" ".join(map(str, ids[c, layer, p])) for c in (0, 1)] for p in range(kept.shape[1])]
        for layer in range(kept.shape[0])
    ]
    figure = _heatmap(kept, range(kept.shape[1]), "share kept")
    figure.update_traces(
        customdata=chosen, hovertemplate="%{customdata[0]} → %{customdata[1]}<extra></extra>"
    )
    figure.update_xaxes(token_axis(result.tokens))
    figure.update_yaxes(layer_axis(result.layers, "layer"))
    name = NAMES.get(result.changes[change], result.changes[change])
    alt = (
        f"Heatmap of the share of each token's experts kept ({name}) by layer, mean "
        f"{kept.mean():.0%}."
    )
    title = f"Experts that each token keeps: {name}"
    return finish(figure, title, alt, heatmap_height(len(result.layers)))


def experts_figure(result: ExpertRouting, change: int) -> go.Figure:
    """Of a single text the expert with the most weight, [layer, position]; all on hover."""
    if result.expert_ids is None or result.expert_weights is None:
        raise UsageError("experts: only of a single text; this result is of several")
    ids, weights = result.expert_ids[0], result.expert_weights[0]
    first = weights.argmax(-1)[..., None]
    top = np.take_along_axis(ids, first, -1)[..., 0]
    figure = _heatmap(weights.max(-1), range(top.shape[1]), "its weight")
    figure.update_traces(
        customdata=_in_words(result, change),
        hovertemplate="%{customdata}<extra></extra>",
    )
    if top.shape[1] <= MOST_LABELS:
        figure.update_traces(text=top, texttemplate="%{text}")
    figure.update_xaxes(token_axis(result.tokens))
    figure.update_yaxes(layer_axis(result.layers, "layer"))
    place, position = np.unravel_index(weights.max(-1).argmax(), top.shape)
    alt = (
        f"Heatmap of the expert with the most weight for each of {top.shape[1]} tokens by layer, "
        f"with the memory; the largest weight is {weights.max():.2f}, of expert "
        f"{top[place, position]} of layer {result.layers[place]} at position {position}."
    )
    title = "Expert with the most weight for each token"
    return finish(figure, title, alt, heatmap_height(len(result.layers)))


def _in_words(result: ExpertRouting, change: int) -> list[list[str]]:
    """What is said of each cell when it is pointed at, [layer][position]."""

    def told(place: int, position: int) -> str:
        lines = [f"experts (weight): {result.chosen_by(0, place, position)}"]
        if result.changes:
            name = NAMES.get(result.changes[change], result.changes[change])
            lines.append(f"{name}: {result.chosen_by(1 + change, place, position)}")
        return "<br>".join(lines)

    places, positions = range(len(result.layers)), range(len(result.tokens))
    return [[told(place, position) for position in positions] for place in places]


def _heatmap(values: np.ndarray, columns, title: str) -> go.Figure:
    figure = go.Figure(
        go.Heatmap(
            z=float32(values),
            x=list(columns),
            y=list(range(len(values))),
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1,
            colorbar={"title": {"text": title}},
        )
    )
    return figure.update_xaxes(title={"text": "layer"}, tickvals=list(columns))


def _legend_below(figure: go.Figure) -> go.Figure:
    """Of names too long for a line above."""
    legend = {"y": -0.18, "yanchor": "top", "x": 0, "xanchor": "left"}
    return figure.update_layout(legend=legend, margin={"b": 120})


FIGURES = {
    "kept": kept_figure,
    "mechanism": mechanism_figure,
    "load": load_figure,
    "information": information_figure,
    "text": text_figure,
    "experts": experts_figure,
}
