"""`engram probe intervene`."""

from typing import Annotated

import typer

from engram_app.commands.probe.common import (
    Checkpoint,
    Json,
    Out,
    Seed,
    check,
    plain,
    show,
    with_origin,
)
from engram_app.console import progress
from engram_app.opening import open_model


def intervene(
    checkpoint: Checkpoint,
    text: Annotated[str, typer.Option(help="The text to read.")],
    edit: Annotated[
        list[str] | None,
        typer.Option(metavar="SPEC", help="HOW[=VALUE][@KEY=N,...]; again for more. Else zero."),
    ] = None,
    generate: Annotated[int, typer.Option(min=0, help="Tokens to go on by.")] = 0,
    controls: Annotated[int, typer.Option(min=0, help="Runs with a random change as large.")] = 0,
    topk: Annotated[int, typer.Option(min=1, help="Likeliest next tokens to keep.")] = 5,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """What a text's tokens lose, and how it goes on, when the memory is edited."""
    check(out)
    import engram_probes as ep

    model, tokenizer = open_model(checkpoint)
    with progress("reading", "passes") as update:
        found = ep.intervene(
            model,
            tokenizer,
            text,
            edit or ("zero",),
            generate=generate,
            topk=topk,
            controls=controls,
            seed=seed,
            progress=update,
        )
    found = with_origin(found, None)
    show(found, _rows(found), as_json, out)


def _rows(result) -> list:
    """One row for each token."""
    rows: list = [("position", "token", "intact", "edited", "helped", "kl")]
    for place, token in enumerate(result.tokens):
        numbers = (*result.surprisal[:, place], result.helped[place], result.kl[place])
        rows.append((place, token, *map(plain, numbers)))
    return rows
