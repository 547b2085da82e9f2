"""`engram tune-lens`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from engram_app.commands.probe.common import Checkpoint, Json, Seed, plain, show, with_origin
from engram_app.console import number, progress
from engram_app.opening import check_out, check_writable, open_model, sample_documents


def tune_lens(
    checkpoint: Checkpoint,
    data: Annotated[str, typer.Option(metavar="SPEC", help="A corpus like the model's own.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to save; else in the checkpoint.")
    ] = None,
    tokens: Annotated[str, typer.Option(help="Tokens to train on.")] = "200K",
    documents: Annotated[
        int, typer.Option(min=1, help="Documents to read, drawn from the whole corpus.")
    ] = 20_000,
    batch: Annotated[int, typer.Option(min=1, help="Tokens a step.")] = 1024,
    held_out: Annotated[str, typer.Option(help="Tokens to measure on, not trained on.")] = "20K",
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a lens for each depth of a model, which `engram probe lens --tuned` then looks through.

    It is saved as tuned_lens.json and tuned_lens.safetensors beside the weights, or in DIR.
    """
    from engram_model.checkpoint import find_checkpoint
    from engram_model.corpora import describe
    from engram_probes import TunedLens
    from engram_probes import tune_lens as run

    if out is not None:
        check_out(out, TunedLens.files[0])
    folder = check_writable(out or find_checkpoint(checkpoint))
    texts = sample_documents(data, documents, seed)
    model, tokenizer = open_model(checkpoint)
    with progress(f"tuning the lens of {checkpoint}", "tokens") as update:
        lens = run(
            model,
            tokenizer,
            texts,
            tokens=number(tokens),
            batch_tokens=batch,
            held_out_tokens=number(held_out),
            lr=lr,
            seed=seed,
            progress=update,
        )
    lens = with_origin(lens, {**describe(data), "drawn": len(texts)})
    show(lens, _rows(lens), as_json, folder)


def _rows(lens: Any) -> list:
    """KL and cross-entropy by depth, plain and tuned."""
    from engram_probes.tuned_lens import LENSES, METRICS

    names = [f"{what} {name}" for what in METRICS for name in LENSES]
    curves = lens.mean.transpose(1, 0, 2).reshape(len(names), -1)
    return [("depth", *names)] + [
        (depth, *map(plain, column)) for depth, column in enumerate(curves.T)
    ]
