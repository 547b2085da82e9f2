"""`engram report`: all probes of a checkpoint in one self-contained page."""

from pathlib import Path
from typing import Annotated

import typer

from engram_app.console import command_line, number, print_text


def report(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CKPT", help="A folder, or the name of a bundled checkpoint.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the report.")],
    twin: Annotated[
        str | None, typer.Option(metavar="CKPT", help="A model to compare with.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="A corpus; default the synthetic world's valid split."),
    ] = None,
    tokens: Annotated[str, typer.Option(help="Most tokens of the corpus to read.")] = "20K",
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    force: Annotated[bool, typer.Option(help="Replace whatever DIR holds.")] = False,
) -> None:
    """Write report.html, report.json, arrays and tables to DIR."""
    from engram_app.report import write_report

    path = write_report(
        checkpoint,
        out,
        twin=twin,
        data=data,
        tokens=number(tokens),
        seed=seed,
        force=force,
        command=command_line(),
    )
    print_text(str(path))
