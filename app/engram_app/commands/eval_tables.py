"""The tables of `engram eval`."""

from typing import Any

from engram_app.console import print_rows

NONE = "–"
LOSSES = ("source", "nats/token", "low", "high", "bits/byte", "documents", "tokens")
SPANS = ("field", "value", "accuracy", "low", "high", "nats/token", "tokens", "documents")
TASKS = (
    "suite",
    "group",
    "accuracy",
    "low",
    "high",
    "chance",
    "corrected",
    "generated",
    "memory",
    "items",
    "entities",
)


def print_metrics(metrics: dict[str, Any]) -> None:
    """What was evaluated, a table each."""
    if losses := _loss_rows(metrics["sources"]):
        print_rows(LOSSES, losses, title=f"losses on {metrics['data']}")
    if spans := _span_rows(metrics["spans"]):
        print_rows(SPANS, spans, title="next tokens by span")
    if tasks := _task_rows(metrics["tasks"]):
        print_rows(TASKS, tasks, title="tasks")
    if benchmarks := _benchmark_rows(metrics["lm_eval"]):
        print_rows(("task", "metric", "value"), benchmarks, title="lm-eval")


def _loss_rows(sources: dict[str, dict]) -> list[tuple[str, ...]]:
    names = ("loss", "low", "high", "bits_per_byte")
    return [
        (name, *_decimals(row, names, 4), f"{row['documents']:,}", f"{row['tokens']:,}")
        for name, row in sources.items()
    ]


def _span_rows(spans: dict[str, dict[str, dict]]) -> list[tuple[str, ...]]:
    names = ("accuracy", "low", "high", "loss")
    return [
        (field, name, *_decimals(row, names), f"{row['tokens']:,}", f"{row['documents']:,}")
        for field, rows in spans.items()
        for name, row in rows.items()
    ]


def _task_rows(tasks: dict[str, dict[str, dict[str, dict]]]) -> list[tuple[str, ...]]:
    names = ("accuracy", "low", "high", "chance", "chance_corrected", "generated", "memory_choice")
    return [
        (
            suite,
            "all" if label == "all" else f"{label} {value}",
            *_decimals(row, names),
            f"{row['items']:,}",
            f"{row['entities']:,}",
        )
        for suite, groups in tasks.items()
        for label, rows in groups.items()
        for value, row in rows.items()
    ]


def _benchmark_rows(tasks: dict[str, dict[str, float]]) -> list[tuple[str, ...]]:
    return [
        (task, name, f"{value:.4f}" if isinstance(value, float) else f"{value}")
        for task, row in tasks.items()
        for name, value in row.items()
    ]


def _decimals(row: dict[str, Any], names: tuple[str, ...], places: int = 3) -> list[str]:
    return [NONE if row[name] is None else f"{row[name]:.{places}f}" for name in names]
