"""Figure of an `Attribution`."""

import numpy as np
import plotly.graph_objects as go

from engram_probes.attribution import Attribution
from engram_probes.figures.style import CATEGORICAL, escaped, finish, float32, heatmap_height


def attribution_figure(result: Attribution, most: int) -> go.Figure:
    """Horizontal bars, oldest writer on top; beyond `most` the small ones are one bar."""
    order = np.argsort(-np.abs(result.contribution))
    shown = np.sort(order[:most])
    names = [result.components[i] for i in shown]
    values = result.contribution[shown].tolist()
    memory = result.from_memory[shown].tolist()
    if len(order) > most:
        names.append(f"{len(order) - most} others")
        values.append(float(result.contribution[order[most:]].sum()))
        memory.append(False)
    figure = go.Figure()
    for is_memory, name in ((False, "attention, MLP, embedding"), (True, "memory")):
        places = [i for i, m in enumerate(memory) if m == is_memory]
        figure.add_bar(
            x=float32(np.array(values)[places]),
            y=places,
            orientation="h",
            name=name,
            marker={"color": CATEGORICAL[int(is_memory)]},
            customdata=[names[i] for i in places],
            hovertemplate="%{customdata}: %{x:+.3f}<extra></extra>",
        )
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, autorange="reversed")
    what = escaped(result.target) + (f" less {escaped(result.against)}" if result.against else "")
    figure.update_xaxes(
        title={"text": f"share of the logit of {what} ({result.logit:+.2f} in all)"}
    )
    title = f"Who wrote “{what}” after “{escaped(result.tokens[-1])}”"
    alt = f"Bars of the shares of {len(names)} components. {result.summary()}"
    figure = finish(figure, title, alt, heatmap_height(len(names)))
    return figure.update_layout(margin={"l": 180}, barmode="overlay")
