"""`engram probe heads`."""

from typing import Annotated

import typer

from engram_app.commands.probe.common import (
    Checkpoint,
    Json,
    Out,
    Seed,
    check,
    names,
    show,
)
from engram_app.console import command_line, progress
from engram_app.opening import open_model


def heads(
    checkpoint: Checkpoint,
    text: Annotated[str, typer.Option(help="The text that the heads read.")],
    how: Annotated[str, typer.Option(help="How the memory is changed.")] = "zero",
    controls: Annotated[str, typer.Option(help="Changes as large: noise, other.")] = "noise,other",
    draws: Annotated[int, typer.Option(min=1, help="Of each control.")] = 8,
    most: Annotated[int, typer.Option(min=2, help="Cells along a side of a pattern.")] = 128,
    out: Out = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Where each head of one text looks, and how far that moves without the memory."""
    check(out)
    import engram_probes as ep

    model, tokenizer = open_model(checkpoint)
    options = {"how": how, "controls": names(controls), "draws": draws, "most": most, "seed": seed}
    with progress("reading attention", "passes") as update:
        found = ep.attention_map(model, tokenizer, text, progress=update, **options)
    found = found.with_provenance(command=command_line())
    show(found, _rows(found), as_json, out)


def _rows(result) -> list:
    """One row for each layer and head."""
    frame = result.to_frame()
    return [tuple(frame.columns), *frame.astype(object).itertuples(index=False, name=None)]
