"""`engram probe suppress`."""

from typing import Annotated, Any

import typer

from engram_app.commands.probe.common import (
    Checkpoint,
    Json,
    Out,
    Seed,
    check,
    numbers,
    plain,
    show,
    slots_of,
)
from engram_app.console import command_line, progress
from engram_app.opening import open_model
from engram_model.errors import UsageError


def suppress(
    checkpoint: Checkpoint,
    tasks: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Suites of the world. Default: all.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="A world that the suites ask about, or json:FILE of prompt, answer and options.",
        ),
    ] = None,
    facts: Annotated[
        str | None, typer.Option(metavar="FILE", help="JSON lines of prompt, answer, relation.")
    ] = None,
    how: Annotated[
        str,
        typer.Option(help="zero, rows_zero, mean, shuffle, random, gate_zero or gate_one."),
    ] = "zero",
    layers: Annotated[
        str | None, typer.Option(metavar="N,...", help="These memory layers only.")
    ] = None,
    orders: Annotated[
        str | None, typer.Option(metavar="N,...", help="N-grams of these orders only.")
    ] = None,
    heads: Annotated[
        str | None, typer.Option(metavar="N,...", help="These hash heads only, from 0.")
    ] = None,
    slots: Annotated[
        str | None,
        typer.Option(metavar="[LAYER:]ROW,...", help="These rows of the table only."),
    ] = None,
    controls: Annotated[
        int, typer.Option(min=0, help="With --slots: how often as many other rows instead.")
    ] = 0,
    items: Annotated[int, typer.Option(min=1, help="Items of each task at most.")] = 100,
    by: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Split tasks by a label, such as tier.")
    ] = None,
    out: Out = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What the model loses without its memory, or without a part of it: tasks before and after."""
    check(out)
    from engram_probes import suppress as measure

    part: dict[str, Any] = {
        "layers": numbers("--layers", layers),
        "orders": numbers("--orders", orders),
        "heads": numbers("--heads", heads),
        "slots": slots_of(slots),
    }
    questions = _questions(tasks, data, facts, seed)
    model, tokenizer = open_model(checkpoint)
    with progress("asking before and after", "items") as update:
        result = measure(
            model,
            tokenizer,
            questions,
            how,
            **part,
            controls=controls,
            items=items,
            by=by,
            seed=seed,
            progress=update,
        )
    show(result.with_provenance(command=command_line()), _rows(result), as_json, out)


def _questions(tasks: str | None, data: str | None, facts: str | None, seed: int) -> list[Any]:
    """Suites (all, where nothing else is asked for), questions of a file, facts."""
    from engram_model.corpora import parse
    from engram_model.tasks import fact_items, question_items, world_items
    from engram_model.world import parse_spec

    parts = parse(data) if data else []
    if data and (len(parts) != 1 or parts[0].kind not in ("world", "json")):
        raise UsageError(
            f"--data {data}: give a world:, or json:FILE with prompt, answer and options a line"
        )
    world = data if data and parts[0].kind == "world" else "world:"
    found = question_items(parts[0].body) if data and parts[0].kind == "json" else []
    found += fact_items(facts, seed=seed) if facts else []
    if tasks or not found:
        names = (tasks or "all").split(",")
        found += world_items(parse_spec(world).world(), names)
    return found


def _rows(result) -> list:
    """One row a task; with controls the mean of their shares and changes."""
    names = ["task", "items", "chance", "before", "after", "retained", "low", "high"]
    names += ["log_prob", "change", "change_low", "change_high"]
    arrays = [result.chance, *result.accuracy, result.retained, result.retained_low]
    arrays += [result.retained_high, result.log_prob[0], result.change]
    arrays += [result.change_low, result.change_high]
    if len(result.control_change):
        names += ["retained_controls", "change_controls"]
        arrays += [result.control_retained.mean(0), result.control_change.mean(0)]
    return [tuple(names)] + [
        (task, int(result.items[i]), *(plain(array[i]) for array in arrays))
        for i, task in enumerate(result.tasks)
    ]
