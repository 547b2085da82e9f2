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
WHAT = {"entity": "name", "phrase": "set phrase"}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GateProfile(Result):
    """Memory layers L, residual streams M, labels K, controls C, groups G; two measures.

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
        groups: what tokens were grouped by, and into.
        group_mean: [G, measure, L, M]; the mean of the added size is geometric.
        group_low, group_high: 95% interval of it.
        group_tokens: [G].
        correlation: of the gates of two streams over tokens, [L, M, M].
        histogram: tokens by value, [measure, L, M, bin].
        edges: of the bins, [measure, bin + 1].
        documents, tokens: how much was read; tokens without special ones.
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
        "group_tokens": ("group",),
        "correlation": ("layer", "stream", "stream"),
        "histogram": ("measure", "layer", "stream", "bin"),
        "edges": ("measure", "edge"),
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
            return f"The texts have no labelled names or phrases; the gates stand {read}."
        known = f"{said[0].upper()}{said[1:]}, against matched tokens (0.5 is chance)"
        return f"{known}{self._familiarity()}, {read}."

    def _familiarity(self) -> str:
        """Gates at ends of names told never and told most, if both were read."""
        ends = [g for g, name in enumerate(self.groups) if name.startswith("end of a name")]
        first, last = ends[0], ends[-1]
        if not self.group_tokens[[first, last]].all():
            return ""
        means = self.group_mean[:, MEASURES.index("gate")].mean((-1, -2))
        return (
            f"; the mean gate there is {means[first]:.2f} for names never told in training and "
            f"{means[last]:.2f} for those told most"
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
        import pandas as pd

        index = np.indices(self.auc.shape).reshape(5, -1)
        names = (self.labels, self.controls, self.measures, self.layers, range(self.streams))
        columns = ("label", "control", "measure", "layer", "stream")
        frame = {
            column: [values[i] for i in places]
            for column, values, places in zip(columns, names, index, strict=True)
        }
        numbers = {"auc": self.auc, "low": self.low, "high": self.high}
        return pd.DataFrame({**frame, **{name: array.ravel() for name, array in numbers.items()}})

    def groups_frame(self) -> "pandas.DataFrame":
        """One row for each group, measure, layer and stream."""
        import pandas as pd

        index = np.indices(self.group_mean.shape).reshape(4, -1)
        names = (self.groups, self.measures, self.layers, range(self.streams))
        columns = ("group", "measure", "layer", "stream")
        frame = {
            column: [values[i] for i in places]
            for column, values, places in zip(columns, names, index, strict=True)
        }
        numbers = {
            "mean": self.group_mean,
            "low": self.group_low,
            "high": self.group_high,
        }
        tokens = self.group_tokens[index[0]]
        return pd.DataFrame(
            {**frame, **{name: array.ravel() for name, array in numbers.items()}, "tokens": tokens}
        )

    def figure(self, what: str = "auc", measure: str = "gate") -> "plotly.graph_objects.Figure":
        """`auc`: each label's AUC by layer and stream. `groups`: means by group of tokens.

        Raises:
            UsageError: no such view or measure.
        """
        from engram_probes.figures.gate_profiles import auc_figure, groups_figure

        views = {"auc": auc_figure, "groups": groups_figure}
        if what not in views or measure not in self.measures:
            raise UsageError(
                f"no figure of {what!r} and {measure!r}; use one of {', '.join(views)} and one of "
                f"{', '.join(self.measures)}"
            )
        return views[what](self, measure)


def gate_profile(
    model,
    tokenizer,
    texts,
    *,
    max_documents: int | None = None,
    max_tokens: int | None = 50_000,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> GateProfile:
    """Read a corpus and see what opens the gates.

    Args:
        model: an Engram model with a memory, or a TransformerBridge of one.
        texts: a str, a list of str, or a Dataset with a column `text`; with a column `spans` (as
            the synthetic world has) names and phrases are known.
        max_documents, max_tokens: where to stop; None: at the end.
        seed: of the bootstrap.
        progress: called with documents done and in all.

    Raises:
        UsageError: a model without a memory.
        CorpusError: no text.
    """
    from engram_probes.gate_profiles_run import read, statistics

    run = read(model, tokenizer, texts, max_documents, max_tokens, progress)
    settings = {"max_documents": max_documents, "max_tokens": max_tokens}
    return statistics(run, settings, seed)
