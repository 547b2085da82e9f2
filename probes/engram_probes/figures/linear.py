"""Figure of a `LinearProbe`."""

import numpy as np
import plotly.graph_objects as go

from engram_probes.figures.curves import DEPTH_TITLE, add_curve, mark_memory
from engram_probes.figures.style import CATEGORICAL, escaped, finish, float32
from engram_probes.linear import METRICS, LinearProbe

BASELINE_COLOURS = ("#555555", "#999999", *CATEGORICAL[3:])
DASHES = ("dot", "dash", "dashdot", "longdash")


def linear_figure(result: LinearProbe, metric: str) -> go.Figure:
    """One metric by depth: a line a model with its 95% interval, baselines across."""
    unit, name = METRICS[metric]
    figure = go.Figure()
    for source, colour in zip(result.by_depth, CATEGORICAL, strict=False):
        depth, mean, low, high = result.curve(metric, source)
        add_curve(figure, mean, low, high, source, colour, depth=depth)
    if metric == "accuracy":
        depth, mean, low, high = result.curve("control")
        add_curve(figure, mean, low, high, "control task", CATEGORICAL[0], depth=depth, dash="dot")
    _baselines(figure, result, metric)
    mark_memory(figure, result.memory_layers)
    figure.update_xaxes(title={"text": DEPTH_TITLE})
    figure.update_yaxes(title={"text": f"{name} ({unit})"})
    title = f"{name}: {escaped(result.label)}, {len(result.classes)} classes"
    figure = finish(figure, title, _alt(result, metric), 520)
    return figure.update_layout(
        legend={"y": -0.16, "yanchor": "top", "x": 0, "xanchor": "left"}, margin={"b": 130}
    )


def _baselines(figure: go.Figure, result: LinearProbe, metric: str) -> None:
    """Lines across the figure: what has no depth, and for a code the cost without any model."""
    depth = result.curve(metric)[0]
    ends = np.array([depth.min(), depth.max()])
    levels = {name: float(result.curve(metric, name)[1][0]) for name in result.baselines}
    if metric == "bits":
        levels["uniform code"] = result.uniform_bits
    for number, (name, level) in enumerate(levels.items()):
        figure.add_trace(
            go.Scatter(
                x=ends,
                y=float32(np.array([level, level])),
                mode="lines",
                name=name,
                line={
                    "color": BASELINE_COLOURS[number % len(BASELINE_COLOURS)],
                    "width": 1.5,
                    "dash": DASHES[number % len(DASHES)],
                },
                hovertemplate=f"{escaped(name)}: %{{y:.3f}}<extra></extra>",
            )
        )


def _alt(result: LinearProbe, metric: str) -> str:
    unit, name = METRICS[metric]
    parts = []
    for source in result.by_depth:
        depth, mean, *_ = result.curve(metric, source)
        best = int(np.argmin(mean) if metric == "bits" else np.argmax(mean))
        parts.append(
            f"{source}: {mean[0]:.2f} after {depth[0]} blocks, best {mean[best]:.2f} after "
            f"{depth[best]}, {mean[-1]:.2f} after {depth[-1]}"
        )
    for source in result.baselines:
        parts.append(f"{source}: {result.curve(metric, source)[1][0]:.2f}")
    return f"Line chart of {name} ({unit}) by depth. {'; '.join(parts)}. {result.summary()}"
