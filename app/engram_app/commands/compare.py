"""`engram compare`: two evaluations, trainings or reports, with intervals over texts and seeds."""

from pathlib import Path
from typing import Annotated, Any

import typer

from engram_app.console import command_line, print_json, print_rows, print_text
from engram_model.errors import UsageError

HEADERS = ("quantity", "first", "second", "difference", "low", "high", "first has", "units")


def compare(
    first: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR ...",
            help="What `engram eval --out`, `engram train` or `engram report` wrote.",
        ),
    ],
    against: Annotated[
        list[Path],
        typer.Option("--with", metavar="DIR", help="The same of the other model; repeatable."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="JSON file; of two reports a folder of three."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Differences of two models on the same texts and items, first minus second.

    Give a folder a seed of each model. A difference is decided if its 95% interval, over texts and
    seeds, leaves out zero. Of training runs the valid loss at the end is compared, over seeds. Of
    two reports every key number is compared, and PATH is a folder of HTML, Markdown and JSON.
    """
    from engram_app.report.compare import is_report

    if any(map(is_report, (*first, *against))):
        _compare_reports(first, against, out, seed, as_json)
    else:
        _compare_evaluations(first, against, out, seed, as_json)


def _compare_reports(
    first: list[Path], second: list[Path], out: Path | None, seed: int, as_json: bool
) -> None:
    from engram_app.report.compare import write_comparison
    from engram_app.report.compare_page import HEADER, rows, summary

    if len(first) != 1 or len(second) != 1:
        raise UsageError("reports are compared two at a time; give one on each side")
    document = write_comparison(first[0], second[0], out, seed, command_line())
    if as_json:
        print_json(document)
        return
    print_rows(HEADER, rows(document))
    print_text(summary(document))


def _compare_evaluations(
    first: list[Path], against: list[Path], out: Path | None, seed: int, as_json: bool
) -> None:
    import json

    from engram_model.comparison import compare as run
    from engram_model.files import write_whole
    from engram_model.run_comparison import compare_runs, is_run

    if all(map(is_run, (*first, *against))):
        found = [compare_runs(first, against)]
    else:
        found = run(list(first), list(against), seed)
    differences = [difference.to_dict() for difference in found]
    document: dict[str, Any] = {
        "command": command_line(),
        "first": [folder.name for folder in first],
        "second": [folder.name for folder in against],
        "differences": differences,
    }
    if out:
        write_whole(out, json.dumps(document, indent=1) + "\n")
    if as_json:
        print_json(document)
        return
    names = ("first", "second", "difference", "low", "high")
    rows = [
        (
            difference["what"],
            *(f"{difference[name]:.4f}" for name in names),
            difference["verdict"],
            f"{difference['units']:,}",
        )
        for difference in differences
    ]
    print_rows(HEADERS, rows)
