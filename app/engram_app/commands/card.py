"""`engram card`: the model card of a checkpoint, with the evaluations it states."""

from pathlib import Path
from typing import Annotated

import typer

from engram_app.console import print_text, progress


def card(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Folder of a training run.")],
    tokens: Annotated[
        Path, typer.Option(metavar="DIR", help="The token file it was trained on (tokenize).")
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="SPEC", help="Evaluate on this too, beside the world; repeatable."),
    ] = None,
    about: Annotated[
        str, typer.Option(help="A paragraph on the corpus: what it is, whose, its licence.")
    ] = "",
    evaluation: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What `engram eval --out` wrote of it.")
    ] = None,
) -> None:
    """Evaluate a checkpoint and write its README.md and card.json."""
    from engram_model.card import write_card

    with progress("evaluating", "tokens") as update:
        write_card(checkpoint, tokens, tuple(data or ()), about, update, evaluation)
    print_text(str(checkpoint / "README.md"))
