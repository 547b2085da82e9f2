"""The command `engram`: which commands there are, and what becomes of an error.

Only typer and rich are imported here; a command imports what it needs when it runs.
"""

import os
import sys

import typer

from engram_app.commands import (
    bench,
    card,
    compare,
    doctor,
    evaluate,
    explore,
    info,
    probe,
    report,
    train,
    tune_lens,
    world,
)
from engram_model.errors import EngramError

app = typer.Typer(
    name="engram",
    help="See what an n-gram memory does inside a transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Data goes to stdout, progress to stderr. Exit codes: 1 could not finish, 2 wrong use, "
    "3 a checkpoint or corpus cannot be opened, 130 interrupted.",
)
app.command()(explore.explore)
app.command()(report.report)
app.add_typer(probe.app, name="probe")
app.command()(train.train)
app.command()(train.tokenize)
app.command()(tune_lens.tune_lens)
app.command(name="eval")(evaluate.evaluate)
app.command()(compare.compare)
app.command()(card.card)
app.command()(info.info)
app.command()(doctor.doctor)
app.command()(bench.bench)
app.command()(world.world)

INTERRUPTED = 130
QUIET = {  # bars and chatter of libraries; ours go to stderr, one at a time
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "TRANSFORMERS_VERBOSITY": "error",
}

# OpenMP threads that wait soon sleep. Left to spin, two on cores that others use too took twenty
# times as long.
THREADS = {"GOMP_SPINCOUNT": "10000"}


def main() -> None:
    """Run the command line; an error becomes one line on stderr and an exit code."""
    offline = {} if os.environ.get("ENGRAM_ONLINE") == "1" else {"HF_HUB_OFFLINE": "1"}
    for name, value in {**QUIET, **THREADS, **offline}.items():
        os.environ.setdefault(name, value)
    try:
        code = app(prog_name="engram", standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("ENGRAM_DEBUG") == "1":
            raise
        code = fail(error)
    sys.exit(code)


def fail(error: BaseException) -> int:
    """Say in one line on stderr what was wrong; returns the exit code."""
    message, code = explain(error)
    if message:
        print(f"engram: {message}", file=sys.stderr)
    return code


def explain(error: BaseException) -> tuple[str, int]:
    """One line and an exit code for any error."""
    if isinstance(error, EngramError):
        return str(error), error.exit_code
    if isinstance(error, typer.TyperException):
        return _usage(error), error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted; what was done is kept", INTERRUPTED
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "out of memory; use a smaller batch, fewer tokens or a shorter text", 1
    if isinstance(error, OSError):
        return f"{error.filename or 'file system'}: {error.strerror or error}", 1
    first = (str(error).splitlines() or [""])[0]
    return (
        f"internal error, {type(error).__name__}: {first}; set ENGRAM_DEBUG=1 to see where",
        1,
    )


def _usage(error: typer.TyperException) -> str:
    """What was wrong with the command line; empty where the help was shown instead."""
    message = error.format_message().strip().rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message}; see `{context.command_path} --help`" if message and context else message
