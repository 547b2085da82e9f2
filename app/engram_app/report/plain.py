"""report.md and report.txt: the report without its figures, from what report.json holds."""

import textwrap
from typing import Any

from engram_model.markdown import table

WIDTH = 80
MOST_ROWS = 40  # of a table in Markdown; longer ones are in tables/


def title(report: dict[str, Any]) -> str:
    """The models that the report is about."""
    return " against ".join(model["name"] for model in report["provenance"]["models"])


def shown(number: dict[str, Any], field: str = "value") -> str:
    """With a sign where the number is a difference, and a true minus; small ones to more places."""
    sign = "+" if number["difference"] else ""
    places = 2 if number["value"] == 0 or abs(number["value"]) >= 0.1 else 3
    return format(number[field], f"{sign}.{places}f").replace("-", "\N{MINUS SIGN}")


def interval(number: dict[str, Any]) -> str:
    if number["low"] is None:
        return "–"
    return f"{shown(number, 'low')} to {shown(number, 'high')}"


def about(report: dict[str, Any]) -> str:
    corpus = report["provenance"]["corpus"]
    return (
        f"{report['created_utc'][:10]} · {report['spec']['data']} · {corpus['tokens']:,} tokens of "
        f"{corpus['documents']:,} documents · {report['provenance']['device']}, "
        f"{report['provenance']['dtype']}"
    )


def facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What Reproduction lists."""
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
        ("seconds", seconds(report)),
    ]


def seconds(report: dict[str, Any]) -> str:
    """Of each stage, and of all."""
    took = report["timings"]
    stages = ", ".join(f"{name} {value:.1f}" for name, value in took.items())
    return f"{stages}; in all {sum(took.values()):.0f}"


def verdict(check: dict[str, Any]) -> str:
    value = "no such number" if check["value"] is None else f"is {check['value']:.4g}"
    return f"{'Holds' if check['passed'] else 'Fails'}: {check['check']} ({value})"


def markdown(report: dict[str, Any]) -> str:
    """report.md. Figures are in report.html; their descriptions and numbers are here."""
    parts = [
        f"# {safe(title(report))}",
        safe(about(report)),
        _listed(report["findings"]),
        "## Read this first\n\n" + _listed(report["alerts"]),
    ]
    if report["checks"]:
        parts.append("## Checks\n\n" + _listed(verdict(check) for check in report["checks"]))
    parts.append("## Numbers\n\n" + _numbers(report["key_numbers"]))
    parts += [_section(section) for section in report["sections"]]
    rows = [[_cell(name), _cell(value)] for name, value in facts(report)]
    command = f"    {report['command']}\n\n" if report["command"] else ""
    parts.append(f"## Reproduction\n\n{command}{table(['what', 'value'], rows)}")
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _listed(sentences) -> str:
    return "\n".join(f"- {safe(sentence)}" for sentence in sentences)


def _numbers(numbers: list[dict[str, Any]]) -> str:
    header = ["number", "what", "value", "95% interval", "unit", "over"]
    rows = [
        [
            f"`{n['id']}`",
            _cell(n["name"]),
            shown(n),
            interval(n),
            _cell(n["unit"]),
            _cell(n["over"]),
        ]
        for n in numbers
    ]
    return table(header, rows)


def _section(section: dict[str, Any]) -> str:
    parts = [f"## {section['title']}", f"*{safe(section['question'])}*", safe(section["finding"])]
    for figure in section["figures"]:
        parts.append(f"Figure in report.html: {safe(figure['caption'])} {safe(figure['alt'])}")
        parts.append(_table(figure["table"], section["results"]))
    parts.append(f"**Method.** {safe(section['method'])}")
    parts.append("**Caveats.**\n\n" + _listed(section["caveats"]))
    return "\n\n".join(part.rstrip("\n") for part in parts)


def _table(numbers: dict[str, Any], results: list[str]) -> str:
    rows = [[_cell(value) for value in row] for row in numbers["rows"][:MOST_ROWS]]
    shown_rows = table([_cell(name) for name in numbers["header"]], rows)
    left = len(numbers["rows"]) - len(rows)
    files = ", ".join(f"tables/{name}.csv" for name in results)
    more = f"\n\nand {left:,} rows more: {files}" if left else ""
    return f"{safe(numbers['title'])}:\n\n{shown_rows.rstrip()}{more}"


def safe(text: str) -> str:
    """Nothing in it is read as Markdown or HTML."""
    for character in "\\`*_<>[]#|":
        text = text.replace(character, f"\\{character}")
    return text


def _cell(text: str) -> str:
    return safe(text).replace("\n", " ")


def text(report: dict[str, Any]) -> str:
    """report.txt: findings, alerts, checks and numbers, 80 columns wide."""
    lines = [title(report), "=" * min(WIDTH, len(title(report))), *_wrapped(about(report)), ""]
    for heading, sentences in (
        ("Findings", report["findings"]),
        ("Read this first", report["alerts"]),
        ("Checks", [verdict(check) for check in report["checks"]]),
    ):
        if sentences:
            lines += [heading, "-" * len(heading)]
            for sentence in sentences:
                lines += _wrapped(sentence, "- ")
            lines.append("")
    lines += ["Numbers", "-------"]
    for number in report["key_numbers"]:
        ends = "" if number["low"] is None else f" [{interval(number)}]"
        value = f"{shown(number)}{ends} {number['unit']}"
        lines += _wrapped(f"{number['id']}: {value}", "  ")
    lines += ["", *_wrapped(f"Seconds: {seconds(report)}")]
    return "\n".join(lines) + "\n"


def _wrapped(sentence: str, first: str = "") -> list[str]:
    return textwrap.wrap(
        sentence,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * max(2, len(first)) if first else "",
        break_on_hyphens=False,
    )
