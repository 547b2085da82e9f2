"""`engram probe cka`."""

from typing import Annotated, Any

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
from engram_model.errors import UsageError


def cka(
    checkpoint: Checkpoint,
    twin: Annotated[
        str,
        typer.Option(metavar="CKPT", help="The baseline: the matrix' rows. May be CKPT itself."),
    ],
    data: Data = None,
    out: Out = None,
    documents: Documents = 1000,
    positions: Annotated[
        str,
        typer.Option(
            help="entity (ends of entities), kind:NAME or mechanism:NAME (ends of such spans), "
            "sampled, or auto: entity if the corpus allows, else sampled."
        ),
    ] = "auto",
    per_document: Annotated[int, typer.Option(min=1, help="Positions a document at most.")] = 8,
    permutations: Annotated[int, typer.Option(min=0, help="Of the null.")] = 100,
    k: Annotated[int, typer.Option(min=1, help="Rows that enter the soft alignment.")] = 5,
    second: Annotated[
        bool, typer.Option(help="Also neighbours, Procrustes and RSA; slow for wide models.")
    ] = True,
    sinks: Annotated[bool, typer.Option(help="Also CKA with special tokens put back.")] = True,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="CKPT,...", help="Earlier checkpoints of CKPT: alignment over training."
        ),
    ] = None,
    null: Annotated[
        str | None,
        typer.Option(metavar="CKPT", help="With --steps: another training of the twin."),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Which layers of two models hold alike representations."""
    check(out)
    if null and not steps:
        raise UsageError("--null is for --steps; else give the other seed as --twin")
    texts, corpus = texts_of(None, data, documents)
    if positions == "auto":
        positions = "entity" if texts[0].get("spans") else "sampled"
    options = {"positions": positions, "per_document": per_document, "k": k, "seed": seed}
    if steps:
        result = _over_training([*steps.split(","), checkpoint], twin, null, texts, options)
        rows = _training_rows(result)
    else:
        more = {"permutations": permutations, "second": second, "sinks": sinks}
        result = _compared(checkpoint, twin, texts, {**options, **more})
        rows = _cka_rows(result)
    show(with_origin(result, corpus), rows, as_json, out)


def _compared(checkpoint: str, twin: str, texts: list, options: dict[str, Any]):
    """Each model is opened with its own tokenizer, and once if it is compared with itself."""
    from engram_model.checkpoint import find_checkpoint
    from engram_model.compression import tokenizer_sha256
    from engram_probes import cka as compare

    model, tokenizer = open_model(checkpoint)
    other, own = model, tokenizer
    if find_checkpoint(twin).resolve() != find_checkpoint(checkpoint).resolve():
        other, own = open_model(twin)
    one = tokenizer_sha256(own) == tokenizer_sha256(tokenizer)
    with progress("comparing layers", "documents") as update:
        return compare(
            model,
            other,
            tokenizer,
            texts,
            tokenizer_b=None if one else own,
            progress=update,
            **options,
        )


def _over_training(
    names: list[str], twin: str, null: str | None, texts: list, options: dict[str, Any]
):
    from engram_probes import alignment_over_training

    unique = dict.fromkeys(name.strip() for name in names)
    opened = [open_model(name) for name in unique if name]
    baseline, _ = open_model(twin)
    with progress("comparing checkpoints", "documents") as update:
        return alignment_over_training(
            [model for model, _ in opened],
            baseline,
            opened[-1][1],
            texts,
            null=open_model(null)[0] if null else None,
            progress=update,
            **options,
        )


def _cka_rows(result) -> list:
    """Soft alignment by layer."""
    arrays = {"like": result.soft_index, "low": result.soft_low, "high": result.soft_high}
    if result.second_soft is not None:
        arrays |= dict(zip(("neighbours", "procrustes", "rsa"), result.second_soft, strict=True))
    return [("layer", *arrays)] + [
        (layer, *(plain(array[layer]) for array in arrays.values()))
        for layer in range(len(result.soft_index))
    ]


def _training_rows(result) -> list:
    """Soft alignment and CKA with the last state, by checkpoint and layer."""
    names = ("soft_index", "soft_low", "soft_high", "final", "final_low", "final_high")
    arrays = [getattr(result, name) for name in names]
    headers = ("tokens", "layer", "like", "low", "high", "cka to final", "low to", "high to")
    return [headers] + [
        (int(tokens), layer, *(plain(array[step, layer]) for array in arrays))
        for step, tokens in enumerate(result.tokens)
        for layer in range(result.final.shape[1])
    ]
