"""Figures of a `LogitLens` and of a `LensDifference`."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engram_probes.figures.curves import DEPTH_TITLE, add_curve, mark_memory
from engram_probes.figures.style import (
    CATEGORICAL,
    finish,
)
from engram_probes.lens import METRICS, LogitLens
from engram_probes.lens_difference import LensDifference, lens_names


def curve_figure(lenses: Sequence[LogitLens], what: str) -> go.Figure:
    """One metric by depth, with its 95% interval; one line a lens.

    Of plain and tuned lenses together, each model has a colour, and the plain ones are dashed.
    """
    unit, name = METRICS[what]
    figure, names = go.Figure(), lens_names(lenses)
    mixed, models = len({lens.lens for lens in lenses}) > 1, [lens.model for lens in lenses]
    for index, (lens, label) in enumerate(zip(lenses, names, strict=True)):
        colour = CATEGORICAL[models.index(lens.model) if mixed else index]
        dash = "dash" if mixed and lens.lens == "plain" else "solid"
        add_curve(figure, *lens.curve(what), label, colour, dash=dash)
    mark_memory(figure, lenses[0].memory_layers)
    if what == "rank":
        figure.update_yaxes(type="log")
    figure.update_xaxes(title={"text": DEPTH_TITLE})
    figure.update_yaxes(title={"text": f"{name} ({unit})"})
    described = "; ".join(
        _described(label, lens.curve(what)[0], unit)
        for label, lens in zip(names, lenses, strict=True)
    )
    title = _titled(name, all(lens.lens == "tuned" for lens in lenses))
    return finish(figure, title, f"Line chart of {title} by depth. {described}.")


def strata_figure(lens: LogitLens, what: str) -> go.Figure:
    """One metric by depth, a line with its interval for each stratum."""
    unit, name = METRICS[what]
    figure, curves = go.Figure(), lens.stratum_curves(what)
    for (stratum, tokens, mean, low, high), colour in zip(curves, CATEGORICAL, strict=False):
        add_curve(figure, mean, low, high, f"{stratum} ({tokens:,})", colour)
    mark_memory(figure, lens.memory_layers)
    if what == "rank":
        figure.update_yaxes(type="log")
    figure.update_xaxes(title={"text": DEPTH_TITLE})
    figure.update_yaxes(title={"text": f"{name} ({unit})"})
    described = "; ".join(_described(stratum, mean, unit) for stratum, _, mean, *_ in curves)
    title = _titled(f"{name}, by {lens.by} of the next token", lens.lens == "tuned")
    return finish(figure, title, f"Line chart of {title} by depth. {described}.")


def difference_figure(result: LensDifference, what: str) -> go.Figure:
    """Above both curves, below their difference, each with its interval."""
    unit, name = METRICS[what]
    index = result.metrics.index(what)
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.06
    )
    for i, model in enumerate((result.model, result.other)):
        curve = (result.means[i, index], result.means_low[i, index], result.means_high[i, index])
        add_curve(figure, *curve, model, CATEGORICAL[i], row=1)
    curve = (result.difference[index], result.low[index], result.high[index])
    label = f"{result.model} − {result.other}"
    add_curve(figure, *curve, label, CATEGORICAL[2], row=2)
    figure.add_hline(y=0, line={"color": "#555555", "width": 1, "dash": "dot"}, row=2)
    mark_memory(figure, result.memory_layers)
    figure.update_xaxes(title={"text": DEPTH_TITLE}, row=2)
    figure.update_yaxes(title={"text": unit}, row=1)
    figure.update_yaxes(title={"text": f"difference ({unit})"}, row=2)
    if what == "rank":
        figure.update_yaxes(type="log", row=1)
    largest = int(np.nanargmax(np.abs(result.difference[index])))
    name = _titled(name, result.tuned)
    alt = (
        f"Two line charts of {name} by depth: {result.model} and {result.other} above, their "
        f"difference below. It is largest after {largest} blocks: "
        f"{result.difference[index, largest]:+.2f} {unit}."
    )
    return finish(figure, name, alt, 560)


def _titled(name: str, tuned: bool) -> str:
    return f"{name} (tuned lens)" if tuned else name


def _described(model: str, mean: np.ndarray, unit: str) -> str:
    if not np.isfinite(mean).any():
        return f"{model}: no values"
    return (
        f"{model}: {mean[0]:.2f} at the embedding, {mean[len(mean) // 2]:.2f} after "
        f"{len(mean) // 2} blocks, {mean[-1]:.2f} at the end ({unit})"
    )
