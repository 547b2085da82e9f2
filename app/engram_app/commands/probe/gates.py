"""`engram probe gates`."""

from typing import Annotated

import typer

from engram_app.commands.probe.common import (
    Checkpoint,
    Json,
    Out,
    check,
    plain,
    show,
)
from engram_app.console import command_line
from engram_app.opening import open_model


def gates(
    checkpoint: Checkpoint,
    text: Annotated[str, typer.Option(help="The text to read.")],
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Where the memory speaks: score, gate and what it adds, on every token of a text."""
    check(out)
    from engram_probes import gate_map

    model, tokenizer = open_model(checkpoint)
    result = gate_map(model, tokenizer, text)
    result = result.with_provenance(command=command_line())
    show(result, _gate_rows(result), as_json, out)


def _gate_rows(result) -> list:
    """One row for each token and memory layer."""
    rows: list = [("position", "token", "layer", "score", "gate", "added", "next_surprisal")]
    values = {what: result.values(what) for what in ("score", "gate", "added")}
    for position, token in enumerate(result.tokens):
        for index, layer in enumerate(result.layers):
            numbers = [plain(values[what][index, position]) for what in values]
            surprisal = plain(result.next_surprisal[position])
            rows.append((position, token, layer, *numbers, surprisal))
    return rows
