"""Where in a corpus given rows of a memory speak loudest."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engram_model.errors import UsageError
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

MEASURES = ("contribution", "gate")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RowContexts(Result):
    """Rows R of a memory's table, of each the k strongest of its reads; streams M.

    The *contribution* of a row to a position is the size of gate * W_c row, all streams together,
    over that of the streams it enters. W_c is the part of the value projection that reads the
    row's order and head; the convolution is left out.

    Attributes:
        layers, orders, heads: of each row, [R].
        by: what the reads are ranked by: `contribution`, or `gate`, the mean over streams.
        before, token, after: text around each kept read as shown, R tuples of at most k.
        ngram_texts: the n-gram that read the row there.
        documents, tokens: how much was read; tokens without special ones.
        slots: rows of the layers' flat tables, [R] int64.
        value_norm: size of W_c row, [R].
        reads: how often each was read at an ordinary token, [R] int64.
        distinct: by how many distinct n-grams, [R] int64.
        mean, mean_low, mean_high: of `by` over its reads, and a 95% interval, [R].
        control, control_low, control_high: the same over the reads of random rows of the same
            head, [R].
        control_reads: how many these were, [R] int64.
        strength: `by` at the kept reads, strongest first, NaN where there are fewer, [R, k].
        gate: [R, k, M].
        surprisal: of the next token, [R, k].
        document, position: where, -1 where there are fewer, [R, k] int64.
    """

    kind: ClassVar[str] = "row-contexts"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        **dict.fromkeys(("slots", "value_norm", "reads", "distinct"), ("row",)),
        **dict.fromkeys(("mean", "mean_low", "mean_high"), ("row",)),
        **dict.fromkeys(("control", "control_low", "control_high", "control_reads"), ("row",)),
        **dict.fromkeys(("strength", "surprisal", "document", "position"), ("row", "rank")),
        "gate": ("row", "rank", "stream"),
    }
    units: ClassVar[dict[str, str]] = {
        "slots": "row of the layer's table",
        "surprisal": "nats",
        "reads": "ordinary tokens",
        "distinct": "distinct n-grams",
    }

    layers: tuple[int, ...]
    orders: tuple[int, ...]
    heads: tuple[int, ...]
    by: str
    before: tuple[tuple[str, ...], ...]
    token: tuple[tuple[str, ...], ...]
    after: tuple[tuple[str, ...], ...]
    ngram_texts: tuple[tuple[str, ...], ...]
    documents: int
    tokens: int
    slots: np.ndarray
    value_norm: np.ndarray
    reads: np.ndarray
    distinct: np.ndarray
    mean: np.ndarray
    mean_low: np.ndarray
    mean_high: np.ndarray
    control: np.ndarray
    control_low: np.ndarray
    control_high: np.ndarray
    control_reads: np.ndarray
    strength: np.ndarray
    gate: np.ndarray
    surprisal: np.ndarray
    document: np.ndarray
    position: np.ndarray

    def name(self, row: int) -> str:
        """A row in words."""
        place = f"layer {self.layers[row]}, {self.orders[row]}-grams, head {self.heads[row]}"
        return f"row {self.slots[row]} ({place})"

    def facts(self) -> dict[str, Any]:
        return {
            "model": self.provenance.models[0]["name"],
            "rows": len(self.slots),
            "documents": self.documents,
            "tokens": self.tokens,
        }

    def summary(self) -> str:
        read = f"{self.tokens:,} tokens of {self.documents:,} documents"
        if not self.reads.any():
            return f"None of the {len(self.slots)} rows is read in {read}."
        row = int(np.nanargmax(self.strength[:, 0]))
        times = f"{self.reads[row]:,} {'time' if self.reads[row] == 1 else 'times'}"
        ngrams = f"{self.distinct[row]:,} n-gram{'' if self.distinct[row] == 1 else 's'}"
        first = f"The strongest of {len(self.slots)} rows over {read} is {self.name(row)}:"
        if len(self.slots) == 1:
            first = f"Over {read} {self.name(row)} is"
        return (
            f"{first} read {times} by {ngrams}, mean {self.by} {self.mean[row]:.3f} where random "
            f"rows of the head have {self.control[row]:.3f}; strongest, with "
            f"{self.strength[row, 0]:.3f}, at the end of “{self.ngram_texts[row][0]}”."
        )

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each read that was kept."""
        import pandas as pd

        row, rank = np.nonzero(self.document >= 0)
        at = (row, rank)
        places = list(zip(row, rank, strict=True))
        texts = {
            name: [getattr(self, name)[r][k] for r, k in places]
            for name in ("before", "token", "after", "ngram_texts")
        }
        return pd.DataFrame(
            {
                **self._rows(row),
                "rank": rank,
                "strength": self.strength[at],
                "gate": self.gate[at].mean(-1),
                "surprisal": self.surprisal[at],
                "document": self.document[at],
                "position": self.position[at],
                "ngram": texts.pop("ngram_texts"),
                **texts,
            }
        )

    def rows_frame(self) -> "pandas.DataFrame":
        """One row for each row of the table: its reads, and the control."""
        import pandas as pd

        names = [name for name, axes in self.axes.items() if axes == ("row",)]
        numbers = {name: getattr(self, name) for name in names if name != "slots"}
        return pd.DataFrame({**self._rows(np.arange(len(self.slots))), **numbers})

    def _rows(self, row: np.ndarray) -> dict[str, np.ndarray]:
        columns = {"layer": self.layers, "order": self.orders, "head": self.heads}
        found = {name: np.array(values, dtype=int)[row] for name, values in columns.items()}
        return {**found, "slot": self.slots[row]}

    def figure(self) -> "plotly.graph_objects.Figure":
        """Each row's kept reads, the mean of all its reads, and that of random rows."""
        from engram_probes.figures.contexts import contexts_figure

        return contexts_figure(self)


