"""Figure of a `CompressionAudit`."""

import numpy as np
import plotly.graph_objects as go

from engram_probes.compression_audit import CompressionAudit
from engram_probes.figures.style import CATEGORICAL, escaped, finish, heatmap_height

LONGEST = 40


def audit_figure(result: CompressionAudit, most: int) -> go.Figure:
    """A bar for each of the ids that lose most."""
    lost = result.lost
    values = result.raw_tokens - 1 if lost is None else lost
    said = "raw tokens that share the id" if lost is None else "tokens that are another's"
    ids = [i for i in np.argsort(-values, kind="stable")[:most] if values[i] > 0]
    shown = result.raw_tokens if lost is None else lost
    names = [_cut(result.texts[i]) for i in ids]
    figure = go.Figure(
        go.Bar(
            x=shown[ids],
            y=np.arange(len(ids)),
            orientation="h",
            marker_color=CATEGORICAL[0],
            customdata=[escaped(result.texts[i]) for i in ids],
            hovertemplate="%{customdata}<br>%{x:,}<extra></extra>",
        )
    )
    figure.update_yaxes(
        tickvals=list(range(len(ids))), ticktext=names, autorange="reversed",
        title={"text": "raw tokens of one compressed id"},
    )  # fmt: skip
    figure.update_xaxes(title={"text": said})
    title = "What no row can tell apart"
    first = f"most for {result.texts[ids[0]]} ({shown[ids[0]]:,})" if ids else "there are none"
    alt = f"Bars by compressed id. {title}: {said}; {first}."
    figure = finish(figure, title, alt, heatmap_height(len(ids)))
    return figure.update_layout(margin={"l": 260})


def _cut(text: str) -> str:
    return escaped(text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")
