"""`engram probe rows`."""

from typing import Annotated

import typer

from engram_app.commands.probe.common import (
    Checkpoint,
    Data,
    Documents,
    Json,
    Out,
    Seed,
    check,
    plain,
    show,
    slots_of,
    texts_of,
    with_origin,
)
from engram_app.console import number, progress
from engram_app.opening import open_model


def rows(
    checkpoint: Checkpoint,
    data: Data = None,
    slots: Annotated[
        str | None, typer.Option(metavar="[LAYER:]ROW,...", help="These rows of the table.")
    ] = None,
    ngram: Annotated[
        str | None,
        typer.Option(
            help='The rows that an n-gram reads: " Diana, Princess". Default: the most '
            "read row of each head."
        ),
    ] = None,
    by: Annotated[str, typer.Option(help="contribution or gate.")] = "contribution",
    top: Annotated[int, typer.Option(min=1, help="Reads kept of each row.")] = 10,
    around: Annotated[int, typer.Option(min=0, help="Tokens shown on each side.")] = 8,
    controls: Annotated[
        int, typer.Option(min=0, help="Random rows of the same head, for each.")
    ] = 20,
    out: Out = None,
    documents: Documents = 1000,
    tokens: Annotated[str, typer.Option(help="Most tokens to read.")] = "50K",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Where in a corpus rows of the memory speak loudest, against random rows."""
    check(out)
    from engram_probes import row_contexts

    chosen = slots_of(slots)
    texts, corpus = texts_of(None, data, documents)
    model, tokenizer = open_model(checkpoint)
    with progress("reading rows", "documents") as update:
        result = row_contexts(
            model,
            tokenizer,
            texts,
            chosen,
            ngram=ngram,
            by=by,
            k=top,
            around=around,
            controls=controls,
            max_tokens=number(tokens),
            seed=seed,
            progress=update,
        )
    show(with_origin(result, corpus), _rows(result), as_json, out)


def _rows(result) -> list:
    """One row for each read that was kept."""
    names = ("layer", "order", "head", "slot", "reads", "mean", "random_rows", result.by, "gate")
    found: list = [(*names, "document", "text")]
    for row, rank in zip(*(result.document >= 0).nonzero(), strict=True):
        numbers = (result.mean[row], result.control[row], result.strength[row, rank])
        text = f"{result.before[row][rank]}[{result.token[row][rank]}]{result.after[row][rank]}"
        found.append(
            (
                result.layers[row],
                result.orders[row],
                result.heads[row],
                int(result.slots[row]),
                int(result.reads[row]),
                *(plain(value) for value in numbers),
                plain(result.gate[row, rank].mean()),
                int(result.document[row, rank]),
                text,
            )
        )
    return found
