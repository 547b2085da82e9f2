"""Figure of a `Suppression`."""

import numpy as np
import plotly.graph_objects as go

from engram_probes.figures.style import CATEGORICAL, escaped, finish, float32
from engram_probes.suppression import AFTER, BEFORE, HOWS, Suppression, What

NAMES = {
    "retained": "share of the accuracy above chance that is kept",
    "accuracy": "accuracy",
    "log_prob": "change of the answer's log-probability, nats",
}
TASK_HEIGHT = 34  # pixels


def suppression_figure(result: Suppression, what: What) -> go.Figure:
    """Horizontal bars by task with intervals, the task that keeps most on top; controls as rings.

    A task without a share has its reason in place of a bar.
    """
    order = _order(result, what)
    places = np.arange(len(order))
    figure = go.Figure()
    if what == "accuracy":
        for condition, name in ((AFTER, "after"), (BEFORE, "before")):  # the last is on top
            numbers = (result.accuracy, result.accuracy_low, result.accuracy_high)
            shown = tuple(array[condition] for array in numbers)
            figure.add_trace(_bars(result, order, name, shown, CATEGORICAL[condition]))
        figure.add_trace(_marks("chance", result.chance[order], places, "line-ns-open", 16))
    else:
        shown = _numbers(result, what)
        figure.add_trace(_bars(result, order, "suppressed", shown, CATEGORICAL[0]))
    _add_controls(figure, result, what, order, places)
    _add_lines(figure, result, what, order)
    figure.update_xaxes(title={"text": NAMES[what]}, zeroline=False)
    if what == "retained":
        figure.update_xaxes(tickformat=".0%", range=_share_range(result))
    figure.update_yaxes(
        tickvals=places.tolist(),
        ticktext=[escaped(result.tasks[i]) for i in order],
        range=[-0.6, len(order) - 0.4],
        automargin=True,
    )
    model = result.provenance.models[0]["name"]
    title = f"{escaped(model)}, {result.part} suppressed<br><sup>{result.how}: {HOWS[result.how]}"
    figure = finish(
        figure, f"{title}</sup>", _alt(result, what, order), 190 + TASK_HEIGHT * len(order)
    )
    return figure.update_layout(margin={"t": 90}, barmode="group")


def _numbers(result: Suppression, what: What) -> tuple[np.ndarray, ...]:
    if what == "retained":
        return result.retained, result.retained_low, result.retained_high
    return result.change, result.change_low, result.change_high


def _share_range(result: Suppression) -> list[float]:
    """All shares; of intervals that reach far, where little was known before, -100% to 200%."""
    shares = np.concatenate([result.retained, result.control_retained.ravel(), [0, 1]])
    ends = np.concatenate([result.retained_low, result.retained_high]).clip(-1, 2)
    shown = np.concatenate([shares, ends])
    return [float(np.nanmin(shown)) - 0.1, float(np.nanmax(shown)) + 0.1]


def _order(result: Suppression, what: What) -> np.ndarray:
    """Tasks from the bottom: first those without a share, then from what is kept least."""
    values = result.change if what == "log_prob" else result.retained
    return np.argsort(np.where(np.isfinite(values), values, -np.inf), kind="stable")


def _bars(
    result: Suppression, order: np.ndarray, name: str, numbers: tuple[np.ndarray, ...], colour: str
) -> go.Bar:
    """numbers: value, low and high, each [tasks]."""
    value, low, high = (array[order] for array in numbers)
    labels = [
        f"{escaped(result.tasks[i])}, {result.items[i]} items<br>{name} {value[k]:.3f} "
        f"({low[k]:.3f} to {high[k]:.3f})"
        for k, i in enumerate(order)
    ]
    # A percentile interval need not hold the estimate: no bar has a negative length.
    error = {
        "type": "data",
        "symmetric": False,
        "array": float32(np.maximum(high - value, 0)),
        "arrayminus": float32(np.maximum(value - low, 0)),
        "color": "#444",
        "thickness": 1,
    }
    return go.Bar(
        name=name,
        orientation="h",
        x=float32(value),
        y=np.arange(len(order)),
        error_x=error,
        marker={"color": colour},
        customdata=labels,
        hovertemplate="%{customdata}<extra></extra>",
    )


def _marks(name: str, x, y, symbol: str, size: int = 9) -> go.Scatter:
    return go.Scatter(
        name=name,
        x=float32(x),
        y=y,
        mode="markers",
        marker={"symbol": symbol, "size": size, "color": "#222", "line": {"width": 1.5}},
        hovertemplate=f"{name} %{{x:.3f}}<extra></extra>",
    )


def _add_controls(figure: go.Figure, result: Suppression, what: What, order, places) -> None:
    values = {
        "retained": result.control_retained,
        "accuracy": result.control_accuracy,
        "log_prob": result.control_change,
    }[what][:, order]
    if len(values):
        name = "as many other rows"
        figure.add_trace(_marks(name, values.ravel(), np.tile(places, len(values)), "circle-open"))


def _add_lines(figure: go.Figure, result: Suppression, what: What, order) -> None:
    """Where nothing is kept, and where everything is; why some tasks have no bar."""
    if what == "retained":
        label = {"annotation_text": "chance", "annotation_position": "top"}
        figure.add_vline(0, line={"color": "#222", "width": 1.5}, **label)
        label["annotation_text"] = "all kept"
        figure.add_vline(1, line={"color": "#222", "dash": "dot", "width": 1}, **label)
        for place, task in enumerate(order):
            if result.reasons[task]:
                figure.add_annotation(
                    x=0.02, y=place, text="was not above chance", xanchor="left", showarrow=False,
                    hovertext=escaped(result.reasons[task]), font={"color": "#666"},
                )  # fmt: skip
    elif what == "log_prob":
        figure.add_vline(0, line={"color": "#222", "width": 1.5})


def _alt(result: Suppression, what: What, order: np.ndarray) -> str:
    told = f"Bars of {len(order)} tasks: {NAMES[what]}, {result.part} suppressed ({result.how}). "
    if what == "accuracy":
        parts = [
            f"{result.tasks[i]} {result.accuracy[BEFORE, i]:.2f} before and "
            f"{result.accuracy[AFTER, i]:.2f} after, chance {result.chance[i]:.2f}"
            for i in order[::-1]
        ]
    else:
        value, low, high = _numbers(result, what)
        parts = [
            f"{result.tasks[i]} {value[i]:.2f} ({low[i]:.2f} to {high[i]:.2f})"
            if np.isfinite(value[i])
            else f"{result.tasks[i]} none"
            for i in order[::-1]
        ]
    return told + "; ".join(parts) + "."
