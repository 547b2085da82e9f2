"""Tasks with the memory, and without it or a part of it."""

from dataclasses import dataclass
from typing import cast

import numpy as np

from engram_app.report.parts.base import (
    Count,
    Figure,
    Inputs,
    Interval,
    KeyNumber,
    Part,
    Results,
    Section,
    ends,
    table,
)
from engram_model.tasks import suite_names
from engram_probes.bootstrap import divide, interval
from engram_probes.suppression import AFTER, BEFORE, HOWS, How, Suppression


@dataclass(frozen=True)
class Suppress(Part):
    """Options as of `engram_probes.suppress`; tasks are suites of the world of seed 0, items those
    of each task at most."""

    name = "suppress"
    title = "What is lost without the memory"
    question = "Which tasks does the model fail when its memory is taken away?"
    needs = ("memory",)
    rank = 5

    tasks: tuple[str, ...] = ("all",)
    how: How = "zero"
    items: Count = 16
    by: str = ""
    layers: tuple[int, ...] = ()
    orders: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()

    def size(self, inputs: Inputs) -> str:
        tasks = len(suite_names(self.tasks))
        return f"at most {self.items} items of each of {tasks} tasks, before and after"

    def measure(self, inputs: Inputs) -> Results:
        from engram_probes import suppress

        with inputs.bar("asking before and after", "items") as update:
            found = suppress(
                inputs.model,
                inputs.tokenizer,
                list(self.tasks),
                self.how,
                layers=self.layers or None,
                orders=self.orders or None,
                heads=self.heads or None,
                items=self.items,
                by=self.by or None,
                seed=inputs.seed,
                progress=update,
            )
        return {"suppress": found}

    def section(self, results: Results) -> Section:
        result = _suppression(results)
        items = int(result.items.sum())
        return Section(
            finding=result.summary(),
            method=(
                f"Each question is asked twice: as the model is, and with {result.part} suppressed "
                f"({HOWS[result.how]}). An answer is right if it is the likeliest of the options. "
                "Kept is (after - chance) / (before - chance), given only where accuracy before is "
                "above chance by its interval; the change of log-probability has no such limit. "
                "Intervals draw the people, phrases or documents that items ask about, the same "
                "for before and after."
            ),
            caveats=[
                f"{items:,} items; few a task, so that intervals are wide.",
                "A model trained with its memory is off its track without it: what it loses is "
                "more than what the memory knows. A task that needs no memory shows how much.",
            ],
            figures=[_figure(result, "retained"), _figure(result, "log_prob")],
        )

    def key_numbers(self, results: Results) -> list[KeyNumber]:
        result = _suppression(results)
        value, low, high = _mean_change([result], result.provenance.seed or 0)
        tasks = len(result.tasks)
        numbers = [
            KeyNumber(
                "suppress.change",
                "Log-probability of an answer without the memory, less with it",
                value,
                "nats",
                f"{result.items.sum():,} items, {tasks} tasks",
                *ends(low, high),
                True,
            )
        ]
        for i, task in enumerate(result.tasks):
            over, name = f"{result.items[i]:,} items", _id(task)
            if np.isfinite(result.retained[i]):
                numbers.append(
                    KeyNumber(
                        f"suppress.{name}.retained",
                        f"Kept of {task} without the memory",
                        float(result.retained[i]),
                        "of the accuracy above chance",
                        over,
                        *ends(result.retained_low[i], result.retained_high[i]),
                        headline=False,
                    )
                )
            numbers.append(
                KeyNumber(
                    f"suppress.{name}.change",
                    f"Log-probability of {task} without the memory, less with it",
                    float(result.change[i]),
                    "nats",
                    over,
                    *ends(result.change_low[i], result.change_high[i]),
                    True,
                    False,
                )
            )
        return numbers

    def alerts(self, results: Results) -> list[str]:
        result = _suppression(results)
        unknown = [task for task, why in zip(result.tasks, result.reasons, strict=True) if why]
        if not unknown:
            return []
        return [
            f"Of {len(unknown)} of {len(result.tasks)} tasks ({', '.join(unknown)}) nothing can be "
            "said of what is kept: accuracy is not above chance even with the memory."
        ]

    def paired(self, first: Results, second: Results, seed: int) -> dict[str, Interval]:
        runs = [_suppression(first), _suppression(second)]
        if runs[0].item_ids != runs[1].item_ids:
            return {}
        found = {"suppress.change": _mean_change(runs, seed)}
        for i, task in enumerate(runs[0].tasks):
            name = _id(task)
            found[f"suppress.{name}.change"] = _change(runs, i, seed)
            if all(np.isfinite(run.retained[i]) for run in runs):
                found[f"suppress.{name}.retained"] = _retained(runs, i, seed)
        return found


def _id(task: str) -> str:
    """As it stands in the id of a key number."""
    return task.replace(", ", ".").replace(" ", "_")


def _suppression(results: Results) -> Suppression:
    return cast(Suppression, results["suppress"])


def _figure(result: Suppression, what) -> Figure:
    if what == "retained":
        caption = "Share of the accuracy above chance that is kept, by task, with 95% interval."
        columns = {
            "kept": result.retained,
            "low": result.retained_low,
            "high": result.retained_high,
            "accuracy before": result.accuracy[BEFORE],
            "after": result.accuracy[AFTER],
            "chance": result.chance,
        }
    else:
        caption = "Change of the log-probability of the answer, by task, with 95% interval."
        columns = {
            "before": result.log_prob[BEFORE],
            "change": result.change,
            "low": result.change_low,
            "high": result.change_high,
        }
    title = "By task" if what == "retained" else "Log-probability of an answer in nats, by task"
    numbers = table(title, {"task": result.tasks, "items": result.items, **columns})
    return Figure(f"suppress-{what}", result.figure(what), caption, numbers)


def _delta(runs: list[Suppression]) -> np.ndarray:
    """Change of each item's log-probability; of two runs the first's less the second's."""
    changes = [run.item_log_prob[AFTER] - run.item_log_prob[BEFORE] for run in runs]
    return changes[0] if len(changes) == 1 else changes[0] - changes[1]


def _drawn(statistic, units: int, seed: int) -> Interval:
    low, high = interval(statistic, units, seed)
    return float(statistic(np.ones(units, dtype=np.int64))), float(low), float(high)


def _mean_change(runs: list[Suppression], seed: int) -> Interval:
    """Mean over tasks of the mean over items, items drawn."""
    delta, task, tasks = _delta(runs), runs[0].item_task, len(runs[0].tasks)

    def statistic(weights: np.ndarray) -> np.ndarray:
        sums = np.bincount(task, weights * delta, tasks)
        return np.nanmean(divide(sums, np.bincount(task, weights, tasks)))

    return _drawn(statistic, len(delta), seed)


def _change(runs: list[Suppression], task: int, seed: int) -> Interval:
    delta = _delta(runs)[runs[0].item_task == task]
    return _drawn(lambda weights: (weights @ delta) / weights.sum(), len(delta), seed)


def _retained(runs: list[Suppression], task: int, seed: int) -> Interval:
    credit = np.stack([run.item_credit[:, run.item_task == task] for run in runs])
    above = credit - runs[0].chance[task]  # [run, condition, item]

    def statistic(weights: np.ndarray) -> np.ndarray:
        sums = above @ weights
        before = np.where(sums[:, BEFORE] > 0, sums[:, BEFORE], 0)
        kept = divide(sums[:, AFTER], before)
        return kept[0] - kept[1]

    return _drawn(statistic, above.shape[-1], seed)
