"""What does the model lose without its memory, or a part of it? Tasks before and after."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from engram_model.errors import UsageError
from engram_probes.provenance import provenance
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

    from engram_probes.suppression_parts import Slots

How = Literal["zero", "rows_zero", "mean", "shuffle", "random", "gate_zero", "gate_one"]
HOWS: dict[str, str] = {
    "zero": "what the memory adds is zero",
    "rows_zero": "its rows are zero",
    "mean": "each row is the mean of its head's used rows",
    "shuffle": "rows are permuted within each head",
    "random": "rows are redrawn from a normal of each head's mean and variance",
    "gate_zero": "the gates are closed and only the convolution adds",
    "gate_one": "the gates are open",
}
OF_ROWS = ("rows_zero", "mean", "shuffle", "random")  # those that can take a part of a memory
What = Literal["retained", "accuracy", "log_prob"]
WHAT: tuple[What, ...] = ("retained", "accuracy", "log_prob")
BEFORE, AFTER = 0, 1  # conditions


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Suppression(Result):
    """Tasks T, items n, conditions 2 (before, after), controls R.

    Attributes:
        how: one of `HOWS`.
        part: what of the memory was suppressed, in words.
        tasks: [T].
        reasons: why a task has no retained share; "" where it has one.
        chance: accuracy of a blind choice, [T].
        accuracy, accuracy_low, accuracy_high: share of items whose answer is the likeliest option,
            ties in part, [2, T].
        retained, retained_low, retained_high: (after - chance) / (before - chance), [T].
        log_prob: mean summed log-probability of the answer's tokens, nats, [2, T].
        change, change_low, change_high: of it, after - before, [T].
        items, entities: how many items, of how many people, phrases or documents, [T].
        replaced: share of all memory lookups that fell on what was suppressed, after and with each
            control, [1 + R]; special tokens and position 0 left out.
        control_retained, control_accuracy, control_change: [R, T], with as many other rows of the
            same columns suppressed.
        item_ids: [n]. item_task: index of each item's task, [n].
        item_credit, item_log_prob: of each item before and after, [2, n].
    """

    kind: ClassVar[str] = "suppress"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "chance": ("task",),
        "accuracy": ("condition", "task"),
        "accuracy_low": ("condition", "task"),
        "accuracy_high": ("condition", "task"),
        "retained": ("task",),
        "retained_low": ("task",),
        "retained_high": ("task",),
        "log_prob": ("condition", "task"),
        "change": ("task",),
        "change_low": ("task",),
        "change_high": ("task",),
        "items": ("task",),
        "entities": ("task",),
        "replaced": ("run",),
        "control_retained": ("control", "task"),
        "control_accuracy": ("control", "task"),
        "control_change": ("control", "task"),
        "item_task": ("item",),
        "item_credit": ("condition", "item"),
        "item_log_prob": ("condition", "item"),
    }
    units: ClassVar[dict[str, str]] = {
        "retained": "share of the accuracy above chance",
        "log_prob": "nats an answer",
        "change": "nats an answer",
        "control_change": "nats an answer",
        "item_log_prob": "nats",
        "replaced": "share of lookups",
    }

    how: str
    part: str
    tasks: tuple[str, ...]
    reasons: tuple[str, ...]
    item_ids: tuple[str, ...]
    chance: np.ndarray
    accuracy: np.ndarray
    accuracy_low: np.ndarray
    accuracy_high: np.ndarray
    retained: np.ndarray
    retained_low: np.ndarray
    retained_high: np.ndarray
    log_prob: np.ndarray
    change: np.ndarray
    change_low: np.ndarray
    change_high: np.ndarray
    items: np.ndarray
    entities: np.ndarray
    replaced: np.ndarray
    control_retained: np.ndarray
    control_accuracy: np.ndarray
    control_change: np.ndarray
    item_task: np.ndarray
    item_credit: np.ndarray
    item_log_prob: np.ndarray

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accuracy.shape != (2, len(self.tasks)):
            raise ValueError(
                f"accuracy has shape {self.accuracy.shape} for {len(self.tasks)} tasks"
            )

    def facts(self) -> dict:
        return {
            "model": self.provenance.models[0]["name"],
            "how": self.how,
            "part": self.part,
            "tasks": len(self.tasks),
            "items": int(self.items.sum()),
        }

    def summary(self) -> str:
        known = np.flatnonzero(np.isfinite(self.retained))
        order = known[np.argsort(self.retained[known], kind="stable")]
        if not len(order):
            kept = "no task is above chance even before, so that none has accuracy to keep"
        elif len(order) == 1:
            kept = (
                f"{self.tasks[order[0]]} keeps {self._kept(order[0])} of its accuracy above chance"
            )
        else:
            least, most = (f"{self._kept(i)} ({self.tasks[i]})" for i in order[[0, -1]])
            kept = (
                f"the {len(order)} tasks that were above chance keep from {least} to {most} of "
                "their accuracy above chance"
            )
        change = (
            f"the log-probability of an answer changes by {self.change.mean():+.2f} nats in the "
            "mean of the tasks"
        )
        told = f"With {self.part} suppressed ({self.how}: {HOWS[self.how]}{self._lookups()})"
        return f"{told}, {kept}; {change}{self._against_controls(order)}."

    def _kept(self, task: int) -> str:
        low, high = self.retained_low[task], self.retained_high[task]
        return f"{self.retained[task]:.0%} [{low:.0%} to {high:.0%}]"

    def _lookups(self) -> str:
        share = self.replaced[0]
        return "" if share == 1 else f"; {share:.2%} of the lookups"

    def _against_controls(self, order: np.ndarray) -> str:
        if not len(self.control_change):
            return ""
        change = self.control_change.mean(1)
        shares = self.replaced[1:]
        told = (
            f"; with as many other rows instead ({len(change)} draws, {shares.min():.2%} to "
            f"{shares.max():.2%} of the lookups) by {change.min():+.2f} to {change.max():+.2f} nats"
        )
        if not len(order):
            return told
        kept = self.control_retained[:, order[0]]
        return f"{told}, and {self.tasks[order[0]]} keeps {kept.min():.0%} to {kept.max():.0%}"

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each task and run: what was suppressed, then each control.

        Intervals are of the first alone; `reason` says why a share is missing.
        """
        import pandas as pd

        controls = len(self.control_change)
        missing = np.full((controls, len(self.tasks)), np.nan)

        def runs(first: np.ndarray, others: np.ndarray = missing) -> np.ndarray:
            return np.concatenate([first[None], others]).ravel()

        names = ["suppressed", *(f"control {i}" for i in range(controls))]
        same = {
            "chance": self.chance,
            "before": self.accuracy[BEFORE],
            "before_low": self.accuracy_low[BEFORE],
            "before_high": self.accuracy_high[BEFORE],
        }
        return pd.DataFrame(
            {
                "run": np.repeat(np.array(names, dtype=object), len(self.tasks)),
                "task": np.tile(np.array(self.tasks, dtype=object), len(names)),
                **{name: np.tile(array, len(names)) for name, array in same.items()},
                "after": runs(self.accuracy[AFTER], self.control_accuracy),
                "after_low": runs(self.accuracy_low[AFTER]),
                "after_high": runs(self.accuracy_high[AFTER]),
                "retained": runs(self.retained, self.control_retained),
                "retained_low": runs(self.retained_low),
                "retained_high": runs(self.retained_high),
                "log_prob_before": np.tile(self.log_prob[BEFORE], len(names)),
                "change": runs(self.change, self.control_change),
                "change_low": runs(self.change_low),
                "change_high": runs(self.change_high),
                "replaced": np.repeat(self.replaced, len(self.tasks)),
                "items": np.tile(self.items, len(names)),
                "entities": np.tile(self.entities, len(names)),
                "reason": np.tile(np.array(self.reasons, dtype=object), len(names)),
            }
        )

    def figure(self, what: What = "retained") -> "plotly.graph_objects.Figure":
        """Bars by task: the share retained, accuracy before and after, or log_prob's change.

        Raises:
            UsageError: no such quantity.
        """
        from engram_probes.figures.suppression import suppression_figure

        if what not in WHAT:
            raise UsageError(f"{what!r} is not in a suppression; use one of {', '.join(WHAT)}")
        return suppression_figure(self, what)


