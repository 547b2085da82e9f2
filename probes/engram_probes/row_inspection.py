"""Single rows of a memory's table: how long they are, what they say, and who reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engram_model.errors import UsageError
from engram_probes.bootstrap import divide
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

    from engram_probes.ngram_counts import Progress


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RowInspection(Result):
    """Rows R of the memories' tables. Of a row's *tenants*, the distinct n-grams of a corpus that
    read it, the T most frequent are named; its own n-gram is the one it was looked up by.

    The fields after `shorter` need a model, those after `says_texts` a corpus; they are None
    (texts: empty) without.

    Attributes:
        layers, orders, heads: of each row, [R].
        ngram_texts: of each row the n-gram it was looked up by; "" where it was by number.
        slots: rows of the layers' flat tables, [R] int64.
        table_rows: rows of the row's order and head, [R] int64.
        row_norm: Euclidean norm, [R].
        control_norm: 2.5%, 50% and 97.5% of the norms of random rows of the same head, [R, 3].
        shorter: share of these that are shorter, [R].
        value_norm: norm of what the row alone adds to the value, [R].
        says_ids, says_logits: the k tokens that this favours when read through the final norm and
            unembedding, and how far above the vocabulary's mean logit, [R, k].
        says_texts: their texts as shown, R tuples of k.
        distinct: distinct n-grams of the row's order in the corpus, [R] int64.
        tenants: those of them that read the row, [R] int64.
        reads: their occurrences, [R] int64.
        own_reads: occurrences of the row's own n-gram, 0 where there is none, [R] int64.
        tenant_counts: occurrences of the most frequent, 0 where there are fewer, [R, T] int64.
        tenant_texts: these tenants; "" where there are fewer, R tuples of T.
        own_tenant: place of the own n-gram among them, -1 where it is not, [R] int64.
    """

    kind: ClassVar[str] = "rows"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        **dict.fromkeys(("slots", "table_rows", "row_norm", "shorter", "value_norm"), ("row",)),
        **dict.fromkeys(("distinct", "tenants", "reads", "own_reads", "own_tenant"), ("row",)),
        "control_norm": ("row", "quantile"),
        "says_ids": ("row", "rank"),
        "says_logits": ("row", "rank"),
        "tenant_counts": ("row", "tenant"),
    }
    units: ClassVar[dict[str, str]] = {
        "slots": "row of the layer's table",
        "shorter": "share of random rows of the head",
        "says_logits": "logit above the mean of the vocabulary",
        "distinct": "distinct n-grams of the corpus",
        "tenants": "distinct n-grams of the corpus",
        "reads": "occurrences in the corpus",
        "own_reads": "occurrences in the corpus",
        "tenant_counts": "occurrences in the corpus",
    }

    layers: tuple[int, ...]
    orders: tuple[int, ...]
    heads: tuple[int, ...]
    ngram_texts: tuple[str, ...]
    slots: np.ndarray
    table_rows: np.ndarray
    row_norm: np.ndarray
    control_norm: np.ndarray
    shorter: np.ndarray
    value_norm: np.ndarray | None = None
    says_ids: np.ndarray | None = None
    says_logits: np.ndarray | None = None
    says_texts: tuple = ()
    distinct: np.ndarray | None = None
    tenants: np.ndarray | None = None
    reads: np.ndarray | None = None
    own_reads: np.ndarray | None = None
    tenant_counts: np.ndarray | None = None
    tenant_texts: tuple = ()
    own_tenant: np.ndarray | None = None

    @property
    def tenants_expected(self) -> np.ndarray | None:
        """Tenants that a uniform hash gives the row, [R]."""
        return None if self.distinct is None else self.distinct / self.table_rows

    @property
    def own_share(self) -> np.ndarray | None:
        """Share of the row's reads that are its own n-gram's, [R]; NaN for a row by number."""
        if self.own_reads is None or self.reads is None:
            return None
        known = np.array([bool(text) for text in self.ngram_texts])
        return np.where(known, divide(self.own_reads, self.reads), np.nan)

    def name(self, row: int) -> str:
        """A row in words."""
        place = f"layer {self.layers[row]}, {self.orders[row]}-grams, head {self.heads[row]}"
        return f"row {self.slots[row]:,} ({place})"

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "tables": self.provenance.models[0]["name"],
            "rows": len(self.slots),
        }
        if self.reads is not None:
            facts["reads in the corpus"] = int(self.reads.sum())
        return facts

    def summary(self) -> str:
        return self.about(0) if len(self.slots) == 1 else self._together()

    def about(self, row: int) -> str:
        """One row in a sentence."""
        said = (
            f"{self.name(row).capitalize()} has norm {self.row_norm[row]:.2f}, longer than "
            f"{self.shorter[row]:.0%} of random rows of its head"
        )
        if self.says_texts:
            said += f"; by itself it favours {_quoted(self.says_texts[row][:3])}"
        if self.tenants is None or self.reads is None or self.tenants_expected is None:
            return f"{said}."
        expected = f"a uniform hash would give it {self.tenants_expected[row]:.1f}"
        if not self.tenants[row]:
            return f"{said}. No n-gram of the corpus reads it; {expected}."
        who = "1 n-gram" if self.tenants[row] == 1 else f"{self.tenants[row]:,} n-grams"
        times = "once" if self.reads[row] == 1 else f"{self.reads[row]:,} times"
        said = f"{said}. It is read {times} by {who} of the corpus ({expected})"
        if self.tenant_counts is None or not self.tenant_texts[row]:
            return f"{said}."
        share = self.tenant_counts[row, 0] / self.reads[row]
        return f"{said}; {share:.1%} of that is “{self.tenant_texts[row][0]}”."

    def _together(self) -> str:
        longest = self.ngram_texts[int(np.argmax(self.orders))]
        of = f"“{longest}” and the shorter n-grams at its end read" if longest else "These are"
        said = (
            f"{of} {len(self.slots)} rows; they are longer than {np.mean(self.shorter):.0%} of "
            "random rows of their heads on average"
        )
        share = self.own_share
        if share is None or np.isnan(share).all():
            return f"{said}."
        best = int(np.nanargmax(share))
        if not share[best] > 0:
            return f"{said}. The corpus does not have it."
        return (
            f"{said}. Most its own is {self.name(best)}, where “{self.ngram_texts[best]}” makes "
            f"{share[best]:.1%} of the corpus' reads; it makes at least half of them in "
            f"{int((share >= 0.5).sum())} of the {len(share)}."
        )

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each row; corpus columns where there was one."""
        import pandas as pd

        frame: dict[str, Any] = {
            "layer": self.layers,
            "order": self.orders,
            "head": self.heads,
            "ngram": self.ngram_texts,
            "slot": self.slots,
            "row_norm": self.row_norm,
            "shorter": self.shorter,
        }
        names = ("value_norm", "tenants", "tenants_expected", "reads", "own_reads", "own_share")
        for name in names:
            if (values := getattr(self, name)) is not None:
                frame[name] = values
        if self.says_texts:
            frame["says"] = [", ".join(texts) for texts in self.says_texts]
        if self.tenant_texts:
            frame["most_frequent"] = [", ".join(filter(None, t)) for t in self.tenant_texts]
        return pd.DataFrame(frame)

    def tenants_frame(self) -> "pandas.DataFrame":
        """One row for each named tenant of each row.

        Raises:
            UsageError: the rows were inspected without a corpus.
        """
        import pandas as pd

        if self.tenant_counts is None or self.own_tenant is None:
            raise UsageError("tenants need a corpus; the rows were inspected without one")
        row, rank = np.nonzero(self.tenant_counts)
        columns = {"layer": self.layers, "order": self.orders, "head": self.heads}
        return pd.DataFrame(
            {
                **{name: np.array(values)[row] for name, values in columns.items()},
                "slot": self.slots[row],
                "ngram": [self.tenant_texts[r][k] for r, k in zip(row, rank, strict=True)],
                "count": self.tenant_counts[row, rank],
                "own": self.own_tenant[row] == rank,
            }
        )

    def figure(self, row: int | None = None) -> "plotly.graph_objects.Figure":
        """Of one row, who reads it and what it says; of all (None), their norms.

        Raises:
            UsageError: no such row, or one of which neither is known.
        """
        from engram_probes.figures.row_inspection import norms_figure, row_figure

        if row is None:
            return norms_figure(self)
        if not 0 <= row < len(self.slots):
            raise UsageError(f"row {row} is none of the {len(self.slots)} that were inspected")
        if self.tenants is None and self.says_ids is None:
            raise UsageError("who reads a row needs a corpus, what it says a model: give one")
        return row_figure(self, row)


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(f"“{text}”" for text in texts)


