"""Which layers of two models hold alike representations: CKA of all pairs of layers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from engram_model.errors import UsageError
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

VIEWS = ("cka", "neighbours", "procrustes", "rsa", "sinks")
SECOND = VIEWS[1:4]  # the order of `second_null_mean`
SINKS_MATTER = 0.1  # a change of CKA that a reader should know of


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Alignment(Result):
    """Rows R are the blocks of the baseline (`model_b`), columns C those of `model_a`, 0-based.

    Attributes:
        model_a, model_b: names.
        memory_layers: 0-based layers of `model_a` with a memory.
        positions: "sampled", "entity", or "kind:NAME" or "mechanism:NAME" of spans.
        documents, samples, batches: how much was compared.
        blocks: of documents, which the interval draws from.
        batch_size, per_document: documents a batch; positions a document.
        permutations: of the null.
        k: rows that enter the soft alignment.
        other_tokenizer: whether the models have two; then only positions where tokens of both end
            are compared.
        aligned_share: share of `model_a`'s positions that were such.
        neighbours_k: neighbours that enter `neighbours`.
        neighbours_chance: what `neighbours` is for unrelated layers.
        pool: samples, one a document, that the second opinions are formed of.
        sink_share: share of samples that a special token or position 0 takes the place of in
            `with_sinks`: as many as there are in the texts.
        matrix: debiased CKA, [R, C]. Can be slightly negative.
        low, high: 95% interval by drawing blocks of documents, [R, C]; NaN for fewer than 5.
        null_mean, null_high: mean and 95th percentile with samples permuted, [R, C].
        with_sinks: debiased CKA with special tokens and position 0 put back in, [R, C].
        neighbours: overlap of mutual nearest neighbours, [R, C], 0 to 1.
        procrustes: likeness after the best rotation, [R, C], 0 to 1; see `second_opinions`.
        rsa: Spearman correlation of dissimilarities, [R, C].
        second_null_mean, second_null_high: mean and 95th percentile of these three (`SECOND`) with
            samples permuted, [measure, R, C].
        second_soft: soft alignment by each, of what is above chance, [measure, C].
        second_low, second_high: its 95% interval, a jackknife over documents, [measure, C].
        soft_index: layer of the baseline that each column is most like, [C]; see `soft_alignment`.
        soft_low, soft_high: its interval, [C].
    """

    kind: ClassVar[str] = "cka"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "matrix": ("row", "column"),
        "low": ("row", "column"),
        "high": ("row", "column"),
        "null_mean": ("row", "column"),
        "null_high": ("row", "column"),
        "with_sinks": ("row", "column"),
        "neighbours": ("row", "column"),
        "procrustes": ("row", "column"),
        "rsa": ("row", "column"),
        "second_null_mean": ("measure", "row", "column"),
        "second_null_high": ("measure", "row", "column"),
        "second_soft": ("measure", "column"),
        "second_low": ("measure", "column"),
        "second_high": ("measure", "column"),
        "soft_index": ("column",),
        "soft_low": ("column",),
        "soft_high": ("column",),
    }
    units: ClassVar[dict[str, str]] = {
        "neighbours": "share of neighbours",
        "second_soft": "layer of model_b",
        "second_low": "layer of model_b",
        "second_high": "layer of model_b",
        "soft_index": "layer of model_b",
        "soft_low": "layer of model_b",
        "soft_high": "layer of model_b",
    }

    model_a: str
    model_b: str
    memory_layers: tuple[int, ...]
    positions: str
    documents: int
    samples: int
    batches: int
    blocks: int
    batch_size: int
    per_document: int
    permutations: int
    k: int
    matrix: np.ndarray
    low: np.ndarray
    high: np.ndarray
    null_mean: np.ndarray
    null_high: np.ndarray
    soft_index: np.ndarray
    soft_low: np.ndarray
    soft_high: np.ndarray
    other_tokenizer: bool = False
    aligned_share: float = 1.0
    sink_share: float = 0.0
    with_sinks: np.ndarray | None = None
    pool: int = 0
    neighbours_k: int = 0
    neighbours_chance: float = 0.0
    neighbours: np.ndarray | None = None
    procrustes: np.ndarray | None = None
    rsa: np.ndarray | None = None
    second_null_mean: np.ndarray | None = None
    second_null_high: np.ndarray | None = None
    second_soft: np.ndarray | None = None
    second_low: np.ndarray | None = None
    second_high: np.ndarray | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.soft_index.shape != self.matrix.shape[1:]:
            raise ValueError(
                f"soft_index has shape {self.soft_index.shape}, matrix {self.matrix.shape}"
            )

    @property
    def soft_floor(self) -> float:
        """Lowest possible soft index, for k rows of equal weight: the line cannot go below."""
        return (self.k - 1) / 2

    @property
    def soft_ceiling(self) -> float:
        """Highest possible soft index, for k rows of equal weight."""
        return len(self.matrix) - 1 - self.soft_floor

    def facts(self) -> dict:
        return {
            "model_a": self.model_a,
            "model_b": self.model_b,
            "layers": list(self.matrix.shape),
            "documents": self.documents,
            "samples": self.samples,
            "positions": self.positions,
        }

    def summary(self) -> str:
        if not np.isfinite(self.soft_index).any():
            return (
                f"No layer of {self.model_a} is like any of {self.model_b}, over "
                f"{self.samples:,} samples."
            )
        column, shift = self.largest_shift
        sure = f" ({self._interval(column)})"
        null = ""
        if self.permutations:
            beyond = float(np.mean(self.matrix > self.null_high))
            null = f"; {beyond:.0%} of the layer pairs are more alike than permuted samples"
        return (
            f"The largest shift is {shift:+.1f}: layer {column} of {self.model_a} is most like "
            f"layer {self.soft_index[column]:.1f}{sure} of {self.model_b}{self._others(column)}"
            f"{null}, over {self.samples:,} samples of {self.documents:,} documents"
            f"{self._aligned()}. {self.sinks_said()}"
        ).strip()

    @property
    def reachable(self) -> np.ndarray:
        """Bool [C]: layers whose own index the soft alignment can take with even weights."""
        layers = np.arange(len(self.soft_index))
        return (layers >= self.soft_floor) & (layers <= self.soft_ceiling)

    @property
    def largest_shift(self) -> tuple[int, float]:
        """Column that is shifted most, of those that are reachable, and its shift in layers."""
        return largest_shift(self.soft_index, self.soft_floor, self.soft_ceiling)

    def _interval(self, column: int) -> str:
        low, high = self.soft_low[column], self.soft_high[column]
        if np.isfinite(low):
            return f"95% interval {low:.1f} to {high:.1f}"
        return f"no interval: {self.blocks} blocks of documents are too few, give more documents"

    def _others(self, column: int) -> str:
        """What the second opinions say of a column."""
        if self.second_soft is None:
            return ""
        said = ", ".join(
            f"{name} {index:.1f}"
            for name, index in zip(SECOND, self.second_soft[:, column], strict=True)
        )
        return f"; by second opinions: {said}"

    def _aligned(self) -> str:
        if not self.other_tokenizer:
            return ""
        return f"; {self.aligned_share:.0%} of the positions end a token of both tokenizers"

    @property
    def sink_change(self) -> float:
        """Largest change of a cell with special tokens and position 0 put back; NaN: not asked."""
        if self.with_sinks is None:
            return float("nan")
        change = (self.with_sinks - self.matrix).ravel()
        known = change[np.isfinite(change)]
        return float(known[np.argmax(np.abs(known))]) if known.size else float("nan")

    def sinks_said(self) -> str:
        """One sentence where special tokens would matter, else ""."""
        if not abs(self.sink_change) > SINKS_MATTER:
            return ""
        return (
            f"Special tokens and position 0 are left out: put back, as {self.sink_share:.1%} of "
            f"the samples, they would change CKA by up to {self.sink_change:+.2f}."
        )

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each pair of layers; measures that were left out have no columns."""
        import pandas as pd

        row, column = np.indices(self.matrix.shape)
        columns = {
            "layer_b": row,
            "layer_a": column,
            "cka": self.matrix,
            "low": self.low,
            "high": self.high,
            "null_mean": self.null_mean,
            "null_high": self.null_high,
            "with_sinks": self.with_sinks,
        }
        for measure, name in enumerate(SECOND):
            columns[name] = getattr(self, name)
            if self.second_null_mean is not None and self.second_null_high is not None:
                columns[f"{name}_null_mean"] = self.second_null_mean[measure]
                columns[f"{name}_null_high"] = self.second_null_high[measure]
        known = {name: array.ravel() for name, array in columns.items() if array is not None}
        return pd.DataFrame(known)

    def soft_frame(self) -> "pandas.DataFrame":
        """One row for each layer of `model_a`: the layer of `model_b` it is most like."""
        import pandas as pd

        frame = {
            "layer_a": np.arange(len(self.soft_index)),
            "soft_index": self.soft_index,
            "low": self.soft_low,
            "high": self.soft_high,
        }
        soft = (self.second_soft, self.second_low, self.second_high)
        for end, arrays in zip(("", "_low", "_high"), soft, strict=True):
            if arrays is not None:
                frame |= {name + end: array for name, array in zip(SECOND, arrays, strict=True)}
        return pd.DataFrame(frame)

    def shown(self, what: str) -> tuple[np.ndarray, np.ndarray]:
        """A measure and what chance gives, [R, C] each.

        Raises:
            UsageError: no such measure, or one that was left out.
        """
        if what not in VIEWS:
            raise UsageError(f"{what!r}: an alignment has {', '.join(VIEWS)}")
        values = {"cka": self.matrix, "sinks": self.with_sinks}
        shown = values[what] if what in values else getattr(self, what)
        if shown is None:
            raise UsageError(f"{what!r} was left out of this alignment; measure it again with it")
        if what == "neighbours" and self.second_null_mean is None:  # of an older file
            return shown, np.full(shown.shape, self.neighbours_chance)
        if what in SECOND and self.second_null_mean is not None:
            return shown, self.second_null_mean[SECOND.index(what)]
        return shown, self.matrix if what == "sinks" else self.null_mean

    @property
    def measures(self) -> tuple[str, ...]:
        """Which of `VIEWS` this alignment has."""
        arrays = (self.matrix, *(getattr(self, name) for name in SECOND), self.with_sinks)
        return tuple(v for v, array in zip(VIEWS, arrays, strict=True) if array is not None)

    def soft(self, what: str = "cka") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Soft alignment by a measure, with its interval: [C] each, NaN where unknown."""
        soft, low, high = self.soft_index, self.soft_low, self.soft_high
        if what in SECOND:
            unknown = np.full((len(SECOND), len(soft)), np.nan)
            arrays = (self.second_soft, self.second_low, self.second_high)
            place = SECOND.index(what)
            soft, low, high = ((unknown if a is None else a)[place] for a in arrays)
        return soft, low, high

    def pair_frame(self, row: int, column: int) -> "pandas.DataFrame":
        """One pair of layers, one row for each measure: value, interval, what chance gives.

        Raises:
            UsageError: no such pair.
        """
        import pandas as pd

        self._check_pair(row, column)
        cell = row, column
        rows = []
        for name in self.measures:
            value, null = self.shown(name)
            high = self.null_high if name == "cka" else None
            if name in SECOND and self.second_null_high is not None:
                high = self.second_null_high[SECOND.index(name)]
            rows.append(
                {
                    "measure": name,
                    "value": value[cell],
                    "low": self.low[cell] if name == "cka" else np.nan,
                    "high": self.high[cell] if name == "cka" else np.nan,
                    "null_mean": np.nan if name == "sinks" else null[cell],
                    "null_high": np.nan if high is None else high[cell],
                }
            )
        return pd.DataFrame(rows)

    def pair_summary(self, row: int, column: int) -> str:
        """One sentence on a pair of layers: how alike, against chance and its neighbours."""
        self._check_pair(row, column)
        value, low, high = (float(a[row, column]) for a in (self.matrix, self.low, self.high))
        sure = f" (95% interval {low:.2f} to {high:.2f})" if np.isfinite(low) else ""
        null = float(self.null_high[row, column])
        chance = ""
        if np.isfinite(null):
            above = "above" if value > null else "not above"
            chance = f", {above} what 95% of permutations give ({null:.2f})"
        rank = 1 + int((self.matrix[:, column] > value).sum())
        place = "the most alike" if rank == 1 else f"number {rank}"
        return (
            f"Layer {column} of {self.model_a} and layer {row} of {self.model_b}: CKA "
            f"{value:.2f}{sure}{chance}; {place} of the {len(self.matrix)} layers of "
            f"{self.model_b} for this one."
        )

    def _check_pair(self, row: int, column: int) -> None:
        rows, columns = self.matrix.shape
        if not (0 <= row < rows and 0 <= column < columns):
            raise UsageError(
                f"layers {row} and {column}: {self.model_b} has 0 to {rows - 1}, "
                f"{self.model_a} 0 to {columns - 1}"
            )

    def figure(
        self, what: str = "cka", pair: tuple[int, int] | None = None
    ) -> "plotly.graph_objects.Figure":
        """Heatmap with the soft alignment and the diagonal, beside it the null.

        Args:
            what: "cka"; "neighbours", "procrustes" or "rsa" for a second opinion; "sinks" for CKA
                with special tokens and position 0 put back, beside it without; "soft" for the soft
                alignment by each measure, with intervals.
            pair: a row and a column of the matrix: instead of the heatmap, that column's and that
                row's values with their intervals and null, the pair marked.

        Raises:
            UsageError: no such measure or pair, or one that was left out.
        """
        from engram_probes.figures.alignment import alignment_figure
        from engram_probes.figures.alignment_parts import pair_figure, soft_figure

        if what == "soft":
            return soft_figure(self)
        if pair is not None:
            self._check_pair(*pair)
            return pair_figure(self, what, *pair)
        return alignment_figure(self, what)


def largest_shift(soft_index: np.ndarray, floor: float, ceiling: float) -> tuple[int, float]:
    """Column and shift, of the columns whose own index is one that the line can reach."""
    layers = np.arange(len(soft_index))
    shift = soft_index - layers
    reachable = (layers >= floor) & (layers <= ceiling)
    if np.isfinite(shift[reachable]).any():
        shift = np.where(reachable, shift, np.nan)
    column = int(np.nanargmax(np.abs(shift)))
    return column, float(shift[column])


def soft_alignment(matrix: np.ndarray, k: int) -> np.ndarray:
    """Centre of gravity of the k most alike rows of each column: [..., R, C] -> [..., C].

    a_j = sum over the top k rows i of S_ij i / sum of S_ij (arXiv 2601.07372, eq. 9). Negative
    likeness, which the debiased estimate can give, weighs nothing; a column without any positive
    one is NaN.
    """
    matrix = np.nan_to_num(matrix, nan=0.0)
    rows = np.argsort(-matrix, axis=-2, kind="stable")[..., :k, :]
    weights = np.maximum(np.take_along_axis(matrix, rows, axis=-2), 0)
    total = weights.sum(-2)
    centre = (weights * rows).sum(-2)
    return np.divide(centre, total, out=np.full(total.shape, np.nan), where=total > 0)


def cka(
    model_a,
    model_b,
    tokenizer,
    texts,
    *,
    tokenizer_b=None,
    positions: str = "sampled",
    per_document: int = 8,
    batch_size: int | None = None,
    k: int = 5,
    neighbours: int = 10,
    permutations: int = 100,
    second: bool = True,
    sinks: bool = True,
    max_documents: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> Alignment:
    """Compare every block of the baseline `model_b` (rows) with every one of `model_a` (columns).

    Each model runs once over the texts; a model that is compared with itself runs once in all. A
    block is represented by the residual after it, several streams collapsed as the model's own head
    does. Position 0 and special tokens are left out. A batch never holds two positions of one
    document: tokens of a document are not independent, and both the unbiased estimator and the
    permutation null assume that samples are.

    Args:
        model_a: usually the one with a memory. Engram or Hugging Face causal model, or a bridge.
        model_b: the baseline: its twin without one, or itself with another seed as a control.
        tokenizer: of both; of `model_a`, if `tokenizer_b` is given.
        texts: a str, a list of str, or a Dataset with a column `text`; longer ones are cut to the
            context.
        tokenizer_b: of `model_b`, if it has another. Positions are then compared where tokens of
            both end at the same character.
        positions: "sampled": random positions of each document; "entity": the last token of each
            entity of the corpus' `spans`; "kind:NAME" or "mechanism:NAME": of each such span.
        per_document: positions a document at most.
        batch_size: documents a batch; None: 256, or fewer so that there are ten blocks to draw.
        k: rows that enter the soft alignment.
        neighbours: of the measure of that name; fewer if there are few documents.
        permutations: of the null.
        second: whether to measure neighbours, Procrustes and RSA as well.
        sinks: whether to measure CKA with special tokens put back as well.
        max_documents: stop after so many.
        seed: of positions, permutations and intervals.
        progress: called with (documents done, documents in all or None).

    Returns:
        An `Alignment`.

    Raises:
        UsageError: k above the number of layers, another vocabulary, wrong options.
        CorpusError: too few documents, or spans asked of a corpus without.
    """
    from engram_probes.alignment_run import AlignmentRun, block_size
    from engram_probes.text import Documents

    run = AlignmentRun(
        model_a=model_a,
        model_b=model_b,
        tokenizer=tokenizer,
        tokenizer_b=tokenizer_b,
        positions=positions,
        per_document=per_document,
        k=k,
        neighbours=neighbours,
        permutations=permutations,
        second=second,
        sinks=sinks,
        seed=seed,
    )
    size = block_size(batch_size, Documents(texts, max_documents).total)
    return run.result(run.read(texts, size, max_documents, progress), size)
