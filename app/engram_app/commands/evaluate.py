"""`engram eval`: loss by source, with intervals."""

from typing import Annotated

import typer

from engram_app.console import print_json, print_rows, progress
from engram_app.opening import open_model


def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CKPT", help="A folder, or the name of a bundled checkpoint.")
    ],
    data: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="A corpus; default the synthetic world's valid split."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Windows at a time.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Loss on a corpus: nats a token and bits a byte, by source, with 95% intervals."""
    from engram_model.evaluate import DEFAULT_DATA
    from engram_model.evaluate import evaluate as run

    spec = data or DEFAULT_DATA
    model, tokenizer = open_model(checkpoint)
    with progress("evaluating", "tokens") as update:
        losses = run(model, tokenizer, spec, batch=batch, progress=update)
    if as_json:
        sources = {name: loss.to_dict() for name, loss in losses.items()}
        print_json({"checkpoint": checkpoint, "data": spec, "sources": sources})
        return
    headers = ("source", "nats/token", "low", "high", "bits/byte", "documents", "tokens")
    rows = [
        (
            name,
            f"{loss.loss:.4f}",
            f"{loss.low:.4f}",
            f"{loss.high:.4f}",
            f"{loss.bits_per_byte:.4f}",
            f"{loss.documents:,}",
            f"{loss.tokens:,}",
        )
        for name, loss in losses.items()
    ]
    print_rows(headers, rows, title=spec)
