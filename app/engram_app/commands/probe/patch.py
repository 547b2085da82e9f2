"""`engram probe patch`."""

from typing import Annotated, Any

import typer

from engram_app.commands.probe.common import Checkpoint, Json, Out, Seed, check, plain, show
from engram_app.console import command_line, progress
from engram_app.opening import open_model, open_pairs
from engram_model.errors import UsageError


def patch(
    checkpoint: Checkpoint,
    text: Annotated[str | None, typer.Option(help="The clean text, up to its answer.")] = None,
    corrupted: Annotated[
        str | None, typer.Option(help="As many tokens, about something else.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="How --text goes on. Without: the likeliest token.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="How --corrupted goes on.")] = None,
    pairs: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="JSON lines of clean, corrupted, target, against."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="Pairs of people of this world. Default: world:"),
    ] = None,
    items: Annotated[int, typer.Option(min=1, help="Pairs of a world at most.")] = 20,
    direction: Annotated[str, typer.Option(help="denoising or noising.")] = "denoising",
    steps: Annotated[
        int, typer.Option(min=1, help="Points of the integrated gradient; 1: plain.")
    ] = 8,
    heads: Annotated[bool, typer.Option("--heads", help="Attention by its heads, too.")] = False,
    measure: Annotated[
        int | None,
        typer.Option(
            "--check",
            min=1,
            help="Measure so many of the largest, and as many at random. Without: all.",
        ),
    ] = None,
    draws: Annotated[int, typer.Option(min=2, help="Random texts, the null of one pair.")] = 20,
    out: Out = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Which nodes carry an answer, memories and their rows among them: patched one by one."""
    check(out)
    from engram_probes import attribution_patching

    given = _given(text, corrupted, target, against, pairs, data)
    model, tokenizer = open_model(checkpoint)
    given = given or [open_pairs(data, tokenizer, items, seed)]
    with progress("patching", "runs") as update:
        result = attribution_patching(
            model,
            tokenizer,
            *given,
            direction=direction,
            steps=steps,
            heads=heads,
            check=measure,
            draws=draws,
            seed=seed,
            progress=update,
        )
    show(result.with_provenance(command=command_line()), _rows(result), as_json, out)


def _given(text, corrupted, target, against, pairs, data) -> list[Any]:
    """What was written out: one pair, or those of a file; nothing: a world's."""
    if sum(source is not None for source in (text, pairs, data)) > 1:
        raise UsageError("give one of --text, --pairs and --data")
    if text is not None:
        if corrupted is None:
            raise UsageError("--text needs --corrupted, a text of as many tokens")
        return [text, corrupted, target, against]
    if not corrupted is target is against is None:
        raise UsageError("--corrupted, --target and --against go with --text")
    if pairs is None:
        return []
    from engram_model.tasks import read_pairs

    return [read_pairs(pairs)]


def _rows(result) -> list:
    """One row for each of the 20 strongest cells, of nodes that do not nest."""
    names = ("null", "beyond_null", "beyond_low", "beyond_high")
    rows: list = [("node", "place", "exact", "low", "high", "estimate", *names)]
    low, high = result.interval("exact")
    exact, estimate = result.mean("exact"), result.mean("estimate")
    null = (result.null("exact")[0], *result.beyond_null("exact"))
    for n, p in result.strongest(20):
        numbers = (exact[n, p], low[n, p], high[n, p], estimate[n, p])
        rows.append(
            (result.nodes[n], result.places[p], *map(plain, (*numbers, *(a[n, p] for a in null))))
        )
    return rows
