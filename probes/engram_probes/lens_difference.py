"""Two lenses on the same texts: how much sooner one model predicts what it ends up predicting."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engram_model.errors import UsageError
from engram_probes.bootstrap import divide, interval
from engram_probes.lens import METRICS, LogitLens
from engram_probes.provenance import Provenance
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LensDifference(Result):
    """`model` less `other` at every depth, on the same documents.

    Attributes:
        model, other: names; of a plain and a tuned lens with which it is.
        metrics: names of the K metrics.
        documents, tokens: how much text the means are over.
        translators: checksums of the tuned lenses of both; None: a plain lens.
        means: of `model` and of `other`, [2, K, D].
        means_low, means_high: 95% interval of each, [2, K, D].
        difference, low, high: `model` less `other` with its interval, documents drawn together
            for both, [K, D].
        settling: mean settling depth of `model` less that of `other`, its low and high, [3].
        depth_shift: how many blocks later `other` has the KL(final || layer) that `model` has at
            this depth, between depths by a straight line, [D]; more than 0: `model` is ahead. NaN
            where `other` never has it.
        shift_low, shift_high: 95% interval of it.
        tokens_of_text, special: of a single text, [p]; else None.
        token_values: of a single text, every metric at each token, [2, K, D, p].
        top1_prob, top1_texts: of a single text, the likeliest next token, [2, D, p].
    """

    kind: ClassVar[str] = "lens-difference"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "means": ("model", "metric", "depth"),
        "means_low": ("model", "metric", "depth"),
        "means_high": ("model", "metric", "depth"),
        "difference": ("metric", "depth"),
        "low": ("metric", "depth"),
        "high": ("metric", "depth"),
        "settling": ("estimate, low, high",),
        "depth_shift": ("depth",),
        "shift_low": ("depth",),
        "shift_high": ("depth",),
        "special": ("position",),
        "token_values": ("model", "metric", "depth", "position"),
        "top1_prob": ("model", "depth", "position"),
    }
    units: ClassVar[dict[str, str]] = {
        "settling": "blocks run",
        "depth_shift": "blocks",
        "top1_prob": "probability",
    }

    model: str
    other: str
    metrics: tuple[str, ...]
    memory_layers: tuple[int, ...]
    documents: int
    tokens: int
    means: np.ndarray
    means_low: np.ndarray
    means_high: np.ndarray
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    settling: np.ndarray
    depth_shift: np.ndarray
    shift_low: np.ndarray
    shift_high: np.ndarray
    translators: tuple[str | None, str | None] = (None, None)
    tokens_of_text: tuple[str, ...] | None = None
    top1_texts: tuple[tuple[tuple[str, ...], ...], ...] | None = None
    special: np.ndarray | None = None
    token_values: np.ndarray | None = None
    top1_prob: np.ndarray | None = None

    @property
    def tuned(self) -> bool:
        """Whether both were read through a tuned lens."""
        return None not in self.translators

    def facts(self) -> dict:
        return {
            "model": self.model,
            "other": self.other,
            "documents": self.documents,
            "tokens": self.tokens,
        }

    def summary(self) -> str:
        estimate, low, high = self.settling
        when = "earlier" if estimate < 0 else "later"
        sure = f" (95% interval {low:+.2f} to {high:+.2f})" if np.isfinite(low) else ""
        documents = "document" if self.documents == 1 else "documents"
        under = "Under the tuned lens the" if self.tuned else "The"
        return (
            f"{under} top token of {self.model} is settled {abs(estimate):.2f} blocks {when} than "
            f"that of {self.other}{sure}, over {self.tokens:,} tokens of {self.documents:,} "
            f"{documents}{self._ends()}."
        )

    def _ends(self) -> str:
        """Of a single text, how often the two end up with other top tokens."""
        if self.top1_texts is None or self.special is None:
            return ""
        here, there = (np.array(grid[-1], dtype=object) for grid in self.top1_texts)
        changed = (here != there)[~self.special]
        return f"; the final top token is another at {changed.sum()} of {changed.size} tokens"

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each metric and depth."""
        import pandas as pd

        metric, depth = (index.ravel() for index in np.indices(self.difference.shape))
        return pd.DataFrame(
            {
                "metric": np.array(self.metrics, dtype=object)[metric],
                "unit": [METRICS[self.metrics[i]][0] for i in metric],
                "depth": depth,
                "model": self.means[0].ravel(),
                "other": self.means[1].ravel(),
                "difference": self.difference.ravel(),
                "low": self.low.ravel(),
                "high": self.high.ravel(),
            }
        )

    def token_frame(self) -> "pandas.DataFrame":
        """Of a single text: one row for each depth and position, every metric of both.

        Raises:
            UsageError: lenses over a corpus.
        """
        import pandas as pd

        shape = self.grids().shape[1:]
        depth, position = (index.ravel() for index in np.indices(shape))
        columns: dict[str, Any] = {
            "depth": depth,
            "position": position,
            "token": np.array(self.tokens_of_text, dtype=object)[position],
        }
        for side, name in enumerate(("model", "other")):
            tops = self.top1_texts[side] if self.top1_texts else ()
            columns[f"top1_{name}"] = [text for row in tops for text in row]
            columns |= {f"{what}_{name}": self.grids(what)[side].ravel() for what in self.metrics}
        return pd.DataFrame(columns)

    def grids(self, what: str = "kl") -> np.ndarray:
        """Of a single text: a metric, or `top1_prob`, of both at each place, [2, D, p].

        Raises:
            UsageError: no such metric, or lenses over a corpus.
        """
        if self.token_values is None or self.top1_prob is None:
            raise UsageError(
                "grids are kept for one text only; call logit_lens with a str, twice, and minus"
            )
        return self.top1_prob if what == "top1_prob" else self.token_values[:, self._index(what)]

    def figure(
        self, what: str = "kl", view: str = "curve", positions: tuple[int, int] | None = None
    ) -> "plotly.graph_objects.Figure":
        """Both models, and their difference below.

        Args:
            what: a metric; in grids one of `GRID`.
            view: "curve": means by depth; of a single text "grid": depth by position, both in one
                scale.
            positions: first and end of those that grids show; None: all.
        """
        from engram_probes.figures.lens import difference_figure
        from engram_probes.figures.lens_grid import grids_figure

        if view == "grid":
            return grids_figure(self, what, positions)
        self._index(what)
        if view != "curve":
            raise UsageError(f"no view {view!r}: use 'curve' for means, 'grid' for a text")
        return difference_figure(self, what)

    def _index(self, what: str) -> int:
        if what not in self.metrics:
            raise UsageError(f"{what!r} is no lens metric; use one of {', '.join(self.metrics)}")
        return self.metrics.index(what)


