"""report.html: one file that draws offline, under a policy that forbids every request."""

import base64
import gzip
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from engram_app.report.measure import Stage
from engram_app.report.parts.base import Figure
from engram_app.report.plain import about, facts, interval, shown, title, verdict

HERE = Path(__file__).parent


def render(report: dict[str, Any], stages: Sequence[Stage]) -> str:
    """The page.

    Args:
        report: what report.json holds.
        stages: its parts.
    """
    sections = [(stage.part, stage.section) for stage in stages]
    return fill(
        "report.html.j2",
        [figure for _, section in sections for figure in section.figures],
        report=report,
        sections=sections,
        title=title(report),
        about=about(report),
        facts=facts(report),
        shown=shown,
        interval=interval,
        verdict=verdict,
    )


def fill(template: str, drawn: Sequence[Figure], **values: Any) -> str:
    """A page that draws figures, with what all of them have: policy, style, script, plotly.js."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _read("report.js")
    return environment.get_template(template).render(
        **values,
        policy=Markup(_policy(script)),
        css=Markup(_read("report.css")),
        js=Markup(script),
        figures=Markup(_figures(drawn)),
        plotly=Markup(_plotly()),
    )


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Scripts: the one in the page, by its checksum, and the unpacked plotly.js. No request."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}' blob:; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _figures(drawn: Sequence[Figure]) -> str:
    """name -> figure, as JSON that cannot end the script element it stands in."""
    named = [f'"{figure.name}": {figure.figure.to_json()}' for figure in drawn]
    return ("{" + ", ".join(named) + "}").replace("<", "\\u003c")


@lru_cache(maxsize=1)
def _plotly() -> str:
    from engram_probes.figures.script import plotly_js

    return base64.b64encode(gzip.compress(plotly_js().encode(), 9, mtime=0)).decode()
