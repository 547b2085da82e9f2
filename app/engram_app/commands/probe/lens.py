"""`engram probe lens`."""

from pathlib import Path
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
from engram_model.checkpoint import find_checkpoint
from engram_model.errors import UsageError


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
    tuned: Annotated[
        bool, typer.Option("--tuned", help="Through the tuned lens saved with each checkpoint.")
    ] = False,
    translators: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Through the tuned lens in DIR, one for each model."),
    ] = None,
    without_memory: Annotated[
        bool, typer.Option("--without-memory", help="Beside itself with its memory zeroed.")
    ] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What each depth of the model would predict: when is the prediction settled?

    With --twin DIR holds this model's lens, and in DIR/twin and DIR/difference the other's and
    their difference; with --without-memory in DIR/without_memory and DIR/difference. `engram
    tune-lens` trains a tuned lens.
    """
    from engram_probes import TunedLens

    check(out)
    if twin and without_memory:
        raise UsageError("give --twin or --without-memory: a difference is of two lenses")
    given = [TunedLens.load(folder) for folder in translators or []]
    texts, corpus = texts_of(text, data, documents)
    lenses: list[Any] = []
    second = "without_memory" if without_memory else "twin"
    others = [(checkpoint, True)] if without_memory else [(twin, False)] if twin else []
    for name, off in [(checkpoint, False), *others]:
        through = (given or [TunedLens.load(find_checkpoint(name))]) if tuned or given else []
        options = {"topk": topk, "by": by, "seed": seed, "without_memory": off}
        lenses.append(_lens(name, texts, number(tokens), through, options))
    lenses = [with_origin(found, corpus) for found in lenses]
    results = {"": lenses[0]}
    if others:
        results |= {second: lenses[1], "difference": lenses[0].minus(lenses[1], seed)}
    found = results.get("difference", lenses[0])
    show(found, _lens_rows(found), as_json, None)
    if out:
        for folder, result in results.items():
            result.save(out / folder)


def _lens(name: str, texts: Any, tokens: int, through: list, options: dict[str, Any]):
    """The lens of a model, through the one of these tuned lenses that is its own."""
    from engram_probes import logit_lens

    model, tokenizer = open_model(name)
    own = [lens for lens in through if lens.belongs_to(model)]
    unit = "tokens" if isinstance(texts, str) else "documents"
    with progress(f"lens of {name}", unit) as update:
        return logit_lens(
            model,
            tokenizer,
            texts,
            max_tokens=tokens,
            translators=(own or through or [None])[0],
            progress=update,
            **options,
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
