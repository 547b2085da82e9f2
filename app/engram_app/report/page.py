"""report.html: one file that draws offline, under a policy that forbids every request."""

import base64
import gzip
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from engram_app.report.sections import Section

HERE = Path(__file__).parent


def render(report: dict[str, Any], parts: list[Section]) -> str:
    """The page.

    Args:
        report: what report.json holds.
        parts: its sections.
    """
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
    return environment.get_template("report.html.j2").render(
        report=report,
        sections=parts,
        title=title(report),
        about=_about(report),
        facts=_facts(report),
        shown=_shown,
        policy=Markup(_policy(script)),
        css=Markup(_read("report.css")),
        js=Markup(script),
        figures=Markup(_figures(parts)),
        plotly=Markup(_plotly()),
    )


def title(report: dict[str, Any]) -> str:
    """The models that the report is about."""
    return " against ".join(model["name"] for model in report["provenance"]["models"])


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Scripts: the one in the page, by its checksum, and the unpacked plotly.js. No request."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}' blob:; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _figures(parts: list[Section]) -> str:
    """name -> figure, as JSON that cannot end the script element it stands in."""
    drawn = [
        f'"{figure.name}": {figure.figure.to_json()}' for part in parts for figure in part.figures
    ]
    return ("{" + ", ".join(drawn) + "}").replace("<", "\\u003c")


@lru_cache(maxsize=1)
def _plotly() -> str:
    from engram_probes.figures.script import plotly_js

    return base64.b64encode(gzip.compress(plotly_js().encode(), 9, mtime=0)).decode()


def _about(report: dict[str, Any]) -> str:
    corpus = report["provenance"]["corpus"]
    return (
        f"{report['created_utc'][:10]} · {report['spec']['data']} · "
        f"{corpus['documents']:,} documents · {report['provenance']['device']}, "
        f"{report['provenance']['dtype']}"
    )


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The table of the last section."""
    came = report["provenance"]
    parameters, memory = report["model"]["parameters"], report["model"]["memory"]
    rows = sum(memory.get("rows", {}).values())
    return [
        *((f"weights of {m['name']}", f"sha256 {m['weights_sha256']}") for m in came["models"]),
        ("tokenizer", f"sha256 {came['tokenizer_sha256']}"),
        ("parameters", f"{parameters['total']:,}, of which active {parameters['active']:,}"),
        ("memory", f"{rows:,} rows in layers {', '.join(map(str, memory['layers'])) or 'none'}"),
        ("corpus", f"{came['corpus']['source']['spec']}, sha256 {came['corpus']['sha256']}"),
        ("seed", str(came["seed"])),
        ("device", f"{came['device']}, {came['dtype']}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in came["versions"].items())),
        ("machine", f"Python {came['python']}, {came['platform']}"),
        ("seconds", ", ".join(f"{name} {took:g}" for name, took in report["timings"].items())),
    ]


def _shown(number: dict[str, Any], field: str = "value") -> str:
    """With a sign where the number is a difference, and a true minus."""
    sign = "+" if number["difference"] else ""
    return format(number[field], f"{sign}.2f").replace("-", "\N{MINUS SIGN}")
