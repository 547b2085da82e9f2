"""`engram probe attribute`."""

from typing import Annotated

import typer

from engram_app.commands.probe.common import Checkpoint, Json, Out, check, show
from engram_app.console import command_line
from engram_app.opening import open_model


def attribute(
    checkpoint: Checkpoint,
    text: Annotated[str, typer.Option(help="The text to read.")],
    target: Annotated[
        str | None, typer.Option(help="A token, its space included; else the likeliest next one.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="A second token: shares of the difference.")
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Who wrote the logit of the next token: exact shares, the memory by order and head."""
    check(out)
    import engram_probes as ep

    model, tokenizer = open_model(checkpoint)
    result = ep.attribute(model, tokenizer, text, target, against=against)
    pairs = zip(result.components, result.contribution.tolist(), strict=True)
    show(
        result.with_provenance(command=command_line()),
        [("component", "contribution"), *pairs],
        as_json,
        out,
    )
