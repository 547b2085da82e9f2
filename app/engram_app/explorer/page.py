"""What every page has: errors in one line, figures with their table, where it all comes from."""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import streamlit as st

from engram_app.explorer.export import picture_buttons
from engram_model.errors import EngramError
from engram_probes.provenance import Provenance
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FRAME = "#56B4E9"  # legible on every colour of the maps, in both themes
OnCell = Callable[[int, int], None]
OnBar = Callable[[str], None]
MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$:^])")


def plain(text: str) -> str:
    """Text of a model or corpus, so that Markdown shows it as it is."""
    return MARKDOWN.sub(r"\\\1", text)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """An error that the user can act on becomes one line on the page."""
    try:
        yield
    except EngramError as error:
        st.error(plain(str(error)), icon=":material/error:")


def finding(text: str) -> None:
    """The one sentence that a page is about."""
    with st.container(key="finding"):
        st.markdown(plain(text))


def draw(
    figure: "go.Figure",
    title: str,
    key: str,
    position: int | None = None,
    frame: "Callable[[], pd.DataFrame] | None" = None,
    on_cell: OnCell | None = None,
    on_bar: OnBar | None = None,
) -> None:
    """A figure of a probe: its title as text of the page, its description for screen readers.

    Args:
        position: of the token looked at; its column is framed.
        frame: the numbers of the figure; called when they are asked for.
        on_cell: called before the next run with row and column of a clicked cell of the heatmap.
        on_bar: the same with the name of a clicked bar, its customdata.
    """
    alt = (figure.layout.meta or {}).get("alt", title)
    st.markdown(f"**{plain(title)}**")
    figure.update_layout(title=None, margin={"t": 44})
    figure.update_annotations(font={"color": None})
    figure.update_xaxes(automargin=True)
    if position is not None:
        ends = {"x0": position - 0.5, "x1": position + 0.5}
        figure.add_vrect(**ends, line={"color": FRAME, "width": 3}, fillcolor="rgba(0,0,0,0)")
    with st.container(key=f"figure_{key}"):
        _chart(figure, key, alt, on_cell, on_bar)
    with st.container(key=f"under_{key}"):
        picture_buttons(f"figure_{key}", key, title)
        if frame:
            numbers(frame, key)


def _chart(
    figure: "go.Figure", key: str, alt: str, on_cell: OnCell | None, on_bar: OnBar | None
) -> None:
    selecting: dict[str, Any] = {}
    if on_cell:
        from engram_probes.figures.clicks import clickable

        if columns := clickable(figure):
            selecting = _selected(
                key, lambda point: on_cell(*divmod(int(point["point_index"]), columns))
            )
    if on_bar:
        every = {"marker": {"opacity": 1}}  # the one looked at is named on the page
        figure.update_traces(selected=every, unselected=every, selector={"type": "bar"})
        selecting = _selected(key, lambda point: on_bar(_name(point)))
    st.plotly_chart(figure, key=key, alt=alt, config={"displaylogo": False}, **selecting)


def _selected(key: str, act: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """What makes a chart call `act` with the point that is clicked."""

    def call() -> None:
        if points := st.session_state[key].selection.points:
            act(points[0])

    return {"on_select": call, "selection_mode": "points"}


def _name(bar: dict[str, Any]) -> str:
    """The customdata of a clicked bar, which comes alone or in a list."""
    name = bar.get("customdata", "")
    return name if isinstance(name, str) else str(name[0])


def numbers(
    frame: "Callable[[], pd.DataFrame] | pd.DataFrame", name: str, title: str = "The numbers"
) -> None:
    """A table that is made when it is opened, and the same as CSV."""
    opened = st.expander(title, icon=":material/table:", key=f"numbers_{name}", on_change="rerun")
    if not opened.open:
        return
    table = frame() if callable(frame) else frame
    with opened:
        st.dataframe(table, hide_index=True, alt=f"{title}, {len(table)} rows")
        st.download_button(
            "Download CSV",
            lambda: table.to_csv(index=False),
            f"{name}.csv",
            "text/csv",
            icon=":material/download:",
            on_click="ignore",
            key=f"csv_{name}",
        )


def not_here(reason: str) -> None:
    """Why this page does not apply to what is open, and what to do."""
    st.info(plain(reason), icon=":material/info:")


def requested(key: str, label: str, why: str) -> bool:
    """A button for what is computed on request only; True once it was asked for.

    why: what it does and how long that takes.
    """
    asked: set = st.session_state.setdefault("requested", set())
    if key not in asked:
        st.caption(plain(why))
        st.button(
            label,
            key=f"request_{key}",
            type="primary",
            icon=":material/play_arrow:",
            on_click=asked.add,
            args=(key,),
        )
    return key in asked


def origin(result: Result, command: list[str], python: str = "") -> None:
    """Footer: what was measured, with what, and how to measure it again.

    Args:
        command: words of the command line.
        python: the same in a notebook; see `Looking.python`.
    """
    came = result.provenance
    models = " and ".join(
        f"{m['name']} ({m['weights_sha256'][:12]}, {m['dtype']}, {m['device']})"
        for m in came.models
    )
    st.divider()
    versions = ", ".join(
        f"{name} {came.versions[name]}"
        for name in ("engram-workbench", "torch", "transformers")
        if name in came.versions
    )
    facts = [models, f"tokenizer {came.tokenizer_sha256[:12]}", versions]
    facts += [] if came.seed is None else [f"seed {came.seed}"]
    st.caption(plain(" · ".join(facts)))
    with st.expander("Reproduce", icon=":material/terminal:"):
        _ways(came, command, python)


def _ways(came: Provenance, command: list[str], python: str) -> None:
    st.caption("From the command line")
    st.code(shlex.join(command), language="bash", wrap_lines=True)
    if python:
        st.caption("In Python")
        st.code(python, language="python", wrap_lines=True)
    st.caption("Where this result comes from")
    st.code(json.dumps(asdict(came), indent=1, ensure_ascii=False), language="json", height=260)
