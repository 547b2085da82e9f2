"""`engram world`: write the synthetic world to files."""

from pathlib import Path
from typing import Annotated

import typer

from engram_app.console import number, print_text, say
from engram_model.errors import UsageError


def world(
    out: Annotated[Path, typer.Option(metavar="DIR", help="For train, valid and suites/.")],
    seed: Annotated[int, typer.Option(min=0, help="Which world.")] = 0,
    tokens: Annotated[str, typer.Option(help="Size of train, 4 characters each.")] = "1M",
) -> None:
    """Write the synthetic world and its task suites: a document or a task a line."""
    from engram_model.world import export
    from engram_model.world.spec import WorldSpec

    size = number(tokens)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; give a folder")
    say(f"writing {size:,} tokens of world {seed}")
    for path in export(WorldSpec(seed=seed, tokens=size), out).values():
        print_text(str(path))
