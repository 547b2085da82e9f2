"""Figure of an `Edit`."""

import numpy as np
import plotly.graph_objects as go

from engram_probes.editing import Edit
from engram_probes.figures.style import CATEGORICAL, escaped, finish, float32, heatmap_height

LONGEST = 60  # characters of a prompt on the axis


def edit_figure(result: Edit) -> go.Figure:
    """Log-probability of the answer before and after, the edited prompt on top."""
    places = np.arange(len(result.prompts))
    figure = go.Figure()
    parts = (("before", result.log_prob_before), ("after", result.log_prob_after))
    for (name, values), colour in zip(parts, CATEGORICAL, strict=False):
        figure.add_bar(
            x=float32(values),
            y=places,
            orientation="h",
            name=name,
            marker={"color": colour},
            hovertemplate=f"{name}: %{{x:.2f}} nats<extra></extra>",
        )
    names = [escaped(("… " if len(p) > LONGEST else "") + p[-LONGEST:]) for p in result.prompts]
    figure.update_yaxes(tickvals=places, ticktext=names, autorange="reversed", automargin=True)
    figure.update_xaxes(title={"text": f"log-probability of “{escaped(result.answer)}” (nats)"})
    alt = f"Pairs of bars for {len(names)} prompts. {result.summary()}"
    title = f"Before and after {result.rows} rows of {escaped(result.model)} were edited"
    return finish(figure, title, alt, heatmap_height(len(names)))
