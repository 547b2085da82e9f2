"""`engram probe linear`."""

from typing import Annotated

import typer

from engram_app.commands.probe.common import (
    Checkpoint,
    Documents,
    Json,
    Out,
    Seed,
    Twin,
    check,
    plain,
    show,
    texts_of,
    with_origin,
)
from engram_app.console import progress
from engram_app.opening import open_model
from engram_model.errors import UsageError

DATA = "world:?seed=0&split=valid&tokens=500K"


def linear(
    checkpoint: Checkpoint,
    data: Annotated[
        str, typer.Option(metavar="SPEC", help="A corpus with spans.", show_default=True)
    ] = DATA,
    label: Annotated[
        str,
        typer.Option(help="tier, mechanism, kind or another field of a span; or a fact: a kind."),
    ] = "tier",
    at: Annotated[
        str | None,
        typer.Option(help="entity (end of a name) or next (token to come); else as fits --label."),
    ] = None,
    twin: Twin = None,
    depths: Annotated[
        str | None, typer.Option(metavar="N,...", help="Blocks run, 0: embedding. Else all.")
    ] = None,
    positions: Annotated[int, typer.Option(min=10, help="Most positions.")] = 2000,
    folds: Annotated[int, typer.Option(min=2, help="Of the cross-validation.")] = 5,
    classes: Annotated[int, typer.Option(min=2, help="Commonest classes to keep.")] = 10,
    documents: Documents = 10_000,
    out: Out = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What can be read from each depth by a linear probe, against its controls."""
    check(out)
    from engram_probes.linear import probe

    chosen = _numbers(depths)
    texts, corpus = texts_of(None, data, documents)
    model, tokenizer = open_model(checkpoint)
    other = open_model(twin)[0] if twin else None
    with progress(f"reading {label}", "probes") as update:
        result = probe(
            model,
            tokenizer,
            texts,
            label=label,
            at=at,  # type: ignore[arg-type]
            depths=chosen,
            twin=other,
            positions=positions,
            most_classes=classes,
            folds=folds,
            seed=seed,
            progress=update,
        )
    show(with_origin(result, corpus), _linear_rows(result), as_json, out)


def _numbers(depths: str | None) -> tuple[int, ...] | None:
    if depths is None:
        return None
    try:
        return tuple(int(number) for number in depths.split(","))
    except ValueError:
        raise UsageError(
            f"depths {depths!r}: give whole numbers with commas, as in 0,4,8"
        ) from None


def _linear_rows(result) -> list:
    """One row for each reading."""
    names = ("accuracy", "control", "selectivity", "bits")
    rows: list = [("source", "depth", "accuracy", "low", "high", *names[1:])]
    for source in dict.fromkeys((*result.baselines, *result.by_depth)):
        depths, accuracy, low, high = result.curve("accuracy", source)
        others = [result.curve(name, source)[1] for name in names[1:]]
        for row, depth in enumerate(depths):
            numbers = (plain(array[row]) for array in (accuracy, low, high, *others))
            rows.append((source, int(depth) if depth >= 0 else None, *numbers))
    return rows
