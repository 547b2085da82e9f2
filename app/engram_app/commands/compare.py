"""`engram compare`: two models on the same evaluation, with intervals over texts and seeds."""

from pathlib import Path
from typing import Annotated, Any

import typer

from engram_app.console import command_line, print_json, print_rows

HEADERS = ("quantity", "first", "second", "difference", "low", "high", "first has", "units")


def compare(
    first: Annotated[
        list[Path],
        typer.Argument(metavar="DIR ...", help="What `engram eval --out` or `engram train` wrote."),
    ],
    against: Annotated[
        list[Path],
        typer.Option("--with", metavar="DIR", help="The same of the other model; repeatable."),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the differences as JSON.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Differences of two models on the same texts and items, first minus second.

    Give a folder a seed of each model. A difference is decided if its 95% interval, over texts and
    seeds, leaves out zero. Of training runs the valid loss at the end is compared, over seeds.
    """
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