def difference(lens: LogitLens, other: LogitLens, seed: int = 0) -> LensDifference:
    """`lens` less `other`; see `LogitLens.minus`."""
    _check_pair(lens, other)

    def differ(weights: np.ndarray) -> np.ndarray:
        return _mean(lens, weights) - _mean(other, weights)

    estimate = differ(np.ones(lens.documents, dtype=np.int64))
    low, high = interval(differ, lens.documents, seed)
    settled = lens.metrics.index("settled")

    def settle(weights: np.ndarray) -> np.ndarray:  # depth = sum over depths of "not settled yet"
        return -differ(weights)[settled].sum()

    settling_low, settling_high = interval(settle, lens.documents, seed)
    kl = lens.metrics.index("kl")

    def shift(weights: np.ndarray) -> np.ndarray:
        return depth_shift(_mean(lens, weights)[kl], _mean(other, weights)[kl])

    shift_low, shift_high = interval(shift, lens.documents, seed)
    names = lens_names([lens, other])
    return LensDifference(
        provenance=_joined(lens.provenance, other.provenance, seed),
        model=names[0],
        other=names[1],
        translators=(lens.translators, other.translators),
        metrics=lens.metrics,
        memory_layers=lens.memory_layers or other.memory_layers,
        documents=lens.documents,
        tokens=lens.positions,
        means=np.stack([lens.mean, other.mean]),
        means_low=np.stack([lens.low, other.low]),
        means_high=np.stack([lens.high, other.high]),
        difference=estimate,
        low=low,
        high=high,
        settling=np.array([-estimate[settled].sum(), settling_low, settling_high]),
        depth_shift=shift(np.ones(lens.documents, dtype=np.int64)),
        shift_low=shift_low,
        shift_high=shift_high,
        **_of_text(lens, other),
    )


def _of_text(lens: LogitLens, other: LogitLens) -> dict[str, Any]:
    """Fields of a single text."""
    values = [(one.token_values, one.top1_prob, one.top1_texts) for one in (lens, other)]
    if any(part is None for parts in values for part in parts):
        return {}
    token_values, top1_prob, top1_texts = zip(*values, strict=True)
    return {
        "tokens_of_text": lens.tokens,
        "special": lens.special,
        "token_values": np.stack(token_values),
        "top1_prob": np.stack(top1_prob),
        "top1_texts": top1_texts,
    }


def lens_names(lenses: Sequence[LogitLens]) -> list[str]:
    """Name of each model; whether its memory was off; where there are plain and
    tuned lenses, with which it is."""
    if len({lens.lens for lens in lenses}) == 1:
        return [lens.name for lens in lenses]
    return [f"{lens.name}, {lens.lens}" for lens in lenses]


def depth_shift(kl: np.ndarray, other: np.ndarray) -> np.ndarray:
    """At which depth the other curve first falls to each value of this one, less its own depth.

    Args:
        kl, other: KL(final || layer) by depth, [D].

    Returns:
        [D] blocks; NaN where the value is above all of the other curve.
    """
    shifts = np.full(len(kl), np.nan)
    for depth, value in enumerate(kl):
        below = np.flatnonzero(other <= value)
        if not len(below) or value > other[0]:
            continue
        after = int(below[0])
        if after == 0:
            shifts[depth] = -depth
            continue
        fraction = (other[after - 1] - value) / (other[after - 1] - other[after])
        shifts[depth] = after - 1 + fraction - depth
    return shifts


def _mean(lens: LogitLens, weights: np.ndarray) -> np.ndarray:
    sums = np.tensordot(weights, lens.document_sums, 1)
    return divide(sums, (weights @ lens.document_counts)[:, None])


def _check_pair(lens: LogitLens, other: LogitLens) -> None:
    if lens.depths != other.depths:
        raise UsageError(
            f"{lens.model} has {lens.depths - 1} blocks and {other.model} {other.depths - 1}: "
            "curves by depth can be subtracted between models of equal depth only"
        )
    if lens.topk != other.topk or lens.metrics != other.metrics:
        raise UsageError(f"lenses with topk {lens.topk} and {other.topk} cannot be subtracted")
    same = np.array_equal(lens.document_counts, other.document_counts)
    if not same or lens.provenance.corpus != other.provenance.corpus:
        raise UsageError(
            f"the lenses of {lens.model} and {other.model} were not taken on the same texts; "
            "take both on the same ones"
        )


def _joined(first: Provenance, second: Provenance, seed: int) -> Provenance:
    from dataclasses import replace

    return replace(first, models=[*first.models, *second.models], seed=seed)
