"""Linear probes: what can be read from each depth by logistic regression, and what that is worth.

Sources: Alain and Bengio 2016 (linear probes by depth); Hewitt and Liang 2019 (control tasks,
selectivity); Voita and Titov 2020 (online code length).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engram_model.errors import UsageError
from engram_probes.bootstrap import divide, interval
from engram_probes.linear_task import NGRAM, At, Label, place_of
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

# What is measured of every reading, its unit, and how it is named in figures.
METRICS = {
    "accuracy": ("share right", "Accuracy"),
    "corrected": ("0: majority class, 1: all right", "Accuracy above the majority class"),
    "control": ("share right", "Accuracy on the control task"),
    "selectivity": ("difference of shares", "Selectivity: accuracy less that on the control task"),
    "bits": ("bits a label", "Online code length"),
}
MAJORITY, IDENTITY = "majority class", f"n-grams up to {NGRAM}"
NO_DEPTH = -1


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LinearProbe(Result):
    """Readings R: one for each depth of each model, and baselines that have no depth.

    Attributes:
        label: what was read; "function" for a callable.
        at: "next", the span of the token to come, or "entity", the last token of a name.
        model, twin, untrained: names of the sources; twin is "" if there was none.
        memory_layers: 0-based layers with a memory; layer i writes between depth i and i + 1.
        classes: names of the K classes.
        class_counts: positions of each, [K].
        documents, positions, groups: how many; a group is what no fold divides.
        folds: of the outer cross-validation.
        sources: of each reading what it is of: a model, or a baseline.
        depths: of each reading, int64 [R]; 0 is the embedding, -1 a baseline without depth.
        widths: number of features of each reading, int64 [R].
        values: metrics (see `METRICS`) by reading, [5, R].
        low, high: 95% interval by bootstrap over groups, the fitted probes given, [5, R].
        group_sums: right, right on the control task, and bits, summed by group, [3, R, G].
        group_counts: positions of each group, [G].
        strengths: C chosen in each outer fold, [R, folds].
        unconverged: fits that reached the limit of iterations.
    """

    kind: ClassVar[str] = "linear"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "class_counts": ("class",),
        "depths": ("reading",),
        "widths": ("reading",),
        "values": ("metric", "reading"),
        "low": ("metric", "reading"),
        "high": ("metric", "reading"),
        "group_sums": ("quantity", "reading", "group"),
        "group_counts": ("group",),
        "strengths": ("reading", "fold"),
    }
    units: ClassVar[dict[str, str]] = {
        "depths": "blocks run; -1: no depth",
        "strengths": "C of scikit-learn: the inverse of the penalty",
        **dict.fromkeys(("values", "low", "high"), "share, or bits a label"),
    }

    label: str
    at: str
    model: str
    twin: str
    untrained: str
    memory_layers: tuple[int, ...]
    classes: tuple[str, ...]
    documents: int
    positions: int
    groups: int
    folds: int
    sources: tuple[str, ...]
    unconverged: int
    class_counts: np.ndarray
    depths: np.ndarray
    widths: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    group_sums: np.ndarray
    group_counts: np.ndarray
    strengths: np.ndarray

    @property
    def uniform_bits(self) -> float:
        """Bits a label without any model: log2 of the number of classes."""
        return float(np.log2(len(self.classes)))

    @property
    def by_depth(self) -> tuple[str, ...]:
        """Sources with depths, the model first."""
        return tuple(dict.fromkeys(np.array(self.sources, dtype=object)[self.depths >= 0]))

    @property
    def baselines(self) -> tuple[str, ...]:
        """Sources without depths."""
        return tuple(np.array(self.sources, dtype=object)[self.depths == NO_DEPTH])

    def curve(
        self, metric: str = "accuracy", source: str | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Depths, value, low and high of one source, [D] each; of a baseline D = 1.

        Raises:
            UsageError: no such metric or source.
        """
        row = _metric(metric)
        chosen = self._rows(source or self.model)
        return (
            self.depths[chosen],
            self.values[row, chosen],
            self.low[row, chosen],
            self.high[row, chosen],
        )

    def difference(
        self, other: str, metric: str = "accuracy"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The model less another source at the same depth (or less a baseline), and its interval.

        Groups are drawn for both at once, so that what they share cancels.

        Returns:
            Depths, difference, low and high, [D] each.

        Raises:
            UsageError: no such metric or source, or no depth in common.
        """
        row = _metric(metric)
        mine, others = self._rows(self.model), self._rows(other)
        if (self.depths[others] == NO_DEPTH).all():
            others = np.repeat(others, len(mine))
        else:
            depths = np.intersect1d(self.depths[mine], self.depths[others])
            mine, others = (rows[np.isin(self.depths[rows], depths)] for rows in (mine, others))
        if not len(mine):
            raise UsageError(f"{self.model} and {other} have no depth in common")
        majority = self.sources.index(MAJORITY)

        def statistic(weights: np.ndarray) -> np.ndarray:
            found = metrics_of(self.group_sums, self.group_counts, majority, weights)[row]
            return found[mine] - found[others]

        seed = self.provenance.seed or 0
        low, high = interval(statistic, self.groups, seed)
        return self.depths[mine], statistic(np.ones(self.groups, dtype=np.int64)), low, high

    def facts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "label": f"{self.label} at {self.at}",
            "classes": len(self.classes),
            "positions": self.positions,
            "groups": self.groups,
        }

    def summary(self) -> str:
        depths, accuracy, low, high = self.curve()
        best = int(np.argmax(accuracy))
        share = f"{accuracy[best]:.0%} right (95% {low[best]:.0%} to {high[best]:.0%})"
        others = (*self.baselines, *self.by_depth[1:])
        against = ", ".join(
            f"{name} {self.curve('accuracy', name)[1].max():.0%}" for name in others
        )
        doubts = [
            name
            for name in (MAJORITY, IDENTITY, self.untrained)
            if self.difference(name)[2][best] <= 0
        ]
        selectivity = self.curve("selectivity")[1][best]
        bits = self.curve("bits")[1][best]
        return (
            f"The {self.label} {PLACES[self.at]} is read best after {depths[best]} blocks of "
            f"{self.model}: {share} among {len(self.classes)} classes, against {against}"
            f"{', not clearly more than ' + ' or '.join(doubts) if doubts else ''}; "
            f"selectivity {100 * selectivity:+.0f} points, {bits:.2f} bits a label where a uniform "
            f"code takes {self.uniform_bits:.2f}."
        )

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each reading and metric."""
        import pandas as pd

        metric, reading = (index.ravel() for index in np.indices(self.values.shape))
        return pd.DataFrame(
            {
                "source": np.array(self.sources, dtype=object)[reading],
                "depth": self.depths[reading],
                "features": self.widths[reading],
                "metric": np.array(list(METRICS))[metric],
                "unit": np.array([unit for unit, _ in METRICS.values()])[metric],
                "value": self.values.ravel(),
                "low": self.low.ravel(),
                "high": self.high.ravel(),
            }
        )

    def figure(self, metric: str = "accuracy") -> "plotly.graph_objects.Figure":
        """One metric by depth: a line a model, baselines across, and the control task."""
        from engram_probes.figures.linear import linear_figure

        _metric(metric)
        return linear_figure(self, metric)

    def _rows(self, source: str) -> np.ndarray:
        rows = np.flatnonzero(np.array(self.sources, dtype=object) == source)
        if not len(rows):
            names = ", ".join(dict.fromkeys(self.sources))
            raise UsageError(f"nothing was read of {source!r}; use one of {names}")
        return rows


PLACES = {
    "next": "of the span of the next token",
    "entity": "of an entity, at the end of its name,",
}


def _metric(name: str) -> int:
    if name not in METRICS:
        raise UsageError(f"no metric {name!r} of a linear probe; use one of {', '.join(METRICS)}")
    return list(METRICS).index(name)


def metrics_of(
    sums: np.ndarray, counts: np.ndarray, majority: int, weights: np.ndarray
) -> np.ndarray:
    """All metrics, [5, R], of weighted groups.

    Args:
        sums: right, right on the control task, and bits, [3, R, G].
        counts: positions of each group, [G].
        majority: the reading of the majority class.
        weights: how often each group counts, [G].
    """
    accuracy, control, bits = divide(sums @ weights, np.asarray(counts @ weights))
    corrected = divide(accuracy - accuracy[majority], np.asarray(1 - accuracy[majority]))
    return np.stack([accuracy, corrected, control, accuracy - control, bits])


def probe(
    model,
    tokenizer,
    texts,
    *,
    label: Label = "tier",
    at: At | None = None,
    depths: tuple[int, ...] | None = None,
    twin=None,
    positions: int = 2000,
    per_document: int = 8,
    most_classes: int = 10,
    folds: int = 5,
    max_documents: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> LinearProbe:
    """What can be read linearly from each depth of a model.

    Args:
        model: an Engram model, a TransformerBridge of one, or another causal model of transformers.
        tokenizer: its tokenizer, a fast one.
        texts: documents with a column `spans` (see docs/world.md).
        label: a field of the spans ("mechanism", "kind", "tier", ...); a kind of span, whose text
            is then a fact of the entity ("university"); or a function of document and span that
            gives a class, or None to leave the position out.
        at: "next": every token before a token of a span, about that span; "entity": the last token
            of the first mention of each entity. None: "next" for mechanism, kind and needs_memory.
        depths: blocks run, 0 is the embedding; None: all.
        twin: a model to read beside it, of the same tokenizer, usually one without a memory.
        positions: most positions.
        per_document: most positions of a document.
        most_classes: the commonest classes are kept.
        folds: of the outer cross-validation.
        max_documents: most documents to look for labels in.
        seed: of every random choice, of the untrained twin too.
        progress: called with (readings done, readings in all).

    Returns:
        A `LinearProbe`.

    Raises:
        UsageError: no such label, one class, fewer groups than folds, or wrong options.
        CorpusError: an empty corpus, or one without spans.
    """
    from engram_probes.linear_run import LinearRun

    run = LinearRun(
        model=model,
        twin=twin,
        tokenizer=tokenizer,
        label=label,
        at=at or place_of(label),
        depths=depths,
        positions=positions,
        per_document=per_document,
        most_classes=most_classes,
        folds=folds,
        seed=seed,
    )
    return run(texts, max_documents, progress)
