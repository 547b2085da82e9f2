"""Alignment over training: when does a model's layer become like which layer of a finished one?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from engram_model.errors import UsageError
from engram_probes.alignment import largest_shift
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TrainingAlignment(Result):
    """Checkpoints T in the order of training, columns C their layers, rows R those of the baseline.

    Attributes:
        model: the last checkpoint. checkpoints: all of them.
        model_b: the baseline, which is the same throughout.
        null_model: another training of the baseline, or None.
        memory_layers: 0-based layers of `model` with a memory.
        positions, documents, samples, blocks, batch_size, k: as in `Alignment`.
        tokens: trained on, [T].
        matrix: debiased CKA with the baseline, [T, R, C].
        soft_index: layer of the baseline that each column is most like, [T, C].
        soft_low, soft_high: its 95% interval by drawing blocks of documents.
        final: debiased CKA of each layer with itself at the last checkpoint, [T, C].
        final_low, final_high: its 95% interval.
        null_index: soft alignment of `null_model` with the baseline, [N]: what a training of the
            same model from another seed is most like.
        null_low, null_high: its 95% interval.
    """

    kind: ClassVar[str] = "cka-training"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "tokens": ("checkpoint",),
        "matrix": ("checkpoint", "row", "column"),
        "soft_index": ("checkpoint", "column"),
        "soft_low": ("checkpoint", "column"),
        "soft_high": ("checkpoint", "column"),
        "final": ("checkpoint", "column"),
        "final_low": ("checkpoint", "column"),
        "final_high": ("checkpoint", "column"),
        "null_index": ("null column",),
        "null_low": ("null column",),
        "null_high": ("null column",),
    }
    units: ClassVar[dict[str, str]] = {
        "tokens": "tokens",
        **dict.fromkeys(("soft_index", "soft_low", "soft_high"), "layer of model_b"),
        **dict.fromkeys(("null_index", "null_low", "null_high"), "layer of model_b"),
    }

    model: str
    checkpoints: tuple[str, ...]
    model_b: str
    null_model: str | None
    memory_layers: tuple[int, ...]
    positions: str
    documents: int
    samples: int
    blocks: int
    batch_size: int
    k: int
    tokens: np.ndarray
    matrix: np.ndarray
    soft_index: np.ndarray
    soft_low: np.ndarray
    soft_high: np.ndarray
    final: np.ndarray
    final_low: np.ndarray
    final_high: np.ndarray
    null_index: np.ndarray | None = None
    null_low: np.ndarray | None = None
    null_high: np.ndarray | None = None

    def facts(self) -> dict:
        return {
            "model": self.model,
            "checkpoints": len(self.checkpoints),
            "model_b": self.model_b,
            "documents": self.documents,
            "samples": self.samples,
        }

    def summary(self) -> str:
        first, last = (f"{self.tokens[place] / 1e6:,.3g}M" for place in (0, -1))
        if not np.isfinite(self.soft_index[-1]).any():
            return f"No layer of {self.model} is like any of {self.model_b} at the end."
        floor = (self.k - 1) / 2  # as far as even weights let the line go
        ceiling = self.matrix.shape[1] - 1 - floor
        column, _ = largest_shift(self.soft_index[-1], floor, ceiling)
        late = int(np.argmin(self.final[0]))
        few = "" if np.isfinite(self.soft_low).any() else "; too few documents for intervals"
        return (
            f"Layer {column} of {self.model}, shifted most at the end, is most like layer "
            f"{self._index(0, column)} of {self.model_b} after {first} tokens and "
            f"{self._index(-1, column)} after {last}{self._seed(column)}; "
            f"layer {late} changes most, with CKA {self.final[0, late]:.2f} between those two "
            f"states, over {self.samples:,} samples of {self.documents:,} documents{few}."
        )

    def _seed(self, column: int) -> str:
        """What another training of the baseline has at a column."""
        ends = (self.null_low, self.null_high)
        if self.null_index is None or column >= len(self.null_index):
            return ""
        low, high = (float("nan") if end is None else float(end[column]) for end in ends)
        sure = f" ({low:.1f} to {high:.1f})" if np.isfinite(low) else ""
        return f" (that of {self.null_model}: {self.null_index[column]:.1f}{sure})"

    def _index(self, checkpoint: int, column: int) -> str:
        said = f"{self.soft_index[checkpoint, column]:.1f}"
        low, high = self.soft_low[checkpoint, column], self.soft_high[checkpoint, column]
        return f"{said} ({low:.1f} to {high:.1f})" if np.isfinite(low) else said

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each checkpoint and layer."""
        import pandas as pd

        checkpoint, layer = (index.ravel() for index in np.indices(self.soft_index.shape))
        numbers = ("soft_index", "soft_low", "soft_high", "final", "final_low", "final_high")
        return pd.DataFrame(
            {
                "checkpoint": [self.checkpoints[place] for place in checkpoint],
                "tokens": self.tokens[checkpoint],
                "layer": layer,
                **{name: getattr(self, name).ravel() for name in numbers},
            }
        )

    def figure(self, what: str = "soft") -> "plotly.graph_objects.Figure":
        """One line a layer over tokens trained on. what: "soft", the layer of the baseline that it
        is most like; "final", its CKA with its own last state.

        Raises:
            UsageError: no such view.
        """
        from engram_probes.figures.alignment_training import training_figure

        if what not in ("soft", "final"):
            raise UsageError(f"{what!r}: an alignment over training has 'soft' and 'final'")
        return training_figure(self, what)


def alignment_over_training(
    checkpoints: Sequence,
    model_b,
    tokenizer,
    texts,
    *,
    tokens: Sequence[int] | None = None,
    null=None,
    positions: str = "sampled",
    per_document: int = 8,
    batch_size: int | None = None,
    k: int = 5,
    max_documents: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> TrainingAlignment:
    """Compare checkpoints of one training with a finished baseline, and with the last of them.

    All models run once over the texts, side by side, at the same positions; see `cka`.

    Args:
        checkpoints: models of one tokenizer and as many layers; they are put in the order of
            tokens, and the last is the final state.
        model_b: the baseline: the twin without a memory.
        tokenizer: of all.
        texts: as for `cka`.
        tokens: that each checkpoint was trained on; None: as its folder's training log says.
        null: another training of the baseline, whose alignment with it is what seeds do.
        positions, per_document, batch_size, k, max_documents, seed, progress: as for `cka`.

    Raises:
        UsageError: fewer than two checkpoints, other vocabularies or numbers of layers, tokens
            unknown or alike, wrong options.
        CorpusError: too few documents, or spans asked of a corpus without.
    """
    from engram_probes.alignment_run import block_size
    from engram_probes.alignment_training_run import TrainingRun
    from engram_probes.text import Documents

    run = TrainingRun(
        checkpoints=checkpoints,
        model_b=model_b,
        tokenizer=tokenizer,
        trained=tokens,
        null=null,
        positions=positions,
        per_document=per_document,
        k=k,
        seed=seed,
    )
    size = block_size(batch_size, Documents(texts, max_documents).total)
    return run.result(run.read(texts, size, max_documents, progress), size)
