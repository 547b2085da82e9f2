"""`engram eval`: losses by source and span, closed questions, benchmarks; with intervals."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_app.commands.eval_tables import print_metrics
from engram_app.console import Report, command_line, print_json, progress, say
from engram_app.opening import open_model

if TYPE_CHECKING:
    from engram_model.eval_folder import EvalFolder
    from engram_model.eval_run import EvalOptions


def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CKPT", help="A folder, or the name of a bundled checkpoint.")
    ],
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", help="A corpus, for losses by source and span.")
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME,...", help="Task suites of the world, or all; repeatable."),
    ] = None,
    facts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="JSON lines of prompt, answer, relation."),
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(metavar="TASK,...", help="Benchmarks of lm-eval, or their YAML files."),
    ] = None,
    items: Annotated[int, typer.Option(min=1, help="Items of each suite.")] = 50,
    everything: Annotated[
        bool, typer.Option("--all", help="The whole valid split, and every item.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For config, log, items and metrics.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; default a GPU if there is one.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows of full length at a time.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of samples and intervals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Losses by source and span, closed questions and benchmarks, with 95% intervals.

    Unless one of --data, --tasks, --facts and --lm-eval is given: a part of the synthetic world's
    valid split and of its suites.
    """
    from engram_model.eval_folder import check_new
    from engram_model.eval_run import EvalOptions, plan, run_evaluation, task_items

    asked = EvalOptions(
        data=data,
        suites=tuple(name for names in tasks or () for name in names.split(",")),
        facts=facts,
        items=items,
        lm_eval=tuple(lm_eval.split(",")) if lm_eval else (),
        batch=batch,
        seed=seed,
    )
    options = plan(asked, everything)
    if out:
        check_new(out)
    items_asked = task_items(options)  # a mistake there is found before the model is opened
    model, tokenizer = open_model(checkpoint, device=device, full_precision=True)
    say(_subset(options))
    folder = _folder(out, checkpoint, model, options) if out else None
    metrics = run_evaluation(
        model, tokenizer, options, lambda name: _stage(name, folder), folder, items_asked
    )
    if as_json:
        print_json({"checkpoint": checkpoint, **metrics})
    else:
        print_metrics(metrics)


def _subset(options: "EvalOptions") -> str:
    """What is evaluated, in a line."""
    tasks = [*options.suites, *([options.facts] if options.facts else []), *options.lm_eval]
    many = "all items" if options.items is None else f"{options.items} items each, at most"
    parts = [options.data or "", f"{', '.join(tasks)} ({many})" if tasks else ""]
    return "; ".join(part for part in parts if part)


def _folder(out: Path, checkpoint: str, model: Any, options: "EvalOptions") -> "EvalFolder":
    from engram_model.checkpoint import find_checkpoint
    from engram_model.eval_folder import EvalFolder, weights_sha256

    path = find_checkpoint(checkpoint)
    config = {
        "command": command_line(),
        "checkpoint": path.name,
        "weights_sha256": weights_sha256(path),
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "options": options.to_dict(),
    }
    return EvalFolder(out, config)


@contextmanager
def _stage(name: str, folder: "EvalFolder | None") -> Iterator[Report]:
    """A bar on stderr, and lines in the log."""
    unit = "" if name == "lm-eval" else "tokens"
    with progress(name, unit) as update:

        def report(done: int) -> None:
            update(done)
            if folder:
                folder.log(name, tokens=done)

        if folder:
            folder.log(f"{name} begins")
        yield report
        if folder:
            folder.log(f"{name} is done")
