"""`engram report`: probes of a checkpoint in one self-contained page."""

from pathlib import Path
from typing import Annotated

import typer

from engram_app.console import command_line, number, print_text, say


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
    probes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...", help="What to measure; else those of the default that apply."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="TOML: these options, options of probes, checks on the numbers."
        ),
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace whatever DIR holds.")] = False,
) -> None:
    """Write the report as HTML, Markdown, text and JSON, with arrays and tables, to DIR.

    Where a check of the config does not hold, the report is written and the exit code is 4. A run
    that was stopped goes on where it was if it is started again.
    """
    from engram_app.report import write_report
    from engram_app.report.checks import CheckFailed
    from engram_app.report.spec import read_config
    from engram_app.report.write import TEXT_FILE

    given = read_config(config) if config else {}
    if seed is None:
        seed = given.get("seed", 0)
    try:
        path = write_report(
            checkpoint,
            out,
            twin=twin or given.get("twin"),
            data=data or given.get("data"),
            tokens=number(str(tokens or given.get("tokens", "20K"))),
            seed=seed,
            probes=probes.split(",") if probes else given.get("probes"),
            options=given.get("options"),
            checks=given.get("checks", ()),
            force=force,
            command=command_line(),
        )
    except CheckFailed:
        say((out / TEXT_FILE).read_text(encoding="utf-8"))
        raise
    say((out / TEXT_FILE).read_text(encoding="utf-8"))
    print_text(str(path))
