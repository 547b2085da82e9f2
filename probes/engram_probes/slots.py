"""Which rows a text reads, how long they are, what they say, and who else hashes there."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from engram_model.errors import UsageError
from engram_probes.bootstrap import divide
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

    from engram_probes.ngram_counts import Progress

What = Literal["tenants", "own_share", "row_norm", "value_norm"]
WHAT: tuple[What, ...] = ("tenants", "own_share", "row_norm", "value_norm")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SlotTrace(Result):
    """Memory layers L, positions p (0 is <bos>), orders O = N-1, heads H, columns C = O*H.

    Column c is order 2 + c // H, head c % H. The fields after `first` need a model, those after
    `says_texts` a corpus; they are None (texts: empty) without.

    Attributes:
        layers: 0-based ids of the memory layers, [L].
        tokens: text of each token as shown.
        max_ngram_size, n_heads: N and H.
        ngram_texts: of each order the n-gram that ends at each position, O tuples of p. Compressed
            ids are shown by the first raw token that has them.
        token_ids, compressed_ids: [p].
        special: positions of special tokens and position 0, which statistics leave out, bool [p].
        slots: rows of the layer's flat table, [L, p, C] int64.
        row_norm: Euclidean norm of each row, [L, p, C].
        table_rows: rows of each order and head, [L, C] int64.
        first: an ordinary position where its n-gram comes first in the text, bool [O, p].
        value_norm: norm of what the row alone adds to the value, [L, p, C].
        says_ids, says_logits: the k tokens that the row's share of the value favours when read
            through the final norm and unembedding, and how far above the vocabulary's mean logit,
            [L, p, C, k].
        says_texts: their texts as shown, nested as says_ids.
        distinct: distinct n-grams of the corpus by order, [O] int64.
        ngram_counts: occurrences in the corpus, [O, p] int64.
        tenants: other distinct n-grams of the corpus that read the row, [L, p, C] int64.
        row_reads: occurrences of all n-grams that read the row, [L, p, C] int64.
        shared: other n-grams of the corpus that share exactly k of the H rows of this order, k the
            last index, [L, O, p, H+1] int64.
        shared_expected: their number under uniform, independent hashes.
        tenant_counts: occurrences of the most frequent other tenants, 0 where there are fewer,
            [L, p, C, T] int64.
        tenant_texts: these tenants, nested as tenant_counts; "" where there are fewer.
    """

    kind: ClassVar[str] = "slots"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "token_ids": ("position",),
        "compressed_ids": ("position",),
        "special": ("position",),
        "slots": ("layer", "position", "column"),
        "row_norm": ("layer", "position", "column"),
        "table_rows": ("layer", "column"),
        "first": ("order", "position"),
        "value_norm": ("layer", "position", "column"),
        "says_ids": ("layer", "position", "column", "rank"),
        "says_logits": ("layer", "position", "column", "rank"),
        "distinct": ("order",),
        "ngram_counts": ("order", "position"),
        "tenants": ("layer", "position", "column"),
        "row_reads": ("layer", "position", "column"),
        "shared": ("layer", "order", "position", "heads"),
        "shared_expected": ("layer", "order", "position", "heads"),
        "tenant_counts": ("layer", "position", "column", "tenant"),
    }
    units: ClassVar[dict[str, str]] = {
        "slots": "row of the layer's table",
        "says_logits": "logit above the mean of the vocabulary",
        "distinct": "distinct n-grams of the corpus",
        "ngram_counts": "occurrences in the corpus",
        "tenants": "other distinct n-grams of the corpus",
        "row_reads": "occurrences in the corpus",
        "shared": "other distinct n-grams of the corpus",
        "shared_expected": "other distinct n-grams of the corpus",
        "tenant_counts": "occurrences in the corpus",
    }

    layers: tuple[int, ...]
    tokens: tuple[str, ...]
    max_ngram_size: int
    n_heads: int
    ngram_texts: tuple[tuple[str, ...], ...]
    token_ids: np.ndarray
    compressed_ids: np.ndarray
    special: np.ndarray
    slots: np.ndarray
    row_norm: np.ndarray
    table_rows: np.ndarray
    first: np.ndarray
    value_norm: np.ndarray | None = None
    says_ids: np.ndarray | None = None
    says_logits: np.ndarray | None = None
    says_texts: tuple = ()
    distinct: np.ndarray | None = None
    ngram_counts: np.ndarray | None = None
    tenants: np.ndarray | None = None
    row_reads: np.ndarray | None = None
    shared: np.ndarray | None = None
    shared_expected: np.ndarray | None = None
    tenant_counts: np.ndarray | None = None
    tenant_texts: tuple = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slots.shape[:2] != (len(self.layers), len(self.tokens)):
            raise ValueError(
                f"slots has shape {self.slots.shape} for {len(self.layers)} layers and "
                f"{len(self.tokens)} tokens"
            )

    @property
    def order_of_column(self) -> np.ndarray:
        """Index of the order (0 is 2-grams) of each column, [C]."""
        return np.arange(self.slots.shape[2]) // self.n_heads

    @property
    def in_corpus(self) -> np.ndarray | None:
        """Whether the corpus has the n-gram, bool [O, p]."""
        return None if self.ngram_counts is None else self.ngram_counts > 0

    @property
    def tenants_expected(self) -> np.ndarray | None:
        """Other n-grams that a uniform hash puts into the row, [L, p, C]: others / rows."""
        if self.distinct is None or self.in_corpus is None:
            return None
        others = (self.distinct[:, None] - self.in_corpus)[self.order_of_column]  # [C, p]
        return others.T[None] / self.table_rows[:, None, :]

    @property
    def own_share(self) -> np.ndarray | None:
        """Share of the row's reads in the corpus that are this n-gram's, [L, p, C]."""
        if self.ngram_counts is None or self.row_reads is None:
            return None
        own = self.ngram_counts[self.order_of_column].T[None]
        return divide(own, self.row_reads)

    def shared_totals(self) -> tuple[np.ndarray, np.ndarray] | None:
        """`shared` and `shared_expected` over the text's distinct n-grams, [L, O, H+1] each."""
        if self.shared is None or self.shared_expected is None:
            return None
        weights = self.first[None, :, :, None]
        return (self.shared * weights).sum(2), (self.shared_expected * weights).sum(2)

    def values(self, what: What = "tenants") -> np.ndarray:
        """One number for each row that is read, [L, p, C].

        Raises:
            UsageError: no such quantity, or one that needs a corpus or model that was not given.
        """
        if what not in WHAT:
            raise UsageError(f"{what!r} is not in a slot trace; use one of {', '.join(WHAT)}")
        values = getattr(self, what)
        if values is None:
            missing = "a model" if what == "value_norm" else "a corpus"
            raise UsageError(f"{what} needs {missing}; the slots were inspected without one")
        return values

    def facts(self) -> dict[str, Any]:
        known = None if self.in_corpus is None else self.in_corpus[:, ~self.special]
        facts: dict[str, Any] = {
            "tables": self.provenance.models[0]["name"],
            "layers": list(self.layers),
            "tokens": len(self.tokens),
            "rows a head": [int(n) for n in np.unique(self.table_rows[:, :: self.n_heads])],
        }
        if known is not None:
            facts["n-grams found in the corpus"] = f"{known.sum()} of {known.size}"
        return facts

    def summary(self) -> str:
        ordinary = ~self.special
        if not ordinary.any():
            return "There is no slot to speak of: the text holds special tokens only."
        expected, share, totals = self.tenants_expected, self.own_share, self.shared_totals()
        read = len({(layer, row) for layer, rows in enumerate(self.slots[:, ordinary])
                    for row in rows.ravel().tolist()})  # fmt: skip
        if self.tenants is None or expected is None or share is None or totals is None:
            return (
                f"The text reads {read:,} distinct rows in {len(self.layers)} layer(s), of norm "
                f"{np.median(self.row_norm[:, ordinary]):.2f} in the median; a corpus would tell "
                "who else reads them."
            )
        several, chance = (total[..., 2:].sum() for total in totals)
        own = share[:, ordinary]
        half = (own[np.isfinite(own)] >= 0.5).mean() if np.isfinite(own).any() else 0.0
        return (
            f"The text reads {read:,} distinct rows; a row that it reads holds "
            f"{self.tenants[:, ordinary].mean():.1f} other n-grams of the corpus on average "
            f"({expected[:, ordinary].mean():.1f} expected of a uniform hash); in {half:.0%} of the"
            " lookups the text's own n-gram makes at least half of the corpus' reads of the row; "
            f"{several:,} n-grams share two rows or more with one of the text's ({chance:,.1f} "
            "expected)."
        )

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each layer, position, order and head; corpus columns where there was one."""
        import pandas as pd

        layer, position, column = (
            index.ravel() for index in np.indices(self.slots.shape, dtype=np.int64)
        )
        order = column // self.n_heads
        texts = np.array(self.ngram_texts, dtype=object).reshape(self.first.shape)
        frame: dict[str, Any] = {
            "layer": np.array(self.layers)[layer],
            "position": position,
            "token": np.array(self.tokens, dtype=object)[position],
            "special": self.special[position],
            "order": order + 2,
            "head": column % self.n_heads,
            "ngram": texts[order, position],
            "slot": self.slots.ravel(),
            "row_norm": self.row_norm.ravel(),
        }
        for name in ("value_norm", "tenants", "tenants_expected", "row_reads", "own_share"):
            if getattr(self, name) is not None:
                frame[name] = getattr(self, name).ravel()
        if self.ngram_counts is not None:
            frame["ngram_count"] = self.ngram_counts[order, position]
            frame["most_frequent_tenants"] = self._listed(self.tenant_texts, layer.size)
        if self.says_ids is not None:
            frame["says"] = self._listed(self.says_texts, layer.size)
        return pd.DataFrame(frame)

    def _listed(self, texts: tuple, size: int) -> list[str]:
        """Nested texts [L][p][C][...] as one string each, in the order of a raveled array."""
        flat = [", ".join(filter(None, cell)) for rows in texts for row in rows for cell in row]
        assert len(flat) == size
        return flat

    def figure(
        self, what: What | None = None, layer: int | None = None
    ) -> "plotly.graph_objects.Figure":
        """Heat map of orders and heads by position.

        Args:
            what: "tenants" (the default with a corpus), "own_share", "row_norm" (the default
                without) or "value_norm".
            layer: id of a memory layer; None: all, one above the other.
        """
        from engram_probes.figures.slots import trace_figure

        if layer is not None and layer not in self.layers:
            has = ", ".join(str(i) for i in self.layers)
            raise UsageError(f"layer {layer} has no memory; layers with one: {has}")
        return trace_figure(
            self, what or ("row_norm" if self.tenants is None else "tenants"), layer
        )


def inspect_slots(
    model_or_tables: Any,
    tokenizer: Any,
    text: str,
    corpus: Any = None,
    *,
    most: int = 3,
    topk: int = 5,
    progress: "Progress | None" = None,
) -> SlotTrace:
    """Text -> compressed ids -> n-grams -> order, head -> row: its norm and who else hashes there.

    Args:
        model_or_tables: an Engram model, a TransformerBridge of one, or any object with the members
            of `engram_probes.memory_tables.MemoryTables`.
        tokenizer: its tokenizer; the text is read as `<bos>` + text.
        text: at most the model's context long.
        corpus: where other n-grams are looked for: a SPEC, a Dataset, a list of texts, or an index
            that `engram_probes.slot_index` built or opened.
        most: most frequent tenants of a row that are named.
        topk: tokens kept of what a row says; 0: not read.
        progress: called with (documents of the corpus done, in all or None).

    Raises:
        UsageError: an empty or too long text, a model without a memory of n-grams, an index of
            another tokenizer or hash.
        CorpusError: the corpus cannot be read or is empty.
    """
    from engram_probes.memory_tables import tables_of
    from engram_probes.slots_run import index_of, trace

    tables = tables_of(model_or_tables)
    if not isinstance(text, str):
        raise UsageError(f"inspect_slots reads one text, not {type(text).__name__}")
    index = None if corpus is None else index_of(tables, tokenizer, corpus, progress)
    return trace(tables, tokenizer, text, index, most, topk)
