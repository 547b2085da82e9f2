"""Depth by position of one text: a `LogitLens`, or two of them and their difference."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engram_probes.figures.curves import DEPTH_TITLE
from engram_probes.figures.style import (
    DIVERGING,
    SEQUENTIAL,
    escaped,
    finish,
    float32,
    heatmap_height,
    layer_axis,
    token_axis,
)
from engram_probes.lens import METRICS, LogitLens
from engram_probes.lens_difference import LensDifference

CELL_TEXT = 600  # cells above which the tokens no longer fit into a grid
REVERSED = ("entropy", "js", "kl", "kl_reverse", "log_rank", "rank", "final_rank")  # bright: sure
RANKS = ("rank", "final_rank")  # coloured by their logarithm
PANEL_ROW = 24  # pixels of a row where there are three grids
Window = tuple[int, int] | None


def grid_figure(lens: LogitLens, what: str, positions: Window = None) -> go.Figure:
    """Depth by position; colour: one quantity; text: the likeliest next token there."""
    unit, name = _named(what)
    whole = _coloured(lens.grid(what), what)
    shown = _part(positions, whole.shape[1])
    texts = [row[shown] for row in lens.top1_texts or ()]
    figure = go.Figure(_heatmap(whole[:, shown], texts, lens.tokens or (), shown, what))
    low, high = _limits(whole, np.asarray(lens.special))
    figure.update_layout(coloraxis=_scale(what, low, high, unit))
    figure.update_xaxes(**token_axis((lens.tokens or ())[shown], shown.start))
    figure.update_yaxes(**layer_axis(range(len(whole)), DEPTH_TITLE))
    alt = (
        f"Grid of {len(whole)} depths by {shown.stop - shown.start} tokens, coloured by {name} "
        f"({unit}), with the likeliest next token in each cell. {lens.summary()}"
    )
    tuned = " (tuned lens)" if lens.lens == "tuned" else ""
    title = f"{name}{tuned}; in the cells the likeliest next token"
    return finish(figure, title, alt, heatmap_height(len(whole)))


def grids_figure(result: LensDifference, what: str, positions: Window = None) -> go.Figure:
    """Above both in one scale, beneath the first less the second, centred at zero."""
    unit, name = _named(what)
    both = _coloured(result.grids(what), what)
    shown = _part(positions, both.shape[-1])
    tokens, depths = result.tokens_of_text or (), both.shape[1]
    names = [escaped(result.model), escaped(result.other)]
    titles = [*names, f"{names[0]} − {names[1]} (≠: other top tokens)"]
    figure = make_subplots(3, 1, shared_xaxes=True, vertical_spacing=0.06, subplot_titles=titles)
    texts = [[row[shown] for row in grid] for grid in result.top1_texts or ()]
    for row in (0, 1):
        heatmap = _heatmap(both[row][:, shown], texts[row], tokens, shown, what)
        figure.add_trace(heatmap, row=row + 1, col=1)
    difference = both[0] - both[1]
    marks = [
        ["≠" if here != there else "" for here, there in zip(*rows, strict=True)]
        for rows in zip(*texts, strict=True)
    ]
    heatmap = _heatmap(difference[:, shown], marks, tokens, shown, what, "coloraxis2", "difference")
    figure.add_trace(heatmap, row=3, col=1)
    special = np.asarray(result.special)
    low, high = _limits(both, special)
    largest = max(map(abs, _limits(difference, special))) or 1.0
    figure.update_layout(
        coloraxis=_scale(what, low, high, unit, y=0.68, length=0.62),
        coloraxis2={
            "colorscale": DIVERGING,
            "cmin": -largest,
            "cmax": largest,
            "colorbar": _bar("log₁₀ of the ratio" if what in RANKS else unit, 0.14, 0.3),
        },
    )
    figure.update_xaxes({**token_axis(tokens[shown], shown.start), "title": None})
    figure.update_xaxes(title={"text": token_axis(tokens[shown])["title"]["text"]}, row=3)
    figure.update_yaxes(layer_axis(range(depths), "blocks run"))
    return finish(figure, f"{name}: {names[0]} against {names[1]}", _alt(result, what, difference),
                  190 + 3 * max(PANEL_ROW * depths, 130))  # fmt: skip


def _alt(result: LensDifference, what: str, difference: np.ndarray) -> str:
    unit, name = _named(what)
    usual = np.where(np.asarray(result.special), np.nan, np.abs(difference))
    usual[0] = np.nan
    told = "It has no value."
    if np.isfinite(usual).any():
        depth, position = np.unravel_index(np.nanargmax(usual), usual.shape)
        said = f"{difference[depth, position]:+.2f}"
        told = f"It is largest after {depth} blocks at position {position}: {said}."
    return (
        f"Three grids of depth by token, coloured by {name} ({unit}): {result.model}, "
        f"{result.other}, and their difference. {told} {result.summary()}"
    )


def _named(what: str) -> tuple[str, str]:
    """Unit and name of what is shown of single tokens."""
    unit, name = METRICS.get(what, ("probability", "Probability of the top token"))
    name = name.removeprefix("Mean ")
    return unit, name[0].upper() + name[1:]


def _coloured(values: np.ndarray, what: str) -> np.ndarray:
    return np.log10(values) if what in RANKS else values


def _part(positions: Window, count: int) -> slice:
    start, stop = positions or (0, count)
    return slice(max(0, start), min(stop, count))


def _limits(values: np.ndarray, special: np.ndarray) -> tuple[float, float]:
    """Of ordinary tokens after the first block: the embedding alone is far off and would hide the
    rest."""
    usual = values[..., 1:, ~special]
    finite = usual[np.isfinite(usual)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def _scale(
    what: str, low: float, high: float, unit: str, y: float = 0.5, length: float = 1.0
) -> dict[str, Any]:
    bar = _bar(unit, y, length)
    if what in RANKS:
        places = range(int(np.ceil(high)) + 1)
        bar |= {"tickvals": list(places), "ticktext": [f"{10**place:,}" for place in places]}
    return {
        "colorscale": SEQUENTIAL,
        "reversescale": what in REVERSED,
        "cmin": low,
        "cmax": high if high > low else low + 1,
        "colorbar": bar,
    }


def _bar(title: str, y: float, length: float) -> dict[str, Any]:
    return {"title": {"text": title}, "y": y, "len": length}


def _heatmap(
    values: np.ndarray,
    texts: Sequence[Sequence[str]],
    tokens: Sequence[str],
    shown: slice,
    what: str,
    axis: str = "coloraxis",
    of: str = "",
) -> go.Heatmap:
    """Rows by positions, the text of each cell in it where there is room."""
    inside = np.array([[escaped(text) for text in row] for row in texts], dtype=object)
    columns = [escaped(token) for token in tokens[shown]]
    value = "10^%{z:.2f}" if what in RANKS else "%{z:.3f}"
    top = "" if of else "<br>top token %{text}"
    return go.Heatmap(
        z=float32(values),
        x=np.arange(shown.start, shown.stop),
        y=np.arange(len(values)),
        text=inside,
        customdata=np.tile(columns, (len(values), 1)),
        texttemplate="%{text}" if values.size <= CELL_TEXT else None,
        textfont={"size": 10},
        hovertemplate=f"after %{{customdata}} (position %{{x}}), %{{y}} blocks{top}"
        f"<br>{what} {of} {value}<extra></extra>",
        coloraxis=axis,
        name=of or what,
    )
