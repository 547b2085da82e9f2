"""Figure of a tuned lens: what it gains over the plain one, depth by depth."""

import plotly.graph_objects as go

from engram_probes.figures.curves import DEPTH_TITLE, add_curve, mark_memory
from engram_probes.figures.style import CATEGORICAL, finish
from engram_probes.tuned_lens import LENSES, METRICS, TunedLens


def tuned_figure(lens: TunedLens, what: str) -> go.Figure:
    """One metric by depth with its 95% interval, through the plain and through the tuned lens."""
    figure = go.Figure()
    for name, colour, dash in zip(LENSES, CATEGORICAL, ("dash", "solid"), strict=False):
        add_curve(figure, *lens.curve(name, what), f"{name} lens", colour, dash=dash)
    mark_memory(figure, lens.memory_layers)
    figure.update_xaxes(title={"text": DEPTH_TITLE})
    figure.update_yaxes(title={"text": f"{METRICS[what]} (nats)"})
    title = f"{METRICS[what]} of {lens.model}, plain and tuned lens"
    return finish(figure, title, f"Line chart of {title}, by depth. {lens.summary()}")
