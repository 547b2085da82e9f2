"""Figures of `AttentionPatterns`."""

from itertools import cycle

import numpy as np
import plotly.graph_objects as go

from engram_probes.attention import REPEATED, SCORES, AttentionPatterns
from engram_probes.figures.curves import add_curve, mark_memory
from engram_probes.figures.routing import NAMES
from engram_probes.figures.style import (
    CATEGORICAL,
    DIVERGING,
    SEQUENTIAL,
    finish,
    float32,
    heatmap_height,
    layer_axis,
    token_axis,
)

SIDE = 760  # pixels of a square pattern
SHARES = {"colorscale": SEQUENTIAL, "zmin": 0, "zmax": 1}
IN_WORDS = {**SCORES, REPEATED: "induction on repeated random tokens"}


def heads_figure(result: AttentionPatterns, score: str, change: str | None) -> go.Figure:
    """A score of every head, or its change."""
    values, what = _of_heads(result, score, change)
    most = float(np.nanmax(np.abs(values))) or 1.0
    scale: dict = {"colorscale": SEQUENTIAL, "zmin": 0, "zmax": most}
    if change is not None:
        scale = {"colorscale": DIVERGING, "zmid": 0, "zmin": -most, "zmax": most}
    figure = go.Figure(
        go.Heatmap(
            z=float32(values),
            x=list(range(values.shape[1])),
            y=list(range(values.shape[0])),
            hovertemplate="head %{x}: %{z:.3f}<extra></extra>",
            **scale,
        )
    )
    figure.update_xaxes(title={"text": "head"}, tickvals=list(range(values.shape[1])))
    figure.update_yaxes(layer_axis(result.layers, "layer"))
    layer, head = np.unravel_index(np.nanargmax(np.abs(values)), values.shape)
    alt = (
        f"Heatmap of {what} for {values.size} heads by layer; largest at head {head} of layer "
        f"{result.layers[layer]} with {values[layer, head]:.3f}."
    )
    title = what[0].upper() + what[1:]
    return finish(figure, title, alt, heatmap_height(len(result.layers)))


def _of_heads(result: AttentionPatterns, score: str, change: str | None) -> tuple[np.ndarray, str]:
    """[L, H], and what it is in words."""
    at = 0 if change is None else 1 + result.changes.index(change)
    said = IN_WORDS[score] if change is None else f"{IN_WORDS[score]}: {NAMES.get(change, change)}"
    if score == REPEATED:
        values = result.repeated[at] - (0 if change is None else result.repeated[0])
    else:
        place = result.score(score)
        values = result.mean[0, place] if change is None else result.change[at - 1, place]
    return values, said if change is None else f"change of {said}"


def layers_figure(result: AttentionPatterns, score: str) -> go.Figure:
    """Mean over heads by layer: the model, with each change, and the twin."""
    place, layers = result.score(score), np.array(result.layers)
    figure, said = go.Figure(), []
    curves = [
        (name, result.layer_mean[c, place], result.layer_low[c, place], result.layer_high[c, place])
        for c, name in enumerate(_conditions(result))
    ]
    low, high = result.twin_layer_low, result.twin_layer_high
    if result.twin_layer is not None and low is not None and high is not None:
        curves.append((result.twin, result.twin_layer[place], low[place], high[place]))
    for (name, mean, low, high), colour in zip(curves, cycle(CATEGORICAL), strict=False):
        add_curve(figure, mean, low, high, name, colour, None, layers)
        said.append(f"{name} {mean.mean():.2f}")
    mark_memory(figure, [layer - 0.5 for layer in result.memory_layers])
    figure.update_xaxes(title={"text": "layer"}, tickvals=layers.tolist())
    figure.update_yaxes(title={"text": SCORES[score]}, rangemode="tozero")
    title = f"{SCORES[score][0].upper()}{SCORES[score][1:]}, mean of a layer's heads"
    alt = f"Line chart of {SCORES[score]} by layer, means: {', '.join(said)}."
    figure = finish(figure, title, alt, 480)
    legend = {"y": -0.18, "yanchor": "top", "x": 0, "xanchor": "left"}
    return figure.update_layout(legend=legend, margin={"b": 120})


def _conditions(result: AttentionPatterns) -> list[str]:
    changes = [NAMES.get(change, change) for change in result.changes]
    return [result.provenance.models[0]["name"], *changes]


def pattern_figure(result: AttentionPatterns, layer: int, head: int) -> go.Figure:
    """Of one head of a single text: a row a query, a column a key."""
    assert result.pattern is not None
    values = result.pattern[layer, head]
    name = f"head {head} of layer {result.layers[layer]}"
    first, before = values[1:, 0].mean(), np.diagonal(values, -1).mean()
    alt = (
        f"Attention pattern of {name}, {len(values)} queries by {len(values)} keys: to position 0 "
        f"{first:.2f}, to the token before {before:.2f}."
    )
    figure = square(values, result.tokens, SHARES, "attention")
    return finish(figure, f"Attention of {name}", alt, SIDE)


def square(
    values: np.ndarray, tokens: tuple[str, ...], scale: dict, what: str, block: int = 1
) -> go.Figure:
    """A pattern [query, key], first query on top, on axes of positions; each cell is of `block`
    tokens a side."""
    start = (block - 1) / 2
    figure = go.Figure(
        go.Heatmap(
            z=float32(np.where(np.tri(len(values), dtype=bool), values, np.nan)),
            x=(start + block * np.arange(len(values))).tolist(),
            y=(start + block * np.arange(len(values))).tolist(),
            colorbar={"title": {"text": what}},
            hovertemplate="from %{y} to %{x}: %{z:.3f}<extra></extra>",
            **scale,
        )
    )
    end = block * len(values) - 0.5
    of_block = f", {block} to a cell" if block > 1 else ""
    keys = {"title": {"text": f"key (token looked at{of_block})"}, "range": [-0.5, end]}
    queries = {"title": {"text": f"query (token that looks{of_block})"}, "range": [end, -0.5]}
    figure.update_xaxes({**token_axis(tokens), **keys})
    return figure.update_yaxes({**token_axis(tokens), **queries, "tickangle": 0})
