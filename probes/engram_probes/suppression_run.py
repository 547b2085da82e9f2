"""The questions of a suppression, and what a model answers before, after and with controls."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engram_model.errors import CorpusError, UsageError
from engram_model.tasks import Item, answer_items, suite_names, world_items
from engram_model.tasks.items import sample
from engram_model.tasks.questions import question_item
from engram_probes.capture import Subject
from engram_probes.suppression_parts import Part
from engram_probes.suppression_taps import counting, suppressing
from engram_probes.text import encode

ITEMS_AT_ONCE = 64
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Run:
    """Answers to all items: first before, then after, then with each control.

    credit: [runs, items]; log_prob: [runs, items] nats; replaced: [runs - 1] share of lookups.
    """

    credit: np.ndarray
    log_prob: np.ndarray
    replaced: np.ndarray


def read_items(
    tasks: Any, most: int | None, seed: int, by: str | None = None, world: Any = None
) -> list[Item]:
    """The questions that `tasks` stands for, at most so many of each task, by seed.

    Raises:
        UsageError: no such suite or label, or something that holds no questions.
        CorpusError: nothing in it, or a record that is no question.
    """
    items = _all_items(tasks, world)
    if by is not None:
        labels = dict.fromkeys(label for item in items for label in item.labels)
        if by not in labels:
            raise UsageError(f"no item has a label {by!r}; there are {', '.join(labels) or 'none'}")
        items = [_split(item, by) for item in items]
    by_task: dict[str, list[Item]] = {name: [] for name in task_names(items)}
    for item in items:
        # What is scored for the rank alone is left out: it would cost most of the time.
        by_task[item.suite].append(replace(item, others=()))
    return [item for found in by_task.values() for item in sample(found, most, seed)]


def _all_items(tasks: Any, world: Any) -> list[Item]:
    if isinstance(tasks, str):
        tasks = [tasks]
    if isinstance(tasks, dict) or not isinstance(tasks, Iterable):
        raise UsageError(
            f"tasks is a {type(tasks).__name__}; give the name of a suite, a list of names, or a "
            "Dataset or list of records with prompt, answer and options"
        )
    tasks = list(tasks)
    if not tasks:
        raise CorpusError("there are no tasks: give the name of a suite, or at least one record")
    if all(isinstance(one, str) for one in tasks):
        from engram_model.world import parse_spec

        names = list(dict.fromkeys(suite_names(tasks)))
        return world_items(world or parse_spec("world:").world(), names)
    return [
        one if isinstance(one, Item) else question_item(one, f"record {index}")
        for index, one in enumerate(tasks)
    ]


def _split(item: Item, by: str) -> Item:
    if item.labels.get(by) is None:
        return item
    return replace(item, suite=f"{item.suite}, {by} {item.labels[by]}")


def task_names(items: list[Item]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item.suite for item in items))


def describe(items: list[Item]) -> dict[str, Any]:
    """What was asked, for provenance."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.prompt, item.answer, *item.options]).encode())
    names = [item.suite for item in items]
    return {
        "kind": "tasks",
        "tasks": {name: names.count(name) for name in task_names(items)},
        "sha256": digest.hexdigest(),
    }


def run(
    subject: Subject,
    tokenizer,
    items: list[Item],
    parts: list[Part],
    how: str,
    controls: int,
    batch: int,
    seed: int,
    progress: Progress | None,
) -> Run:
    """Ask everything before and after, and once for each control.

    All runs take the memory's plain operations and the same batches, so that nothing but what is
    suppressed can make a difference.
    """
    for item in items:
        subject.check_vocabulary(encode(tokenizer, item.prompt + item.answer))
    runs = [parts]
    ask = _Questions(subject, tokenizer, items, batch, (controls + 2) * len(items), progress)
    with counting(subject, tokenizer) as counts:
        answers = [ask()]
    for control in range(controls):
        draw = (seed, control)
        runs.append([p.control(counts[p.memory.layer_id], (*draw, i)) for i, p in enumerate(parts)])
    used = {layer: np.flatnonzero(count) for layer, count in counts.items()}
    for chosen in runs:
        with suppressing(chosen, how, used, seed):
            answers.append(ask())
    total = sum(int(count.sum()) for count in counts.values())
    reads = [sum(p.reads(counts[p.memory.layer_id]) for p in chosen) for chosen in runs]
    return Run(
        credit=np.array([credit for credit, _ in answers]),
        log_prob=np.array([log_prob for _, log_prob in answers]),
        replaced=np.array(reads, dtype=np.float64) / max(total, 1),
    )


@dataclass
class _Questions:
    """Asks all items, again and again."""

    subject: Subject
    tokenizer: Any
    items: list[Item]
    batch: int
    total: int
    progress: Progress | None
    done: int = 0

    def __call__(self) -> tuple[list[float], list[float]]:
        """Credit and log-probability of each answer."""
        model, training = self.subject.model, self.subject.model.training
        credit, log_prob = [], []
        model.eval()
        try:
            for start in range(0, len(self.items), ITEMS_AT_ONCE):
                part = self.items[start : start + ITEMS_AT_ONCE]
                for answer in answer_items(model, self.tokenizer, part, batch=self.batch):
                    place = answer.item.options.index(answer.item.answer)
                    credit.append(answer.credit)
                    log_prob.append(answer.scores[place])
                self._report(len(part))
        finally:
            model.train(training)
        return credit, log_prob

    def _report(self, more: int) -> None:
        self.done += more
        if self.progress:
            self.progress(self.done, self.total)
