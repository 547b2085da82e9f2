"""Which layers of two models hold alike representations: CKA of all pairs of layers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from engram_model.errors import UsageError
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

Positions = Literal["sampled", "entity"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Alignment(Result):
    """Rows R are the blocks of the baseline (`model_b`), columns C those of `model_a`, 0-based.

    Attributes:
        model_a, model_b: names.
        memory_layers: 0-based layers of `model_a` with a memory.
        positions: "sampled" or "entity".
        documents, samples, batches: how much was compared.
        blocks: of documents, which the interval draws from.
        batch_size, per_document: documents a batch; positions a document.
        permutations: of the null.
        k: rows that enter the soft alignment.
        neighbours_k: neighbours that enter `neighbours`.
        neighbours_chance: what `neighbours` is for unrelated layers.
        matrix: debiased CKA, [R, C]. Can be slightly negative.
        low, high: 95% interval by drawing blocks of documents, [R, C]; NaN for fewer than 5.
        null_mean, null_high: mean and 95th percentile with samples permuted, [R, C].
        neighbours: overlap of mutual nearest neighbours, [R, C], 0 to 1.
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
        "neighbours": ("row", "column"),
        "soft_index": ("column",),
        "soft_low": ("column",),
        "soft_high": ("column",),
    }
    units: ClassVar[dict[str, str]] = {
        "neighbours": "share of neighbours",
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
    neighbours_k: int
    neighbours_chance: float
    matrix: np.ndarray
    low: np.ndarray
    high: np.ndarray
    null_mean: np.ndarray
    null_high: np.ndarray
    neighbours: np.ndarray
    soft_index: np.ndarray
    soft_low: np.ndarray
    soft_high: np.ndarray

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
        column, shift = self._largest_shift()
        sure = null = ""
        if np.isfinite(self.soft_low[column]):
            sure = f" (95% interval {self.soft_low[column]:.1f} to {self.soft_high[column]:.1f})"
        if self.permutations:
            beyond = float(np.mean(self.matrix > self.null_high))
            null = f"; {beyond:.0%} of the layer pairs are more alike than permuted samples"
        return (
            f"The largest shift is {shift:+.1f}: layer {column} of {self.model_a} is most like "
            f"layer {self.soft_index[column]:.1f}{sure} of {self.model_b}{null}, over "
            f"{self.samples:,} samples of {self.documents:,} documents."
        )

    def _largest_shift(self) -> tuple[int, float]:
        """Column and shift, of the columns whose own index is one that the line can reach."""
        layers = np.arange(len(self.soft_index))
        shift = self.soft_index - layers
        reachable = (layers >= self.soft_floor) & (layers <= self.soft_ceiling)
        if np.isfinite(shift[reachable]).any():
            shift = np.where(reachable, shift, np.nan)
        column = int(np.nanargmax(np.abs(shift)))
        return column, float(shift[column])

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each pair of layers."""
        import pandas as pd

        row, column = (index.ravel() for index in np.indices(self.matrix.shape))
        return pd.DataFrame(
            {
                "layer_b": row,
                "layer_a": column,
                "cka": self.matrix.ravel(),
                "low": self.low.ravel(),
                "high": self.high.ravel(),
                "null_mean": self.null_mean.ravel(),
                "null_high": self.null_high.ravel(),
                "neighbours": self.neighbours.ravel(),
            }
        )

    def soft_frame(self) -> "pandas.DataFrame":
        """One row for each layer of `model_a`: the layer of `model_b` it is most like."""
        import pandas as pd

        return pd.DataFrame(
            {
                "layer_a": np.arange(len(self.soft_index)),
                "soft_index": self.soft_index,
                "low": self.soft_low,
                "high": self.soft_high,
            }
        )

    def figure(self, what: str = "cka") -> "plotly.graph_objects.Figure":
        """Heatmap with the soft alignment and the diagonal, beside it the null.

        what: "cka", or "neighbours" for the second measure (its null is `neighbours_chance`).
        """
        from engram_probes.figures.alignment import alignment_figure

        if what not in ("cka", "neighbours"):
            raise UsageError(f"{what!r}: an alignment has 'cka' and 'neighbours'")
        return alignment_figure(self, what)


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
    positions: Positions = "sampled",
    per_document: int = 8,
    batch_size: int | None = None,
    k: int = 5,
    neighbours: int = 10,
    permutations: int = 100,
    max_documents: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> Alignment:
    """Compare every block of the baseline `model_b` (rows) with every one of `model_a` (columns).

    Each model runs once over the texts. A block is represented by the residual after it, several
    streams collapsed as the model's own head does. Position 0 and special tokens are left out. A
    batch never holds two positions of one document: tokens of a document are not independent, and
    both the unbiased estimator and the permutation null assume that samples are.

    Args:
        model_a: usually the one with a memory. Engram or Hugging Face causal model, or a bridge.
        model_b: the baseline: its twin without one, or itself with another seed as a control.
        tokenizer: of both.
        texts: a str, a list of str, or a Dataset with a column `text`; longer ones are cut to the
            context.
        positions: "sampled": random positions of each document; "entity": the last token of each
            entity of the corpus' `spans`.
        per_document: positions a document at most.
        batch_size: documents a batch; None: 256, or fewer so that there are ten blocks to draw.
        k: rows that enter the soft alignment.
        neighbours: of the second measure; fewer if there are few documents.
        permutations: of the null.
        max_documents: stop after so many.
        seed: of positions, permutations and intervals.
        progress: called with (documents done, documents in all or None).

    Returns:
        An `Alignment`.

    Raises:
        UsageError: k above the number of layers, another vocabulary, wrong options.
        CorpusError: too few documents, or entities asked of a corpus without spans.
    """
    from engram_probes.alignment_run import AlignmentRun

    run = AlignmentRun(
        model_a=model_a,
        model_b=model_b,
        tokenizer=tokenizer,
        positions=positions,
        per_document=per_document,
        k=k,
        neighbours=neighbours,
        permutations=permutations,
        seed=seed,
    )
    return run(texts, batch_size, max_documents, progress)
