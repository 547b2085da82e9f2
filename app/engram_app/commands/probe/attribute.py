"""`engram probe attribute`."""

from typing import Annotated

import typer

from engram_app.commands.probe.common import Checkpoint, Json, Out, Seed, check, plain, show
from engram_app.console import command_line
from engram_app.opening import open_model


def attribute(
    checkpoint: Checkpoint,
    text: Annotated[str, typer.Option(help="The text whose next token is asked for.")],
    target: Annotated[
        str | None,
        typer.Option(help='One token, with its space: " Paris". Without: the likeliest.'),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="A second token, whose logit is subtracted.")
    ] = None,
    position: Annotated[
        int | None,
        typer.Option(
            min=0, help="After which token of the text, 0 being <bos>. Without: the last."
        ),
    ] = None,
    heads: Annotated[bool, typer.Option("--heads", help="Attention by its heads.")] = False,
    draws: Annotated[int, typer.Option(min=1, help="Random rows for each row looked up.")] = 1000,
    out: Out = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Who wrote a logit: every component's share, the memory row by row; they sum to it."""
    check(out)
    from engram_probes import attribute as attribution

    model, tokenizer = open_model(checkpoint)
    result = attribution(
        model,
        tokenizer,
        text,
        target,
        against,
        position=position,
        heads=heads,
        draws=draws,
        seed=seed,
    )
    result = result.with_provenance(command=command_line())
    show(result, _rows(result), as_json, out)


def _rows(result) -> list:
    """One row for each component; of a memory's rows also slot and what random rows add."""
    rows: list = [("component", "part", "contribution", "slot", "random_low", "random_high")]
    for i, name in enumerate(result.components):
        slot = int(result.slots[i]) if result.slots[i] >= 0 else None
        numbers = (plain(result.random_low[i]), plain(result.random_high[i]))
        rows.append((name, result.parts[i], float(result.contribution[i]), slot, *numbers))
    return rows
