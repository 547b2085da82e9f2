"""`engram explore`: the explorer in a browser."""

from typing import Annotated

import typer


def explore(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CKPT|RUN]...",
            help="Checkpoints, the one to look at first, then its twin; or folders of saved "
            "results. Default: engram-mini and moe-mini.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 8501,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
) -> None:
    """Open the explorer on this machine (127.0.0.1 only)."""
    from engram_app.explorer.serve import serve

    serve(paths or [], port=port, browser=browser)
