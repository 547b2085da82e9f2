"""What `engram train`, `engram eval` and `engram compare` leave on disk, read to be drawn.

No model and no torch: a training log, an evaluation and a comparison are JSON.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_model.errors import CheckpointError

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

LOSSES = {"loss": "training", "eval_loss": "valid"}
FAULTS = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError)


@dataclass(frozen=True)
class TrainingLog:
    """A training run.

    Attributes:
        name: of the model.
        tokens_per_step: tokens read in a step.
        device: it ran on.
        history: what was logged; each has a `step` and some of `loss`, `eval_loss`, ...
        settings: data, options and overrides.
    """

    name: str
    tokens_per_step: int
    device: str
    history: tuple[dict[str, Any], ...]
    settings: dict[str, Any]

    def points(self, what: str = "eval_loss") -> tuple[list[float], list[float]]:
        """Tokens read, and the loss logged then."""
        rows = [row for row in self.history if what in row]
        return [row["step"] * self.tokens_per_step for row in rows], [row[what] for row in rows]

    def summary(self) -> str:
        tokens, losses = self.points()
        kind = "valid"
        if not losses:
            (tokens, losses), kind = self.points("loss"), "training"
        if not losses:
            return f"The training of {self.name} logged no loss."
        return (
            f"The {kind} loss of {self.name} is {losses[-1]:.3f} nats after "
            f"{tokens[-1] / 1e6:.1f}M tokens."
        )

    def to_frame(self) -> "pandas.DataFrame":
        """One row a logged step."""
        import pandas as pd

        return pd.DataFrame(list(self.history))

    def figure(
        self, what: str = "eval_loss", others: Sequence["TrainingLog"] = ()
    ) -> "plotly.graph_objects.Figure":
        """A loss over tokens read, with those of other trainings in the same figure.

        what: "eval_loss" (valid) or "loss" (training).
        """
        from engram_probes.figures.records import training_curves_figure

        return training_curves_figure((self, *others), what)


@dataclass(frozen=True)
class Evaluation:
    """What `engram eval` measured of one model.

    Attributes:
        sources: loss by source with its interval.
        tasks: suite -> accuracy above chance of all its items with its interval.
    """

    name: str
    data: str
    date: str
    command: str
    sources: dict[str, dict[str, Any]]
    tasks: dict[str, dict[str, Any]]

    def summary(self) -> str:
        every = self.sources.get("all")
        if every:
            return (
                f"The loss of {self.name} is {every['loss']:.3f} nats a token (95% "
                f"{every['low']:.3f} to {every['high']:.3f}) over {every['documents']:,} documents."
            )
        return f"{self.name} was given {len(self.tasks)} suites."

    def to_frame(self) -> "pandas.DataFrame":
        """One row a source or suite."""
        import pandas as pd

        rows = [{"what": f"loss, {n}", "value": s["loss"], **_ends(s)} for n, s in self._losses()]
        rows += [
            {
                "what": f"{n}, accuracy above chance",
                "value": t["chance_corrected"],
                "low": t["corrected_low"],
                "high": t["corrected_high"],
            }
            for n, t in self.tasks.items()
        ]
        return pd.DataFrame(rows)

    def _losses(self) -> list[tuple[str, dict[str, Any]]]:
        return list(self.sources.items())

    def figure(self, what: str = "loss") -> "plotly.graph_objects.Figure":
        """Points with intervals. what: "loss" by source, or "tasks": accuracy above chance."""
        from engram_probes.figures.records import intervals_figure

        if what == "loss":
            rows = [(n, s["loss"], s["low"], s["high"]) for n, s in self._losses()]
            return intervals_figure(rows, f"Loss of {self.name} by source", "nats a token", None)
        rows = [
            (n, t["chance_corrected"], t["corrected_low"], t["corrected_high"])
            for n, t in self.tasks.items()
        ]
        title = f"Accuracy of {self.name} above chance"
        return intervals_figure(rows, title, "1 is all, 0 is chance", 0.0)


@dataclass(frozen=True)
class RunComparison:
    """What `engram compare` found between two evaluations or trainings."""

    name: str
    command: str
    differences: tuple[dict[str, Any], ...]

    def summary(self) -> str:
        one = self.differences[0]
        return (
            f"{self.name}: {one['what']} is {one['difference']:+.3f} (95% {one['low']:+.3f} to "
            f"{one['high']:+.3f}): {one['verdict']}."
        )

    def to_frame(self) -> "pandas.DataFrame":
        """One row a difference."""
        import pandas as pd

        return pd.DataFrame(list(self.differences))

    def figure(self) -> "plotly.graph_objects.Figure":
        """First less second, with intervals."""
        from engram_probes.figures.records import intervals_figure

        rows = [(d["what"], d["difference"], d["low"], d["high"]) for d in self.differences]
        return intervals_figure(rows, f"{self.name}, first less second", "difference", 0.0)


Record = TrainingLog | Evaluation | RunComparison


def read_training(file: Path) -> TrainingLog:
    """A training_log.json, or the same under a model's name.

    Raises:
        CheckpointError: it is none, or damaged.
    """
    document = _read(file)
    try:
        name = file.parent.name if file.name == "training_log.json" else file.stem
        settings = {key: document[key] for key in ("data", "options", "overrides")}
        history = tuple(document["history"])
        for row in history:
            float(row["step"]), [float(row[what]) for what in LOSSES if what in row]
        return TrainingLog(
            name, int(document["tokens_per_step"]), str(document["device"]), history, settings
        )
    except FAULTS as error:
        raise CheckpointError(f"{file} is no training log: {_said(error)}") from error


def read_evaluation(folder: Path) -> Evaluation:
    """A folder of `engram eval`.

    Raises:
        CheckpointError: it is none, or damaged.
    """
    document, config = _read(folder / "metrics.json"), _read(folder / "config.json")
    try:
        sources = {n: dict(s, loss=float(s["loss"])) for n, s in document["sources"].items()}
        tasks = {n: t["all"]["all"] for n, t in document.get("tasks", {}).items()}
        for task in tasks.values():
            float(task["chance_corrected"]), _ends(task, "corrected_")
        for source in sources.values():
            _ends(source), int(source["documents"])
        return Evaluation(
            str(config["checkpoint"]),
            str(document["data"]),
            str(config.get("started", ""))[:10],
            str(config.get("command", "")),
            sources,
            tasks,
        )
    except FAULTS as error:
        raise CheckpointError(f"{folder} is no evaluation: {_said(error)}") from error


def read_comparison(file: Path) -> RunComparison:
    """What `engram compare --out` wrote.

    Raises:
        CheckpointError: it is none, or damaged.
    """
    document = _read(file)
    try:
        differences = tuple(document["differences"])
        for one in differences:
            float(one["difference"]), _ends(one), str(one["what"]), str(one["verdict"])
        if not differences:
            raise ValueError("no differences")
        return RunComparison(file.stem, str(document["command"]), differences)
    except FAULTS as error:
        raise CheckpointError(f"{file} is no comparison: {_said(error)}") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{file} holds no object")
    return document


def _ends(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    return {end: float(row[f"{prefix}{end}"]) for end in ("low", "high")}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
