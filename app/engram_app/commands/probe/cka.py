"""`engram probe cka`."""

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
    texts_of,
    with_origin,
)
from engram_app.console import progress
from engram_app.opening import open_model


def cka(
    checkpoint: Checkpoint,
    twin: Annotated[str, typer.Option(metavar="CKPT", help="The baseline: the matrix' rows.")],
    data: Data = None,
    out: Out = None,
    documents: Documents = 1000,
    positions: Annotated[
        str, typer.Option(help="entity (ends of entities), sampled, or auto: as the corpus allows.")
    ] = "auto",
    per_document: Annotated[int, typer.Option(min=1, help="Positions a document at most.")] = 8,
    permutations: Annotated[int, typer.Option(min=0, help="Of the null.")] = 100,
    k: Annotated[int, typer.Option(min=1, help="Rows that enter the soft alignment.")] = 5,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Which layers of two models hold alike representations."""
    check(out)
    from engram_probes import cka as compare

    texts, corpus = texts_of(None, data, documents)
    if positions == "auto":
        positions = "entity" if texts[0].get("spans") else "sampled"
    model, tokenizer = open_model(checkpoint)
    other, _ = open_model(twin)
    with progress("comparing layers", "documents") as update:
        result = compare(
            model,
            other,
            tokenizer,
            texts,
            positions=positions,
            per_document=per_document,
            permutations=permutations,
            k=k,
            seed=seed,
            progress=update,
        )
    show(with_origin(result, corpus), _cka_rows(result), as_json, out)


def _cka_rows(result) -> list:
    """Soft alignment by layer."""
    arrays = (result.soft_index, result.soft_low, result.soft_high)
    return [("layer", "like", "low", "high")] + [
        (layer, *(plain(array[layer]) for array in arrays))
        for layer in range(len(result.soft_index))
    ]
