"""`engram probe attention`."""

from typing import Annotated

import typer

from engram_app.commands.probe.common import (
    Changes,
    Checkpoint,
    Data,
    Documents,
    Json,
    Out,
    Seed,
    Text,
    Twin,
    check,
    names,
    plain,
    show,
    texts_of,
    with_origin,
)
from engram_app.console import number, progress
from engram_app.opening import open_model


def attention(
    checkpoint: Checkpoint,
    text: Text = None,
    data: Data = None,
    twin: Twin = None,
    out: Out = None,
    documents: Documents = 1000,
    tokens: Annotated[str, typer.Option(help="Most tokens of a corpus to read.")] = "50K",
    changes: Changes = "zero,noise",
    sequences: Annotated[int, typer.Option(min=2, help="Random ones, for induction.")] = 20,
    length: Annotated[int, typer.Option(min=2, help="Tokens before they are repeated.")] = 50,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What the heads look at, and whether the memory relieves them of what is near.

    With --text the patterns of this text are kept. Scores of every head: attention to position 0,
    the token before, the tokens near, itself, what followed this token before; with the memory,
    without it, and beside a twin.
    """
    check(out)
    import engram_probes as ep

    texts, corpus = texts_of(text, data, documents)
    model, tokenizer = open_model(checkpoint)
    other = open_model(twin)[0] if twin else None
    with progress("reading attention", "documents") as update:
        found = ep.attention_patterns(
            model,
            tokenizer,
            texts,
            twin=other,
            changes=names(changes),
            max_tokens=number(tokens),
            sequences=sequences,
            length=length,
            seed=seed,
            progress=update,
        )
    found = with_origin(found, corpus)
    show(found, _rows(found), as_json, out)


def _rows(result) -> list:
    """One row for each score and layer, means over heads."""
    twin = result.difference is not None
    rows: list = [("score", "layer", "mean", *result.changes, *(("twin",) if twin else ()))]
    for place, score in enumerate(result.scores):
        for index, layer in enumerate(result.layers):
            at = (place, index)
            changes = [plain(change[at]) for change in result.layer_change]
            other = [plain(result.twin_layer[at])] if twin else []
            rows.append((score, layer, plain(result.layer_mean[0][at]), *changes, *other))
    return rows
