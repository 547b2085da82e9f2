"""Figures of a `RowInspection`."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engram_probes.figures.style import CATEGORICAL, escaped, finish, float32, heatmap_height
from engram_probes.row_inspection import RowInspection

BAR = 26  # pixels
LONGEST = 34  # characters of a name beside a bar


def row_figure(result: RowInspection, row: int) -> go.Figure:
    """Bars: the n-grams of the corpus that read a row (left), the tokens that it favours."""
    panels = []
    if result.reads is not None and (result.reads[row] or result.says_logits is None):
        panels.append(_tenants(result, row))
    if result.says_logits is not None:
        panels.append(_says(result, row))
    titles = [title for title, *_ in panels]
    figure = make_subplots(rows=1, cols=len(panels), subplot_titles=titles, horizontal_spacing=0.22)
    most = max(4, *(len(names) for _, _, names, _, _ in panels))
    for place, (_, axis, names, values, colours) in enumerate(panels, start=1):
        bars = go.Bar(
            x=float32(values),
            y=np.arange(len(names)),
            orientation="h",
            marker_color=colours,
            customdata=[escaped(name) for name in names],
            hovertemplate="%{customdata}: %{x:.3~f}<extra></extra>",
            showlegend=False,
        )
        figure.add_trace(bars, row=1, col=place)
        labels = [escaped(_short(name)) for name in names]
        ticks = {"tickvals": list(range(len(names))), "ticktext": labels}
        figure.update_yaxes(range=[most - 0.5, -0.5], **ticks, row=1, col=place)
        figure.update_xaxes(title={"text": axis}, rangemode="tozero", row=1, col=place)
    title = result.name(row).capitalize()
    alt = f"Bar charts. {title}: {'; '.join(_told(panel) for panel in panels)}."
    figure = finish(figure, title, alt, 180 + BAR * most)
    return figure.update_layout(margin_t=90)  # panels have titles of their own


def _tenants(result: RowInspection, row: int) -> tuple:
    assert result.tenant_counts is not None and result.own_tenant is not None
    known = result.tenant_counts[row] > 0
    names = [text for text, is_one in zip(result.tenant_texts[row], known, strict=True) if is_one]
    own = np.arange(len(names)) == result.own_tenant[row]
    colours = [CATEGORICAL[1] if is_own else CATEGORICAL[0] for is_own in own]
    names = [f"{name} (looked up)" if o else name for name, o in zip(names, own, strict=True)]
    title = "n-grams that read it" if names else "no n-gram of the corpus reads it"
    return title, "occurrences in the corpus", names, result.tenant_counts[row][known], colours


def _says(result: RowInspection, row: int) -> tuple:
    assert result.says_logits is not None
    names, values = list(result.says_texts[row]), result.says_logits[row]
    axis = "logit above the vocabulary's mean"
    return "tokens it favours", axis, names, values, [CATEGORICAL[2]] * len(names)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _told(panel: tuple) -> str:
    title, _, names, values, _ = panel
    named = (f"{name} {value:.3g}" for name, value in zip(names[:3], values[:3], strict=True))
    return f"{title}: {', '.join(named)}" if names else title


def norms_figure(result: RowInspection) -> go.Figure:
    """A line a row: its norm, and where 95% of random rows of its head lie."""
    places = np.arange(len(result.slots))
    low, middle, high = result.control_norm.T
    figure = go.Figure()
    figure.add_scatter(
        x=float32(middle),
        y=places,
        error_x={"array": float32(high - middle), "arrayminus": float32(middle - low)},
        mode="markers",
        marker={"color": CATEGORICAL[2], "size": 8},
        name="random rows of the head: median, 95%",
    )
    figure.add_scatter(
        x=float32(result.row_norm),
        y=places,
        mode="markers",
        marker={"color": CATEGORICAL[0], "size": 11, "symbol": "diamond"},
        name="the row",
    )
    names = [
        f"L{result.layers[r]} {result.orders[r]}-gram h{result.heads[r]}, row {result.slots[r]}"
        for r in places
    ]
    figure.update_yaxes(tickvals=places.tolist(), ticktext=names, autorange="reversed")
    figure.update_xaxes(title={"text": "norm of the row"}, rangemode="tozero")
    alt = (
        f"Points by row of the table, {len(places)} rows: the norm of each, from "
        f"{result.row_norm.min():.2f} to {result.row_norm.max():.2f}, and the median and 95% range "
        "of random rows of its head."
    )
    figure = finish(figure, "Norms of rows", alt, heatmap_height(len(places)) + 40)
    return figure.update_layout(margin={"l": 200})