def row_contexts(
    model: Any,
    tokenizer: Any,
    texts: Any,
    rows: Any = None,
    *,
    ngram: str | None = None,
    by: str = "contribution",
    k: int = 10,
    around: int = 8,
    controls: int = 20,
    max_documents: int | None = None,
    max_tokens: int | None = 50_000,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> RowContexts:
    """Read a corpus and keep the strongest reads of given rows.

    Args:
        model: an Engram model with a memory of n-grams, or a TransformerBridge of one.
        texts: a str, a list of str, or a Dataset with a column `text`.
        rows: of the flat table: {layer: [row, ...]}, or a list for a model with one memory. None:
            those of `ngram`; else of each layer, order and head the row that the texts read most,
            for which they are read twice, the first time without the model.
        ngram: text whose last tokens are n-grams; the rows that these read in all layers.
        by: `contribution` or `gate`: what reads are ranked by.
        k: reads kept of each row.
        around: tokens shown on each side.
        controls: random rows of the same head for each row.
        max_documents, max_tokens: where to stop; None: at the end.
        seed: of the random rows and the bootstrap.
        progress: called with documents done and in all.

    Raises:
        UsageError: no memory of n-grams, rows that do not exist, both rows and ngram, a text of one
            token as ngram, an unknown `by`, texts that can be read only once without rows.
        CorpusError: no text.
    """
    from engram_probes.contexts_run import measure

    if by not in MEASURES:
        raise UsageError(f"by={by!r}: use one of {', '.join(MEASURES)}")
    if rows is not None and ngram is not None:
        raise UsageError("give rows or ngram, not both")
    limits = {"max_documents": max_documents, "max_tokens": max_tokens}
    settings = {"by": by, "k": k, "around": around, "controls": controls, "ngram": ngram, **limits}
    return measure(model, tokenizer, texts, rows, settings, seed, progress)
