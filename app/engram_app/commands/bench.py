"""`engram bench`: kernels and probes against what one would use instead, stage by stage."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_app.console import command_line, print_json, print_rows, print_text, say
from engram_model.errors import UsageError

if TYPE_CHECKING:
    from engram_model.bench import Stage
    from engram_model.bench.measure import Goal, Machine, Row
    from engram_model.bench.results import Results

HEADERS = ("case", "ours us", "floor us", "share of copy", "others, times ours", "goals")
NONE = "–"


def bench(
    stages: Annotated[
        list[str] | None, typer.Argument(metavar="[STAGE ...]", help="Default: all that can run.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the results.")] = Path(
        "runs/bench"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Name the stages, run nothing.")] = False,
    quick: Annotated[
        bool, typer.Option(help="Small sizes: to see that it runs, not how fast.")
    ] = False,
) -> None:
    """Measure kernels and probes: each stage against its baselines in one run, correctness first.

    DIR then holds kernels-STAGE.json or probes-STAGE.json. Times mean something on a GPU only;
    ratios are what counts.
    ENGRAM_BENCH_TOKENS names a .npy file of token ids to use as text.
    """
    known = _stages()
    if list_:
        print_rows(("stage", "needs"), [(stage.name, _needs(stage)) for stage in known.values()])
        return
    results = _run_all(_chosen(stages or [], known, out), _machine(quick, as_json), out, as_json)
    if as_json:
        print_json([found.to_dict(command_line()) for found in results])
    failed = [found.stage.name for found in results if found.error]
    if failed or not results:
        raise typer.Exit(1)


def _stages() -> "dict[str, Stage]":
    from engram_model.bench import STAGES
    from engram_probes.bench import STAGES as PROBES

    return {**STAGES, **PROBES}


def _needs(stage: "Stage") -> str:
    return "a GPU" if stage.gpu else "a CPU"


def _chosen(names: list[str], known: "dict[str, Stage]", out: Path) -> "list[Stage]":
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"no stage {unknown[0]!r}; there are {', '.join(known)}")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; give a folder")
    return [known[name] for name in names] if names else list(known.values())


def _machine(quick: bool, as_json: bool) -> "Machine":
    """The machine, its ceilings measured and said first."""
    from dataclasses import replace

    from engram_model.bench.measure import Machine

    machine = replace(Machine.here(), quick=quick)
    line = machine.name
    if machine.device == "cuda":
        line += f": copies {machine.copy / 1e12:.2f} TB/s, read and written"
        line += f"; multiplies {machine.matrix / 1e12:.0f} TFLOP/s in bfloat16"
    (say if as_json else print_text)(line)
    return machine


def _run_all(
    stages: "list[Stage]", machine: "Machine", out: Path, as_json: bool
) -> list["Results"]:
    """Every stage that this machine can run, shown and saved as soon as it is done."""
    from engram_model.bench.results import run

    results = []
    for stage in stages:
        if machine.device == "cpu" and stage.gpu:
            say(f"{stage.name}: skipped, needs a GPU")
            continue
        say(f"{stage.name} ...")
        found = run(stage, machine, lambda row: say(f"  {row.case}"))
        results.append(found)
        if found.rows and not as_json:
            print_rows(HEADERS, [_cells(row) for row in found.rows], title=stage.name)
        if found.error:
            say(f"{stage.name} failed: {found.error}")
        found.save(out, command_line())
    return results


def _cells(row: "Row") -> tuple[str, ...]:
    others = [name for name in row.times if name != "ours"]
    return (
        row.case,
        f"{row.times['ours']:,.1f}",
        f"{row.floor:,.1f}" if row.floor else NONE,
        f"{row.share:.2f}" if row.floor else NONE,
        ", ".join(f"{name} {row.ratio(name):.2f}" for name in others) or NONE,
        ", ".join(map(_goal, row.goals)) or NONE,
    )


def _goal(goal: "Goal") -> str:
    sign = "≥" if goal.at_least else "≤"
    state = "met" if goal.met else "missed"
    return f"{goal.what} {goal.value:.2f} ({sign} {goal.bound:g}) {state}"
