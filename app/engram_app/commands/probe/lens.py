"""`engram probe lens`."""

from typing import Annotated, Any

import typer

from engram_app.commands.probe.common import (
    Checkpoint,
    Data,
    Documents,
    Json,
    Out,
    Seed,
    Text,
    Twin,
    check,
    plain,
    show,
    texts_of,
    with_origin,
)
from engram_app.console import number, progress
from engram_app.opening import open_model


def lens(
    checkpoint: Checkpoint,
    text: Text = None,
    data: Data = None,
    twin: Twin = None,
    out: Out = None,
    documents: Documents = 200,
    tokens: Annotated[str, typer.Option(help="Most tokens to read.")] = "50K",
    topk: Annotated[int, typer.Option(min=1, help="k of the overlap of likeliest tokens.")] = 5,
    by: Annotated[
        str | None, typer.Option(help="Curves apart by mechanism, frequency or position.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What each depth of the model would predict: when is the prediction settled?

    With --twin DIR holds this model's lens, and in DIR/twin and DIR/difference the other's and
    their difference.
    """
    check(out)
    texts, corpus = texts_of(text, data, documents)
    lenses: list[Any] = []
    for name in [checkpoint, *([twin] if twin else [])]:
        lenses.append(_lens(name, texts, number(tokens), topk, by, seed))
    lenses = [with_origin(found, corpus) for found in lenses]
    results = {"": lenses[0]}
    if twin:
        results |= {"twin": lenses[1], "difference": lenses[0].minus(lenses[1], seed)}
    found = results.get("difference", lenses[0])
    show(found, _lens_rows(found), as_json, None)
    if out:
        for folder, result in results.items():
            result.save(out / folder)


def _lens(name: str, texts: Any, tokens: int, topk: int, by: str | None, seed: int):
    from engram_probes import logit_lens

    model, tokenizer = open_model(name)
    with progress(f"lens of {name}", "documents") as update:
        return logit_lens(
            model, tokenizer, texts, topk=topk, max_tokens=tokens, by=by, seed=seed, progress=update
        )


def _lens_rows(result) -> list:
    """KL by depth: of one model, or of two with their difference."""
    kl = result.metrics.index("kl")
    if result.kind == "lens":
        table = [result.mean, result.low, result.high]
        names = ["kl", "low", "high"]
    else:
        table = [*result.means, result.difference, result.low, result.high]
        names = [f"kl {result.model}", f"kl {result.other}", "difference", "low", "high"]
    columns = [array[kl] for array in table]
    return [("depth", *names)] + [
        (depth, *(plain(column[depth]) for column in columns)) for depth in range(len(columns[0]))
    ]
