"""`engram train` and `engram tokenize`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from engram_app.console import number, print_text, progress
from engram_model.errors import CheckpointError, UsageError


def train(
    preset: Annotated[str, typer.Argument(help="engram-nano, moe-nano, engram-mini, ...")],
    data: Annotated[
        str, typer.Option(metavar="SPEC", help="A corpus, or tokens:DIR written by tokenize.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the run.")],
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in DIR.")] = False,
    tokens: Annotated[str, typer.Option(help="Training tokens in all.")] = "60M",
    valid: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Corpus of the validation loss.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Use this one; else a BPE is trained.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences a step and device.")] = 64,
    context: Annotated[
        int | None, typer.Option(min=2, help="Tokens a sequence; else the preset's.")
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate; the tables take five times it.")] = 8e-3,
    seed: Annotated[int, typer.Option(help="Of weights and order.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    graph: Annotated[
        bool | None,
        typer.Option("--graph/--no-graph", help="Replay steps as a CUDA graph; else if possible."),
    ] = None,
    control: Annotated[
        str | None, typer.Option(metavar="NAME", help="Train a control of the memory: merged, ...")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(metavar="N,...", help="Keep checkpoints after so many tokens, in DIR/kept."),
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Replace a field of the config."),
    ] = None,
) -> None:
    """Train a preset on a corpus; DIR then holds a checkpoint."""
    from engram_model.controls import control_fields
    from engram_model.training.train import TrainOptions
    from engram_model.training.train import train as run

    options = TrainOptions(
        tokens=number(tokens),
        context=context,
        batch=batch,
        lr=lr,
        seed=seed,
        valid=valid,
        tokenizer=None if tokenizer is None else str(tokenizer),
        save_every=save_every,
        graph=graph,
        keep=tuple(number(count) for count in keep.split(",")) if keep else (),
    )
    overrides = parse_fields(fields or [])
    if control:
        overrides = control_fields(control, preset, overrides)
    run(preset, data, out, options, resume=resume, overrides=overrides)
    print_text(str(out))


def tokenize(
    data: Annotated[str, typer.Option(metavar="SPEC", help="A corpus.")],
    tokenizer: Annotated[Path, typer.Option(metavar="DIR", help="Folder with tokenizer.json.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder that does not exist yet.")],
) -> None:
    """Tokenise a corpus once, for training where no corpus can be read."""
    from engram_model.training.tokens import write_tokens

    if not (tokenizer / "tokenizer.json").is_file():
        raise CheckpointError(f"{tokenizer} has no tokenizer.json")
    from transformers import PreTrainedTokenizerFast

    with progress("tokenising", "tokens") as update:
        file = write_tokens(data, PreTrainedTokenizerFast.from_pretrained(tokenizer), out, update)
    print_text(f"{out}: {len(file):,} tokens of {len(file.documents):,} documents")


def parse_fields(assignments: list[str]) -> dict[str, Any]:
    """`field=value` with a JSON value (a bare word is a string) -> dict.

    Raises:
        UsageError: no `=`, or no such field of the config.
    """
    import json

    from engram_model.config import EngramConfig

    known = set(EngramConfig().to_dict())
    values: dict[str, Any] = {}
    for assignment in assignments:
        field, equals, text = assignment.partition("=")
        if not equals or field not in known:
            raise UsageError(f"--set {assignment}: write FIELD=VALUE with a field of the config")
        try:
            values[field] = json.loads(text)
        except ValueError:
            values[field] = text
    return values
