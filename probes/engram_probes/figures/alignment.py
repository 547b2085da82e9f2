"""Figure of an `Alignment`."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engram_probes.alignment import SECOND, Alignment
from engram_probes.figures.style import SEQUENTIAL, escaped, finish, float32

ZMIN, ZMAX = -0.1, 1.0  # the debiased number may be negative: it is not cut off at zero
NAMES = {
    "cka": "Debiased CKA",
    "neighbours": "Overlap of nearest neighbours",
    "procrustes": "Procrustes similarity",
    "rsa": "RSA, Spearman correlation",
    "sinks": "CKA with special tokens",
}


def alignment_figure(result: Alignment, what: str) -> go.Figure:
    """Left: the matrix, with soft alignment and diagonal (CKA). Right: what chance gives."""
    shown, null = result.shown(what)
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        column_widths=[0.6, 0.4],
        subplot_titles=(NAMES[what], _null_title(result, what)),
    )
    figure.add_trace(_heatmap(result, shown, _hover(result, what), NAMES[what]), row=1, col=1)
    figure.add_trace(
        _heatmap(result, null, None, "without" if what == "sinks" else "by chance"), row=1, col=2
    )
    figure.add_trace(_diagonal(shown), row=1, col=1)
    if what != "sinks" and (what == "cka" or result.second_soft is not None):
        figure.add_trace(_soft(result, what), row=1, col=1)
    rows, columns = shown.shape
    figure.update_xaxes(
        title={"text": f"layer of {escaped(result.model_a)}"},
        range=[-0.5, columns - 0.5],
        dtick=_step(columns),
    )
    figure.update_yaxes(range=[-0.5, rows - 0.5], dtick=_step(rows))
    figure.update_yaxes(title={"text": f"layer of {escaped(result.model_b)}"}, col=1)
    figure.update_layout(coloraxis=_coloraxis(what))
    title = f"{escaped(result.model_a)} against {escaped(result.model_b)}"
    figure = finish(figure, title, _alt(result, what, shown), 520)
    return figure.update_layout(legend={"y": -0.2, "yanchor": "top", "x": 0, "xanchor": "left"})


def _coloraxis(what: str) -> dict:
    units = {"neighbours": "share", "procrustes": "similarity", "rsa": "correlation"}
    title = {"text": units.get(what, "CKA")}
    return {"colorscale": SEQUENTIAL, "cmin": ZMIN, "cmax": ZMAX, "colorbar": {"title": title}}


def _step(layers: int) -> int:
    """Layers between two ticks: whole numbers only, at most twelve of them."""
    return -(-layers // 12)


def _heatmap(
    result: Alignment, values: np.ndarray, hover: np.ndarray | None, name: str
) -> go.Heatmap:
    rows, columns = values.shape
    more = "" if hover is None else "<br>%{customdata}"
    return go.Heatmap(
        z=float32(values),
        x=np.arange(columns),
        y=np.arange(rows),
        name=name,
        coloraxis="coloraxis",
        customdata=hover,
        hovertemplate=f"{escaped(result.model_b)} %{{y}}, {escaped(result.model_a)} %{{x}}: "
        f"%{{z:.3f}}{more}<extra></extra>",
    )


def _hover(result: Alignment, what: str) -> np.ndarray | None:
    if what in SECOND and result.second_null_high is not None:
        highs = result.second_null_high[SECOND.index(what)]
        texts = [f"null up to {null:.3f}" for null in highs.ravel()]
    elif what == "cka":
        cells = zip(result.low.ravel(), result.high.ravel(), result.null_high.ravel(), strict=True)
        texts = [f"95% {low:.3f} to {high:.3f}; null up to {null:.3f}" for low, high, null in cells]
    else:
        return None
    return np.array(texts, dtype=object).reshape(result.low.shape)


def _soft(result: Alignment, what: str) -> go.Scatter:
    soft = result.soft(what)[0]
    return go.Scatter(
        x=np.arange(len(soft)),
        y=float32(soft),
        mode="lines+markers",
        name=f"soft alignment, k = {result.k} (from {result.soft_floor:g} to "
        f"{result.soft_ceiling:g})",
        # White on the map; the dark rim keeps it visible on bright cells and in the legend.
        line={"color": "white", "width": 3},
        marker={"color": "white", "size": 7, "line": {"color": "#222222", "width": 1.5}},
        hovertemplate=f"{escaped(result.model_a)} %{{x}} is most like %{{y:.1f}}<extra></extra>",
    )


def _diagonal(values: np.ndarray) -> go.Scatter:
    ends = np.array([0, min(values.shape) - 1])
    return go.Scatter(
        x=ends,
        y=ends,
        mode="lines",
        name="same layer",
        line={"color": "#D55E00", "width": 1.5, "dash": "dash"},
        hoverinfo="skip",
    )


def _null_title(result: Alignment, what: str) -> str:
    if what == "sinks":
        return "Without, as in all else"
    if what == "neighbours":
        return f"By chance, k = {result.neighbours_k}"
    if what in SECOND:
        return "Samples permuted"
    if not result.permutations:
        return "No null asked for"
    return f"Mean of {result.permutations} permutations"


def _alt(result: Alignment, what: str, shown: np.ndarray) -> str:
    if not np.isfinite(shown).any():
        return f"Empty heatmap of {NAMES[what]}."
    row, column = np.unravel_index(np.nanargmax(shown), shown.shape)
    return (
        f"Heatmap of {NAMES[what]} between {shown.shape[0]} layers of {result.model_b} and "
        f"{shown.shape[1]} of {result.model_a}, highest at {row} and {column} "
        f"({shown[row, column]:.2f}). {result.summary()}"
    )