@contextmanager
def suppressed(
    model,
    how: How = "zero",
    *,
    layers: Iterable[int] | None = None,
    orders: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    slots: "Slots | None" = None,
    used: Mapping[int, np.ndarray] | None = None,
    seed: int = 0,
) -> Iterator[None]:
    """While open, the model runs with its memory, or a part of it, suppressed.

    Weights are not touched, and all is as before at the end, after an error too. Whatever listens
    to the memory (hooks of a bridge, other probes) sees what is left. The memory takes its plain
    operations, as always when something listens.

    Args:
        model: an Engram model, or a TransformerBridge of one.
        how, layers, orders, heads, slots, seed: as `suppress`.
        used: by layer, the rows whose mean and variance `mean` and `random` take; None: all.

    Raises:
        UsageError: as `suppress`.
    """
    from engram_probes.capture import Subject
    from engram_probes.suppression_parts import parts_of
    from engram_probes.suppression_taps import suppressing

    parts = parts_of(Subject.of(model), how, layers, orders, heads, slots)
    with suppressing(parts, how, used, seed):
        yield


def suppress(
    model,
    tokenizer,
    tasks: Any,
    how: How = "zero",
    *,
    layers: Iterable[int] | None = None,
    orders: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    slots: "Slots | None" = None,
    controls: int = 0,
    items: int | None = 100,
    by: str | None = None,
    world: Any = None,
    batch: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Suppression:
    """Closed questions with the memory, and with the memory or a part of it suppressed.

    Args:
        model: an Engram model with a memory, or a TransformerBridge of one.
        tokenizer: its tokenizer.
        tasks: a suite of the world by name, a list of names ("all": all of them), or a Dataset or
            list of records with `prompt`, `answer` and `options` (and, if known, `id`, `suite`, the
            task, and `entity`, what intervals draw whole), or of `engram_model.tasks.Item`.
        how: what takes the memory's place, see `HOWS`.
        layers: memory layers; None: all. So with the following.
        orders: n-gram orders 2..N. heads: hash heads 0..heads-1 of each order.
        slots: rows of the table, {layer: rows}, or the rows of the one layer.
        controls: for `slots`, how often as many other rows of the same columns, drawn from those
            that the tasks read, are suppressed instead.
        items: of each task at most, by seed; None: all.
        by: a label of the items, such as "tier" (in a record a field), that splits tasks by its
            values.
        world: an `engram_model.world.World` that suites ask about; None: that of seed 0.
        batch: rows of the context's length at a time; more where they are short.
        seed: of items, permuted and redrawn rows, controls and bootstrap.
        progress: called with (items done, in all).

    Returns:
        A `Suppression`.

    Raises:
        UsageError: a model without a memory, no such suite or way, a part that does not exist or
            that `how` cannot take, or controls that cannot be drawn.
        CorpusError: tasks that hold no questions.
    """
    from engram_probes.capture import Subject
    from engram_probes.suppression_parts import in_words, parts_of
    from engram_probes.suppression_run import describe, read_items, run
    from engram_probes.suppression_statistics import measure

    subject = Subject.of(model)
    parts = parts_of(subject, how, layers, orders, heads, slots)
    if controls and slots is None:
        raise UsageError("controls are other rows than those of slots; give slots, or controls=0")
    questions = read_items(tasks, items, seed, by, world)
    found = run(subject, tokenizer, questions, parts, how, controls, batch, seed, progress)
    settings = {
        "how": how,
        "parts": [part.description() for part in parts],
        "controls": controls,
        "items": items,
        "by": by,
        "batch": batch,
    }
    return Suppression(
        provenance=provenance([subject.model], tokenizer, describe(questions), settings, seed),
        how=how,
        part=in_words(subject, parts),
        replaced=found.replaced,
        **measure(questions, found.credit, found.log_prob, seed),
    )
