"""`engram card`: the model card of a checkpoint, from the evaluations it is given."""

from pathlib import Path
from typing import Annotated

import typer

from engram_app.console import print_text


def card(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Folder of a training run.")],
    tokens: Annotated[
        Path, typer.Option(metavar="DIR", help="The token file it was trained on (tokenize).")
    ],
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="What `engram eval --out` wrote of it; repeatable."),
    ] = None,
    about: Annotated[
        str, typer.Option(help="A paragraph on the corpus: what it is, whose, its licence.")
    ] = "",
) -> None:
    """Write a checkpoint's README.md and card.json."""
    from engram_model.card import write_card

    write_card(checkpoint, tokens, evaluation or (), about)
    print_text(str(checkpoint / "README.md"))
