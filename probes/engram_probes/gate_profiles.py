"""Gates over a corpus: do they open where a name or a set phrase ends, and for what else?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engram_model.errors import UsageError
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

MEASURES = ("gate", "added")
LABELS = ("entity", "phrase")
CONTROLS = ("matched", "inside")
CHANCE = 0.5
VARIABLES = ("count", "load", "surprisal")
WHAT = {"entity": "name", "phrase": "set phrase"}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GateProfile(Result):
    """Memory layers L, residual streams M, labels K, controls C, groups G; two measures.

    With an index of a corpus: orders of n-grams O, two loads (see `ngram_use`), three variables V.

    The measures are the gate, and the size of what was added over that of the stream it entered.
    No stream is picked: all are here.

    Attributes:
        layers: 0-based ids of the memory layers.
        labels: `entity`: the last token of a name; `phrase`: of a set phrase.
        controls: what they are told from. `matched`: tokens of no such span, of about the same
            frequency and alike in whether they begin a word; `inside`: the other tokens of the
            same spans.
        auc: probability that the measure is larger at a label than at a control (ties count half),
            [K, C, measure, L, M]; 0.5 is chance, NaN where there are none.
        low, high: 95% interval of it, bootstrap over blocks of documents.
        positives: tokens of each label, [K].
        groups, group_kinds: what tokens were grouped into, and by.
        group_mean: [G, measure, L, M]; the mean of the added size is geometric.
        group_low, group_high: 95% interval of it.
        group_tokens: [G, L].
        correlation: of the gates of two streams over tokens, [L, M, M].
        histogram: tokens by value, [measure, L, M, bin].
        edges: of the bins, [measure, bin + 1].
        documents, tokens: how much was read; tokens without special ones.
        orders: of the n-grams; empty without an index, where the rest is None.
        loads: how crowded rows are: by the other n-grams in them, or by the reads of those.
        variables: the n-gram's count, the load of its rows, the next token's surprisal.
        fifths: loads where the fifths of the n-grams begin, but for the first,
            [load, O, L, 4]: other n-grams a head; log(1 + reads of others) a head.
        sampled: tokens that the rank correlations are of.
        spearman: rank correlation of a measure with a variable, [O, load, V, measure, L, M].
        partial: the same given the other two variables.
        spearman_low, spearman_high, partial_low, partial_high: 95% intervals.
        control_low, control_high: where 95% of the partial correlations with the load lie when it
            is that of the rows that another seed's hash would have read,
            [O, load, measure, L, M].
    """

    kind: ClassVar[str] = "gate-profile"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "auc": ("label", "control", "measure", "layer", "stream"),
        "low": ("label", "control", "measure", "layer", "stream"),
        "high": ("label", "control", "measure", "layer", "stream"),
        "positives": ("label",),
        "group_mean": ("group", "measure", "layer", "stream"),
        "group_low": ("group", "measure", "layer", "stream"),
        "group_high": ("group", "measure", "layer", "stream"),
        "group_tokens": ("group", "layer"),
        "correlation": ("layer", "stream", "stream"),
        "histogram": ("measure", "layer", "stream", "bin"),
        "edges": ("measure", "edge"),
        **dict.fromkeys(
            [f"{kind}{end}" for kind in ("spearman", "partial") for end in ("", "_low", "_high")],
            ("order", "load", "variable", "measure", "layer", "stream"),
        ),
        "fifths": ("load", "order", "layer", "fifth"),
        "control_low": ("order", "load", "measure", "layer", "stream"),
        "control_high": ("order", "load", "measure", "layer", "stream"),
    }
    units: ClassVar[dict[str, str]] = {
        "auc": "probability, 0.5 is chance",
        "histogram": "tokens",
    }

    layers: tuple[int, ...]
    labels: tuple[str, ...]
    controls: tuple[str, ...]
    measures: tuple[str, ...]
    groups: tuple[str, ...]
    group_kinds: tuple[str, ...]
    documents: int
    tokens: int
    auc: np.ndarray
    low: np.ndarray
    high: np.ndarray
    positives: np.ndarray
    group_mean: np.ndarray
    group_low: np.ndarray
    group_high: np.ndarray
    group_tokens: np.ndarray
    correlation: np.ndarray
    histogram: np.ndarray
    edges: np.ndarray
    orders: tuple[int, ...] = ()
    loads: tuple[str, ...] = ("tenants", "reads")
    variables: tuple[str, ...] = VARIABLES
    sampled: int = 0
    fifths: np.ndarray | None = None
    spearman: np.ndarray | None = None
    spearman_low: np.ndarray | None = None
    spearman_high: np.ndarray | None = None
    partial: np.ndarray | None = None
    partial_low: np.ndarray | None = None
    partial_high: np.ndarray | None = None
    control_low: np.ndarray | None = None
    control_high: np.ndarray | None = None

    @property
    def streams(self) -> int:
        return self.auc.shape[-1]

    def facts(self) -> dict[str, Any]:
        return {
            "model": self.provenance.models[0]["name"],
            "layers": list(self.layers),
            "streams": self.streams,
            "documents": self.documents,
            "tokens": self.tokens,
        }

    def summary(self) -> str:
        parts = [self._finding(label) for label in range(len(self.labels))]
        said = "; ".join(part for part in parts if part)
        read = f"over {self.tokens:,} tokens of {self.documents:,} documents"
        if not said:
            known = "The texts have no labelled names or phrases; the gates stand"
            return f"{known} {read}{self._frequency()}."
        known = f"{said[0].upper()}{said[1:]}, against matched tokens (0.5 is chance)"
        return f"{known}{self._familiarity()}, {read}{self._frequency()}."

    def _familiarity(self) -> str:
        """Gates at ends of names told never and told most, if both were read."""
        ends = [g for g, name in enumerate(self.groups) if name.startswith("end of a name")]
        first, last = ends[0], ends[-1]
        if not self.group_tokens[[first, last], 0].all():
            return ""
        means = self.group_mean[:, MEASURES.index("gate")].mean((-1, -2))
        return (
            f"; the mean gate there is {means[first]:.2f} for names never told in training and "
            f"{means[last]:.2f} for those told most"
        )

    def _frequency(self) -> str:
        """Partial correlations of the gate with count and load of the longest n-grams."""
        if self.partial is None:
            return ""
        at, gate = (-1, self.loads.index("reads")), MEASURES.index("gate")
        count, load, _ = self.partial[at][:, gate]
        low, high = (array[at][gate] for array in self.control())
        return (
            f"; given load and surprisal the gate goes with the count of the {self.orders[-1]}-gram"
            f" (partial rank correlation {count.min():+.2f} to {count.max():+.2f} over layers and "
            f"streams), given count and surprisal with the reads of others in its rows "
            f"({load.min():+.3f} to {load.max():+.3f}; rows of other hashes "
            f"{low.min():+.3f} to {high.max():+.3f})"
        )

    def _finding(self, label: int) -> str:
        """AUC of a label's gate over layers and streams: the mean, and how far they go."""
        values = self.auc[label, CONTROLS.index("matched"), MEASURES.index("gate")]
        if np.isnan(values).any():
            return ""
        what = WHAT[self.labels[label]]
        return (
            f"gates tell the end of a {what} with AUC {values.mean():.2f} (layers and streams from "
            f"{values.min():.2f} to {values.max():.2f}; {self.positives[label]:,} ends)"
        )

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each label, control, measure, layer and stream."""
        return self._frame("auc", {"auc": self.auc, "low": self.low, "high": self.high})

    def groups_frame(self) -> "pandas.DataFrame":
        """One row for each group, measure, layer and stream."""
        tokens = np.broadcast_to(self.group_tokens[:, None, :, None], self.group_mean.shape)
        numbers = {"mean": self.group_mean, "low": self.group_low, "high": self.group_high}
        frame = self._frame("group_mean", {**numbers, "tokens": tokens})
        kinds = dict(zip(self.groups, self.group_kinds, strict=True))
        frame.insert(0, "kind", frame["group"].map(kinds))
        return frame

    def correlations(self, what: str = "partial") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Partial or `spearman` correlations, low and high, [O, load, V, measure, L, M] each.

        Raises:
            UsageError: no index was given.
        """
        self._check_index()
        found, low, high = (getattr(self, f"{what}{end}") for end in ("", "_low", "_high"))
        return found, low, high

    def control(self) -> tuple[np.ndarray, np.ndarray]:
        """`control_low` and `control_high`.

        Raises:
            UsageError: no index was given.
        """
        self._check_index()
        return self.control_low, self.control_high  # type: ignore[return-value]

    def correlations_frame(self) -> "pandas.DataFrame":
        """One row for each order, load, variable, measure, layer and stream.

        Raises:
            UsageError: no index was given.
        """
        numbers = {
            f"{what}{end}": array
            for what in ("spearman", "partial")
            for end, array in zip(("", "_low", "_high"), self.correlations(what), strict=True)
        }
        only = np.array(self.variables)[:, None, None, None] == "load"
        for end, array in zip(("low", "high"), self.control(), strict=True):
            numbers[f"control_{end}"] = np.where(only, array[:, :, None], np.nan)
        return self._frame("partial", numbers)

    def _check_index(self) -> None:
        if self.partial is None:
            raise UsageError(
                "this profile was read without an index of a corpus; give gate_profile index="
            )

    def _frame(self, like: str, numbers: dict[str, np.ndarray]) -> "pandas.DataFrame":
        """Arrays that share the axes of one, with a column for each axis."""
        import pandas as pd

        names: dict[str, Any] = {
            "label": self.labels,
            "control": self.controls,
            "group": self.groups,
            "measure": self.measures,
            "layer": self.layers,
            "stream": range(self.streams),
            "order": self.orders,
            "load": self.loads,
            "variable": self.variables,
        }
        index = np.indices(getattr(self, like).shape)
        places = {
            axis: [names[axis][i] for i in where.ravel()]
            for axis, where in zip(self.axes[like], index, strict=True)
        }
        return pd.DataFrame({**places, **{name: array.ravel() for name, array in numbers.items()}})

    def figure(self, what: str = "auc", measure: str = "gate") -> "plotly.graph_objects.Figure":
        """`auc`: each label's AUC by layer and stream. `groups`: means by group of tokens.

        With an index also `frequency`: means by count and load of the n-grams, and `correlations`.

        Raises:
            UsageError: no such view or measure, or one that needs an index.
        """
        from engram_probes.figures.gate_profiles import (
            auc_figure,
            correlations_figure,
            frequency_figure,
            groups_figure,
        )

        views = {
            "auc": auc_figure,
            "groups": groups_figure,
            "frequency": frequency_figure,
            "correlations": correlations_figure,
        }
        if what not in views or measure not in self.measures:
            raise UsageError(
                f"no figure of {what!r} and {measure!r}; use one of {', '.join(views)} and one of "
                f"{', '.join(self.measures)}"
            )
        if what in ("frequency", "correlations"):
            self._check_index()
        return views[what](self, measure)


