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
    tokens: Annotated[
        str | None, typer.Option(help="Most tokens of the corpus to read; else 20K.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random choice; else 0.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML: these options, and checks on the numbers."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace whatever DIR holds.")] = False,
) -> None:
    """Write report.html, report.json, arrays and tables to DIR.

    Where a check of the config does not hold, the report is written and the exit code is 4.
    """
    from engram_app.report import write_report
    from engram_app.report.config import read_config

    given = read_config(config) if config else {}
    if seed is None:
        seed = given.get("seed", 0)

    path = write_report(
        checkpoint,
        out,
        twin=twin or given.get("twin"),
        data=data or given.get("data"),
        tokens=number(str(tokens or given.get("tokens", "20K"))),
        seed=seed,
        force=force,
        checks=given.get("checks", ()),
        command=command_line(),
    )
    print_text(str(path))
