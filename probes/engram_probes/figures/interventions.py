"""Figures of an `Intervention`."""

import plotly.graph_objects as go

from engram_probes.figures.style import CATEGORICAL, escaped, finish, token_axis
from engram_probes.interventions import Intervention


def tokens_figure(result: Intervention) -> go.Figure:
    """Bars: by how much each token is predicted worse when edited; lines: the control."""
    places = list(range(len(result.tokens)))
    figure = go.Figure(
        go.Bar(
            x=places,
            y=result.helped,
            name="edited",
            marker={"color": CATEGORICAL[0]},
            customdata=[escaped(token) for token in result.tokens],
            hovertemplate="%{customdata} (%{x})<br>%{y:.3f} nats<extra></extra>",
        )
    )
    if result.control_surprisal is not None:
        mean, low, high = result.control_surprisal
        figure.add_trace(
            go.Scatter(
                x=places,
                y=mean,
                mode="markers",
                name="as large, random, 95%",
                marker={"color": "#222222", "size": 4},
                error_y={"array": high - mean, "arrayminus": mean - low, "width": 0},
            )
        )
    figure.update_xaxes(**token_axis(result.tokens))
    figure.update_yaxes(title={"text": "rise of surprisal (nats)"}, zerolinecolor="#555555")
    return finish(figure, f"Edited: {escaped(', '.join(result.edits))}", result.summary())


def next_figure(result: Intervention, position: int) -> go.Figure:
    """Bars: probabilities of the next token's candidates, intact and edited."""
    rows: dict[int, tuple[str, tuple[float, float]]] = {}
    for listed in range(2):
        for rank, token in enumerate(result.next_ids[listed, position].tolist()):
            probs = result.next_probs[listed, :, position, rank]
            text = result.next_texts[listed][position][rank]
            rows.setdefault(token, (escaped(text), (float(probs[0]), float(probs[1]))))
    places = list(range(len(rows)))
    figure = go.Figure()
    for condition, name in enumerate(("intact", "edited")):
        figure.add_trace(
            go.Bar(
                x=[probs[condition] for _, probs in rows.values()],
                y=places,
                orientation="h",
                name=name,
                marker={"color": CATEGORICAL[condition]},
            )
        )
    figure.update_yaxes(
        title={"text": "next token"},
        tickvals=places,
        ticktext=[text for text, _ in rows.values()],
        range=[len(rows) - 0.5, -0.5],
        automargin=True,
    )
    figure.update_xaxes(title={"text": "probability"}, range=[0, 1])
    title = f"What follows “{escaped(result.tokens[position])}” (position {position})"
    alt = f"{title}: {len(rows)} candidates, their probability intact and edited."
    return finish(figure, title, alt, 200 + 40 * len(rows))
