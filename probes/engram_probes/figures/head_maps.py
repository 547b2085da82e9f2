"""Figures of an `AttentionMap`."""

import numpy as np
import plotly.graph_objects as go

from engram_probes.figures.attention import SHARES, SIDE, square
from engram_probes.figures.routing import NAMES
from engram_probes.figures.style import (
    DIVERGING,
    SEQUENTIAL,
    finish,
    float32,
    heatmap_height,
    layer_axis,
)
from engram_probes.head_maps import AttentionMap, Shown

TILE = 48  # most cells along a side of a small pattern
ACROSS = 4  # small patterns in a row
PIXELS = 190  # of a small pattern
BEYOND = "●"


def heads_figure(result: AttentionMap) -> go.Figure:
    """What the change moves, [L, H]; a dot where that is beyond the controls."""
    values, beyond = result.heads_moved(), result.beyond()
    heads = list(range(result.heads))
    figure = go.Figure(
        go.Heatmap(
            z=float32(values),
            x=heads,
            y=list(range(len(result.layers))),
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=float(values.max()) or 1.0,
            text=np.where(beyond, BEYOND, ""),
            texttemplate="%{text}",
            colorbar={"title": {"text": "share of<br>attention"}},
            customdata=_told(result),
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    figure.update_xaxes(title={"text": "head"}, tickvals=heads)
    figure.update_yaxes(layer_axis(result.layers, "layer"))
    layer, head = result.most_moved()
    alt = (
        f"Heatmap of the share of attention that {values.size} heads move to other tokens, by "
        f"layer; most does head {head} of layer {layer} with {values.max():.3f}; {beyond.sum()} "
        "heads are beyond the controls, marked by a dot."
    )
    title = f"Attention moved: {NAMES.get(result.how, result.how)}"
    return finish(figure, title, alt, heatmap_height(len(result.layers)))


def _told(result: AttentionMap) -> list[list[str]]:
    """What is said of each head when it is pointed at."""
    assert result.control_draws is not None
    means, most = result.control_draws.mean(1), result.control_draws.max(1)
    values = result.heads_moved()

    def told(layer: int, head: int) -> str:
        lines = [f"head {result.layers[layer]}.{head}: {values[layer, head]:.3f} moved"]
        lines += [
            f"{NAMES.get(name, name)}: {means[c, layer, head]:.3f}, at most "
            f"{most[c, layer, head]:.3f}"
            for c, name in enumerate(result.controls)
        ]
        return "<br>".join(lines)

    return [[told(layer, head) for head in range(result.heads)] for layer in range(len(values))]


def one_figure(result: AttentionMap, layer: int, head: int, shown: Shown) -> go.Figure:
    """The pattern of one head, or what the change makes of it."""
    values = result.values(layer, shown)
    figure = square(
        values[head], result.tokens, _scale(values, shown), _colour(shown), result.block
    )
    name = f"head {head} of layer {layer}, {result.named(shown)}"
    own = values[head]
    query, key = np.unravel_index(np.abs(own[1:]).argmax(), own[1:].shape)
    first, second = (int(place) * result.block for place in (query + 1, key))
    alt = (
        f"Attention pattern of {name}, {len(own)} queries by {len(own)} keys; largest from "
        f"position {first} to {second} with {own[query + 1, key]:+.2f}."
        if len(own) > 1
        else f"Attention pattern of {name}: a single token."
    )
    return finish(figure, f"Attention of {name}", alt, SIDE)


def layer_figure(result: AttentionMap, layer: int, shown: Shown) -> go.Figure:
    """Small patterns of all heads of a layer in one heatmap; `head_at` tells which is where."""
    values = result.values(layer, shown)
    tiles = np.stack([_small(np.where(np.tri(len(v), dtype=bool), v, np.nan)) for v in values])
    rows, step = _layout(result)
    grid = np.full((rows * step - _gap(step), min(ACROSS, len(tiles)) * step - _gap(step)), np.nan)
    figure, side = go.Figure(), tiles.shape[-1]
    for head, tile in enumerate(tiles):
        top, left = head // ACROSS * step, head % ACROSS * step
        grid[top : top + side, left : left + side] = tile
        figure.add_annotation(
            x=left + side - 0.5, y=top, text=f"<b>{layer}.{head}</b>", showarrow=False,
            xanchor="right", yanchor="top", font={"size": 13},
        )  # fmt: skip
    figure.add_trace(
        go.Heatmap(
            z=float32(grid),
            colorbar={"title": {"text": _colour(shown)}},
            hovertemplate="%{z:.3f}<extra></extra>",
            hoverongaps=False,
            **_scale(values, shown),
        )
    )
    blank = {"visible": False, "constrain": "domain"}
    figure.update_xaxes(range=[-0.5, grid.shape[1] - 0.5], **blank)
    figure.update_yaxes(range=[grid.shape[0] - 0.5, -0.5], scaleanchor="x", **blank)
    alt = (
        f"Attention patterns of the {len(tiles)} heads of layer {layer}, {result.named(shown)}, "
        "side by side; in each a row is a query, the first on top, and a column a key."
    )
    title = f"Heads of layer {layer}: {result.named(shown)}"
    figure = finish(figure, title, alt, 110 + rows * PIXELS)
    return figure.update_layout(margin={"l": 20})


def head_at(result: AttentionMap, row: int, column: int) -> int | None:
    """The head whose small pattern a cell of `layer_figure` belongs to; None between them."""
    _, step = _layout(result)
    if row % step >= step - _gap(step) or column % step >= step - _gap(step):
        return None
    head = row // step * ACROSS + column // step
    return head if column // step < ACROSS and head < result.heads else None


def _layout(result: AttentionMap) -> tuple[int, int]:
    """Rows of small patterns, and cells from one to the next."""
    side = -(-result.pattern.shape[-1] // _together(result.pattern.shape[-1]))
    return -(-result.heads // ACROSS), side + max(1, side // 12)


def _gap(step: int) -> int:
    """Cells between two small patterns, of the cells from one to the next."""
    return next(gap for gap in range(1, step) if max(1, (step - gap) // 12) == gap)


def _together(length: int) -> int:
    """Cells of a pattern along a side of one cell of a small pattern."""
    return -(-length // TILE)


def _small(pattern: np.ndarray) -> np.ndarray:
    """A pattern in at most `TILE` cells a side: of those put together the one farthest from 0."""
    size = _together(len(pattern))
    if size == 1:
        return pattern
    over = -len(pattern) % size
    padded = np.pad(pattern, (0, over), constant_values=np.nan)
    side = len(padded) // size
    cells = padded.reshape(side, size, side, size).swapaxes(1, 2).reshape(side, side, -1)
    sizes = np.where(np.isnan(cells), -1, np.abs(cells))
    return np.take_along_axis(cells, sizes.argmax(-1)[..., None], -1)[..., 0]


def _scale(values: np.ndarray, shown: Shown) -> dict:
    if shown != "difference":
        return SHARES
    most = float(np.abs(values).max()) or 1.0
    return {"colorscale": DIVERGING, "zmin": -most, "zmax": most, "zmid": 0}


def _colour(shown: Shown) -> str:
    return "change of<br>attention" if shown == "difference" else "attention"