def gate_profile(
    model,
    tokenizer,
    texts,
    *,
    max_documents: int | None = None,
    max_tokens: int | None = 50_000,
    index: Any = None,
    controls: int = 40,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> GateProfile:
    """Read a corpus and see what opens the gates.

    Args:
        model: an Engram model with a memory, or a TransformerBridge of one.
        texts: a str, a list of str, or a Dataset with a column `text`; with a column `spans` (as
            the synthetic world has) names and phrases are known.
        max_documents, max_tokens: where to stop; None: at the end.
        index: counts n-grams and says how crowded rows are: an index that
            `engram_probes.slot_index` built or opened, or a corpus (SPEC, Dataset, texts), which is
            counted first. Best the one the model was trained on. None: no such groups.
        controls: with an index, hashes of other seeds that loads are compared with.
        seed: of the bootstrap, the sample of tokens and the fifths of the load.
        progress: called with documents done and in all.

    Raises:
        UsageError: a model without a memory; an index of another tokenizer or hash.
        CorpusError: no text.
    """
    from engram_probes.gate_profiles_run import read, statistics

    run = read(model, tokenizer, texts, max_documents, max_tokens, progress, index, controls, seed)
    settings: dict[str, Any] = {"max_documents": max_documents, "max_tokens": max_tokens}
    if index is not None:
        settings["controls"] = controls
    return statistics(run, settings, seed)