def inspect_rows(
    model_or_tables: Any,
    tokenizer: Any,
    rows: Any = None,
    *,
    ngram: str | Sequence[int] | None = None,
    corpus: Any = None,
    most: int = 12,
    topk: int = 8,
    controls: int = 1000,
    seed: int = 0,
    progress: "Progress | None" = None,
) -> RowInspection:
    """Rows by number, or those that an n-gram reads: norm, what they say, who reads them.

    Args:
        model_or_tables: an Engram model, a TransformerBridge of one, or any object with the members
            of `engram_probes.memory_tables.MemoryTables`.
        rows: of the flat tables: {layer: [row, ...]}, or a list for a model with one memory.
        ngram: instead of rows a text whose last tokens are n-grams, or these tokens' raw ids; the
            rows that they read in all layers, all orders that fit into it.
        corpus: where tenants are looked for: a SPEC, a Dataset, a list of texts, or an index that
            `engram_probes.slot_index` built or opened.
        most: most frequent tenants of a row that are named.
        topk: tokens kept of what a row says; 0: not read.
        controls: random rows of the same head that a row's norm is set against.
        seed: of these.
        progress: called with (documents of the corpus done, in all or None).

    Raises:
        UsageError: no memory of n-grams, both rows and ngram or neither, rows that do not exist, an
            n-gram of one token, an index of another tokenizer or hash.
        CorpusError: the corpus cannot be read or is empty.
    """
    from engram_probes.row_inspection_run import inspect

    if (rows is None) == (ngram is None):
        raise UsageError("give rows or ngram, one of them")
    if most < 0 or topk < 0 or controls < 1:
        raise UsageError("most and topk are 0 or more, controls 1 or more")
    settings = {"most": most, "topk": topk, "controls": controls}
    return inspect(model_or_tables, tokenizer, rows, ngram, corpus, settings, seed, progress)
