"""Notebook view of a result: small, without scripts."""

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engram_probes.results import Result


def card(result: "Result") -> str:
    """Class, finding and a few facts, as HTML."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(str(name))}</th>"
        f"<td style='text-align:left'>{escape(_text(value))}</td></tr>"
        for name, value in result.facts().items()
    )
    return (
        f"<div><strong>{escape(type(result).__name__)}</strong>"
        f"<p>{escape(result.summary())}</p><table>{rows}</table></div>"
    )


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(str(item) for item in value)
    return str(value)
