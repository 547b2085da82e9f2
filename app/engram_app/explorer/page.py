"""What every page has: errors in one line, figures with their table, where it all comes from."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import streamlit as st

from engram_model.errors import EngramError
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FRAME = "#56B4E9"  # legible on every colour of the maps, in both themes
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


def draw(figure: "go.Figure", title: str, key: str, position: int | None = None) -> None:
    """A figure of a probe: its title as text of the page, its description for screen readers.

    position: of the token looked at; its column is framed.
    """
    alt = (figure.layout.meta or {}).get("alt", title)
    st.markdown(f"**{plain(title)}**")
    figure.update_layout(title=None, margin={"t": 44})
    figure.update_annotations(font={"color": None})
    figure.update_xaxes(automargin=True)
    if position is not None:
        ends = {"x0": position - 0.5, "x1": position + 0.5}
        figure.add_vrect(**ends, line={"color": FRAME, "width": 3}, fillcolor="rgba(0,0,0,0)")
    st.plotly_chart(
        figure,
        key=key,
        alt=alt,
        config={
            "displaylogo": False,
            "toImageButtonOptions": {"format": "svg", "filename": key},
        },
    )


def numbers(frame: "pd.DataFrame", name: str, title: str = "The numbers") -> None:
    """A table, and the same as CSV."""
    with st.expander(title, icon=":material/table:"):
        st.dataframe(frame, hide_index=True, alt=f"{title}, {len(frame)} rows")
        st.download_button(
            "Download CSV",
            frame.to_csv(index=False),
            f"{name}.csv",
            "text/csv",
            icon=":material/download:",
            on_click="ignore",
            key=f"csv_{name}",
        )


def origin(result: Result, command: list[str]) -> None:
    """Footer: what was measured, with what, and the command that measures it again."""
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
        st.caption("The same numbers from the command line")
        st.code(shlex.join(command), language="bash", wrap_lines=True)
        st.caption("Where this result comes from")
        st.code(json.dumps(asdict(came), indent=1, ensure_ascii=False), language="json", height=260)
