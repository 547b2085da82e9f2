"""How evenly a corpus uses the rows of a memory, against a uniform hash."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engram_model.errors import UsageError
from engram_probes.provenance import Provenance, versions
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

    from engram_probes.slot_index import SlotIndex

MOST_BINS = 200
HOT = 0.01  # the share of rows that `hot_share` speaks of
NAMED = 3  # tenants of the hottest row that are named


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RowLoad(Result):
    """Memory layers L, columns C (order 2 + c // H, head c % H), bins of load B.

    A row's *load* is the number of distinct n-grams of the corpus that read it; its *reads* are
    their occurrences.

    Attributes:
        layers, max_ngram_size, n_heads: of the memories.
        tokens: n-grams of each order in the corpus, repeats included.
        distinct: distinct n-grams by order, [O] int64.
        table_rows: rows of each column, [L, C] int64.
        unused: rows that no n-gram reads, [L, C] int64.
        dispersion: variance of the load over its mean, over all rows, [L, C]; 1 for a uniform hash.
        largest: largest load, [L, C] int64.
        hot_share: share of the reads that go to the most read 1% of the rows, [L, C].
        hot_floor: the same if no two n-grams shared a row: the share of the n-grams that are as
            many as 1% of the rows and the most frequent, [L, C].
        hottest: the most read row of each column, [L, C] int64.
        hottest_share: share of the reads that go to it, [L, C].
        hottest_texts: its most frequent n-grams, L tuples of C.
        edges: loads edges[b] to edges[b+1] - 1 fall into bin b, [B+1] int64.
        rows_by_load: rows in each bin, [L, C, B] int64.
    """

    kind: ClassVar[str] = "row-load"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "distinct": ("order",),
        "table_rows": ("layer", "column"),
        "unused": ("layer", "column"),
        "dispersion": ("layer", "column"),
        "largest": ("layer", "column"),
        "hot_share": ("layer", "column"),
        "hot_floor": ("layer", "column"),
        "hottest": ("layer", "column"),
        "hottest_share": ("layer", "column"),
        "edges": ("edge",),
        "rows_by_load": ("layer", "column", "bin"),
    }
    units: ClassVar[dict[str, str]] = {
        "largest": "distinct n-grams a row",
        "edges": "distinct n-grams a row",
        "unused": "rows",
        "rows_by_load": "rows",
        "dispersion": "variance / mean, 1 for a uniform hash",
        "hot_share": "share of the corpus' n-grams, repeats included",
        "hot_floor": "share of the corpus' n-grams, repeats included",
        "hottest_share": "share of the corpus' n-grams, repeats included",
        "hottest": "row of the layer's table",
    }

    layers: tuple[int, ...]
    max_ngram_size: int
    n_heads: int
    tokens: int
    hottest_texts: tuple[tuple[str, ...], ...]
    distinct: np.ndarray
    table_rows: np.ndarray
    unused: np.ndarray
    dispersion: np.ndarray
    largest: np.ndarray
    hot_share: np.ndarray
    hot_floor: np.ndarray
    hottest: np.ndarray
    hottest_share: np.ndarray
    edges: np.ndarray
    rows_by_load: np.ndarray

    @property
    def load(self) -> np.ndarray:
        """Mean load: distinct n-grams over rows, [L, C]."""
        return np.repeat(self.distinct, self.n_heads) / self.table_rows

    @property
    def unused_expected(self) -> np.ndarray:
        """Rows that a uniform hash leaves unused, [L, C]: rows * exp(-load)."""
        return self.table_rows * np.exp(-self.load)

    @property
    def dispersion_band(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the dispersion of a uniform hash lies in 95 of 100 cases, [L, C] each.

        1 ± 1.96 sqrt(2 / (rows - 1)): (rows - 1) times it is about chi-squared distributed.
        """
        half = 1.96 * np.sqrt(2 / np.maximum(self.table_rows - 1, 1))
        return 1 - half, 1 + half

    def rows_expected(self) -> np.ndarray:
        """Rows in each bin under the Poisson law of a uniform hash, [L, C, B]."""
        from scipy.stats import poisson

        below = poisson.cdf(self.edges - 1, self.load[..., None])
        return self.table_rows[..., None] * np.diff(below, axis=-1)

    def facts(self) -> dict[str, Any]:
        return {
            "layers": list(self.layers),
            "n-grams of each order": self.tokens,
            "distinct by order": self.distinct.tolist(),
            "rows a head": self.table_rows[:, :: self.n_heads].tolist(),
            "documents": self.provenance.corpus["documents"],
        }

    def summary(self) -> str:
        low, high = self.dispersion_band
        within = ((self.dispersion >= low) & (self.dispersion <= high)).sum()
        orders = "; ".join(self._use(order) for order in range(len(self.distinct)))
        return (
            f"Distinct n-grams of the corpus: {orders}. The load's spread is a uniform hash's in "
            f"{within} of {self.dispersion.size} heads (95% band; {self.dispersion.min():.2f} to "
            f"{self.dispersion.max():.2f} times the Poisson's). The most read 1% of the rows take "
            f"{self.hot_share.mean():.0%} of the reads; without any sharing it would be "
            f"{self.hot_floor.mean():.0%}."
        )

    def _use(self, order: int) -> str:
        """Load and unused rows of one order's heads."""
        columns = slice(order * self.n_heads, (order + 1) * self.n_heads)
        rows = self.table_rows[:, columns].sum()
        unused, expected = (
            array[:, columns].sum() / rows for array in (self.unused, self.unused_expected)
        )
        return (
            f"{order + 2}-grams {self.load[:, columns].mean():.1f} a row, {unused:.1%} of the rows "
            f"unused (uniform hash: {expected:.1%})"
        )

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each layer, order and head."""
        import pandas as pd

        layer, column = (index.ravel() for index in np.indices(self.table_rows.shape))
        low, high = self.dispersion_band
        return pd.DataFrame(
            {
                "layer": np.array(self.layers)[layer],
                "order": column // self.n_heads + 2,
                "head": column % self.n_heads,
                "rows": self.table_rows.ravel(),
                "load": self.load.ravel(),
                "unused": self.unused.ravel(),
                "unused_expected": self.unused_expected.ravel(),
                "dispersion": self.dispersion.ravel(),
                "dispersion_low": low.ravel(),
                "dispersion_high": high.ravel(),
                "largest": self.largest.ravel(),
                "hot_share": self.hot_share.ravel(),
                "hot_floor": self.hot_floor.ravel(),
                "hottest": self.hottest.ravel(),
                "hottest_share": self.hottest_share.ravel(),
                "hottest_ngrams": [text for row in self.hottest_texts for text in row],
            }
        )

    def figure(self, layer: int | None = None) -> "plotly.graph_objects.Figure":
        """Histogram of the load by order, all heads of a layer together, and the Poisson law.

        Args:
            layer: id of a memory layer; None: the first.
        """
        from engram_probes.figures.slots import load_figure

        if layer is not None and layer not in self.layers:
            has = ", ".join(str(i) for i in self.layers)
            raise UsageError(f"layer {layer} has no memory; layers with one: {has}")
        return load_figure(self, self.layers[0] if layer is None else layer)


def row_load(index: "SlotIndex", tokenizer: Any, compression: np.ndarray | None = None) -> RowLoad:
    """Use of every order's and head's rows by the corpus of an index.

    Args:
        index: what `engram_probes.slot_index` built or opened.
        tokenizer: the one it was built with; it puts the hottest rows' n-grams into words.
        compression: raw id -> compressed id; None: `engram_model.compression_map(tokenizer)`,
            or each id itself where the memory hashes raw ids.

    Raises:
        UsageError: another tokenizer.
    """
    from engram_model.compression import compression_sha256, tokenizer_sha256
    from engram_probes.ngram_texts import NgramTexts

    compression = index.hasher.compression(tokenizer) if compression is None else compression
    index.check(index.hasher, compression_sha256(compression), tokenizer_sha256(tokenizer))
    texts = NgramTexts(tokenizer, compression, index.raw_counts)
    layers = index.hash["layer_ids"]
    largest = max(int(np.diff(index.layers[layer].offsets).max()) for layer in layers)
    edges = np.arange(0, largest + 2 + (width := largest // MOST_BINS + 1), width)
    columns = [
        [_column(index, layer, column, edges, reads, texts) for column in range(_columns(index))]
        for layer, reads in ((layer, index.row_reads(layer)) for layer in layers)
    ]
    hasher = index.hasher
    return RowLoad(
        provenance=Provenance(
            models=[],
            tokenizer_sha256=index.tokenizer_sha256,
            corpus=index.corpus,
            settings={"hash": index.hash},
            versions=versions(),
        ),
        layers=tuple(layers),
        max_ngram_size=index.hash["max_ngram_size"],
        n_heads=index.hash["n_heads"],
        tokens=index.corpus["tokens"],
        hottest_texts=tuple(tuple(c["hottest_texts"] for c in row) for row in columns),
        distinct=np.array([len(counts) for counts in index.counts.values()], dtype=np.int64),
        table_rows=np.stack([hasher.primes(layer).reshape(-1) for layer in layers]),
        edges=edges,
        **{
            name: np.array([[column[name] for column in row] for row in columns])
            for name in columns[0][0]
            if name != "hottest_texts"
        },
    )


def _columns(index: "SlotIndex") -> int:
    return (index.hash["max_ngram_size"] - 1) * index.hash["n_heads"]


def _column(
    index: "SlotIndex", layer: int, column: int, edges: np.ndarray, row_reads: np.ndarray, texts
) -> dict:
    """Numbers of one order and head."""
    hasher, order = index.hasher, column // index.hash["n_heads"] + 2
    first = hasher.offsets(layer)[column]
    rows = int(hasher.primes(layer).reshape(-1)[column])
    used, offsets, ids = index.layers[layer]
    begin, end = np.searchsorted(used, [first, first + rows])
    load = np.diff(offsets[begin : end + 1])
    reads = row_reads[begin:end]
    mean = load.sum() / rows
    hot = max(1, round(HOT * rows))
    hottest = int(np.argmax(reads))
    tenants = ids[offsets[begin + hottest] : offsets[begin + hottest + 1]][:NAMED]
    by_load = np.histogram(load, edges)[0]
    by_load[0] += rows - len(load)
    return {
        "unused": rows - len(load),
        "dispersion": ((load**2).sum() / rows - mean**2) / mean,
        "largest": int(load.max()),
        "hot_share": np.sort(reads)[-hot:].sum() / reads.sum(),
        "hot_floor": np.sort(index.counts[order])[-hot:].sum() / reads.sum(),
        "hottest": int(used[begin + hottest]),
        "hottest_share": reads[hottest] / reads.sum(),
        "hottest_texts": ", ".join(texts(index.ngrams[order][:, i]) for i in tenants),
        "rows_by_load": by_load,
    }
