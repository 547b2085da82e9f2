"""`engram probe edit`."""

from typing import Annotated, Any

import typer

from engram_app.commands.probe.common import (
    Checkpoint,
    Data,
    Documents,
    Json,
    Out,
    check,
    show,
    texts_of,
    with_origin,
)
from engram_app.opening import open_model

PATCH = "patch.safetensors"


def edit(
    checkpoint: Checkpoint,
    text: Annotated[str, typer.Option(help="The prompt.")],
    answer: Annotated[str, typer.Option(help="What is to follow, its space included.")],
    at: Annotated[
        str | None, typer.Option(help="Write at the last token of this; else of the prompt.")
    ] = None,
    method: Annotated[str, typer.Option(help="gradient or closed.")] = "gradient",
    paraphrase: Annotated[
        list[str] | None, typer.Option(help="Another prompt for the answer; repeatable.")
    ] = None,
    data: Data = None,
    documents: Documents = 100,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Write a fact into a memory's rows, and measure what else changes. The checkpoint stays.

    DIR holds the result and patch.safetensors, the edited rows.
    """
    check(out)
    from engram_probes import editing

    texts, corpus = texts_of(None, data, documents)
    model, tokenizer = open_model(checkpoint)
    result, patch = editing.edit(
        model,
        tokenizer,
        text,
        answer,
        at=at,
        method=method,
        paraphrases=paraphrase or (),
        texts=texts,
        max_documents=documents,
    )
    show(with_origin(result, corpus), _rows(result), as_json, out)
    if out:
        patch.save(out / PATCH)


def _rows(result) -> list[tuple[Any, ...]]:
    """One row for each prompt."""
    frame = result.to_frame().drop(columns="edited")
    return [tuple(frame.columns), *frame.itertuples(index=False, name=None)]
