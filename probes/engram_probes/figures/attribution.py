"""Figure of an `Attribution`."""

import numpy as np
import plotly.graph_objects as go

from engram_probes.attribution import PARTS, Attribution
from engram_probes.figures.style import CATEGORICAL, escaped, finish

COLOURS = {
    "embed": "#AAAAAA",
    "attention": CATEGORICAL[0],
    "mlp": CATEGORICAL[2],
    "memory": CATEGORICAL[1],
    "bias": "#8A8A8A",
    "remainder": "#777777",
}
INTERVAL = "#777777"  # legible on white and on black
BAR = 22  # pixels
SEEN = 0.005  # of a remainder that is more than rounding


def attribution_figure(result: Attribution, most: int, part: str | None = None) -> go.Figure:
    """Bars of contributions, of one part or all, oldest on top; thin lines: what random rows would
    add."""
    kept, rest = _kept(result, most, part)
    names = [result.components[i] for i in kept]
    figure = go.Figure()
    for each in dict.fromkeys(result.parts):
        rows = [row for row, i in enumerate(kept) if result.parts[i] == each]
        if rows:
            values = [float(result.contribution[kept[row]]) for row in rows]
            figure.add_trace(_bars(values, rows, [names[row] for row in rows], each))
    if len(rest):
        names.append(f"{len(rest)} smaller ones")
        other = [float(result.contribution[rest].sum())]
        figure.add_trace(_bars(other, [len(kept)], names[-1:], None))
    _add_random(figure, result, kept)
    alt = f"Bar chart of {len(names)} components of a logit. {result.summary()} {_largest(result)}"
    return _finished(figure, names, _title(result), alt)


def parts_figure(result: Attribution) -> go.Figure:
    """A bar for each part of the model."""
    sums = {
        part: value
        for part, value in result.by_part().items()
        if part != "remainder" or abs(value) > SEEN
    }
    figure = go.Figure()
    names = [PARTS[part] for part in sums]
    for row, (part, value) in enumerate(sums.items()):
        figure.add_trace(_bars([value], [row], [names[row]], part))
    figure.update_layout(showlegend=False)
    said = ", ".join(f"{PARTS[part]} {value:+.2f}" for part, value in sums.items())
    return _finished(figure, names, _title(result), f"Bar chart of the parts of a logit: {said}.")


def _finished(figure: go.Figure, names: list[str], title: str, alt: str) -> go.Figure:
    figure.update_xaxes(title={"text": "contribution (logits)"}, zerolinecolor="#555555")
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=names,
        range=[len(names) - 0.5, -0.5],
        automargin=True,
    )
    figure.update_layout(barmode="overlay")
    return finish(figure, title, alt, 170 + BAR * len(names))


def _kept(result: Attribution, most: int, part: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Components that have a bar, in their order, and the smallest, which share the last one."""
    of = np.flatnonzero([part in (None, each) for each in result.parts])
    order = of[np.argsort(-np.abs(result.contribution[of]), kind="stable")]
    if len(order) <= most:
        return of, order[:0]
    return np.sort(order[: most - 1]), order[most - 1 :]


def _bars(values: list[float], rows: list[int], names: list[str], part: str | None) -> go.Bar:
    return go.Bar(
        x=values,
        y=rows,
        orientation="h",
        width=0.8,  # else plotly takes the distance between bars of one colour
        name="others" if part is None else PARTS[part],
        marker={"color": "#CCCCCC" if part is None else COLOURS[part]},
        customdata=names,
        hovertemplate="%{customdata}<br>%{x:.3f} logits<extra></extra>",
    )


def _add_random(figure: go.Figure, result: Attribution, kept: np.ndarray) -> None:
    x: list[float | None] = []
    y: list[float | None] = []
    for row, i in enumerate(kept):
        if np.isfinite(result.random_low[i]):
            x += [float(result.random_low[i]), float(result.random_high[i]), None]
            y += [row, row, None]
    if x:
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                mode="lines",
                name="rows drawn at random, 95%",
                line={"color": INTERVAL, "width": 2},
                hovertemplate="a random row: %{x:.3f} logits<extra></extra>",
            )
        )


def _title(result: Attribution) -> str:
    of = f"“{escaped(result.target)}”"
    if result.against is not None:
        of += f" less “{escaped(result.against)}”"
    return f"Logit of {of} after “{escaped(result.tokens[-1])}”: {result.logit:.2f}"


def _largest(result: Attribution) -> str:
    largest = int(np.argmax(np.abs(result.contribution)))
    return (
        f"The largest contribution is {result.components[largest]}: "
        f"{result.contribution[largest]:+.2f}."
    )
