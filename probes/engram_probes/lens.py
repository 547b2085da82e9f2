"""The logit lens: what each depth of a model would predict if it were the last."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engram_model.errors import UsageError
from engram_probes.bootstrap import divide, ratio_interval
from engram_probes.provenance import provenance
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

    from engram_probes.lens_difference import LensDifference
    from engram_probes.lens_run import LensRun
    from engram_probes.strata import Strata
    from engram_probes.tuned_lens import TunedLens

# What is measured at every depth, its unit, and how it is named in figures.
METRICS = {
    "kl": ("nats", "KL(final || layer)"),
    "kl_reverse": ("nats", "KL(layer || final)"),
    "js": ("nats", "Jensen-Shannon divergence from the final prediction"),
    "entropy": ("nats", "Entropy"),
    "rank": ("rank, 1 is best", "Mean rank of the true next token"),
    "log_rank": ("ln of the rank", "Mean log rank of the true next token"),
    "log_prob": ("nats", "Log-probability of the true next token"),
    "final_rank": ("rank, 1 is best", "Mean rank of the final top token"),
    "topk_overlap": ("share", "Overlap of the top-k tokens with the final ones"),
    "top1_agreement": ("share", "Top token is the final one"),
    "settled": ("share of tokens", "Settled: the top token stays the final one"),
    "settled_top3": ("share of tokens", "Settled: the final top token stays among the top three"),
    "settled_half": ("share of tokens", "Settled: the final top token keeps over half the mass"),
}
SETTLED = ("settled", "settled_top3", "settled_half")
GRID = (
    "kl", "kl_reverse", "js", "entropy", "log_prob", "rank", "log_rank", "final_rank", "top1_prob",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LogitLens(Result):
    """Depths D = blocks + 1 (0: the embedding, i: after i blocks), metrics K, documents n.

    Means leave out position 0 and special tokens; those about the true next token leave out the
    last position too.

    Attributes:
        metrics: names of the K metrics, see `METRICS`.
        topk: k of `topk_overlap`.
        memory_layers: 0-based layers with a memory; layer i writes between depth i and i + 1.
        model: name of the model.
        cut: documents longer than the context, of which only the beginning was read.
        max_difference: largest difference between the last depth's logits and the model's.
        translators: checksum of the tuned lens it was read through; None: the plain lens.
        without_memory: whether the model ran with its memory zeroed.
        mean: [K, D].
        low, high: 95% interval by bootstrap over documents, [K, D]; NaN for one document.
        document_sums: sum over tokens, [n, K, D]; add those of two runs to merge them.
        document_counts: number of tokens in each sum, [n, K].
        by: what the strata are of, see `logit_lens`; None: none.
        strata: names of the S strata.
        stratum_mean, stratum_low, stratum_high: as `mean`, of the tokens of each, [S, K, D].
        stratum_tokens: [S].
        token_ids, tokens, special: of a single text, [p]; else None.
        token_values: of a single text, every metric at each token, [K, D, p], NaN where it has no
            next token.
        top1_ids, top1_prob, top1_texts: of a single text, likeliest next token, [D, p].
        topk_ids, topk_prob, topk_texts: of a single text, the k likeliest, [D, p, k].
        settling_depth: of a single text, depth from which on the top token is the final one, [p].
    """

    kind: ClassVar[str] = "lens"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "mean": ("metric", "depth"),
        "low": ("metric", "depth"),
        "high": ("metric", "depth"),
        "document_sums": ("document", "metric", "depth"),
        "document_counts": ("document", "metric"),
        "stratum_mean": ("stratum", "metric", "depth"),
        "stratum_low": ("stratum", "metric", "depth"),
        "stratum_high": ("stratum", "metric", "depth"),
        "stratum_tokens": ("stratum",),
        "token_ids": ("position",),
        "special": ("position",),
        "token_values": ("metric", "depth", "position"),
        "top1_ids": ("depth", "position"),
        "top1_prob": ("depth", "position"),
        "topk_ids": ("depth", "position", "choice"),
        "topk_prob": ("depth", "position", "choice"),
        "settling_depth": ("position",),
    }
    units: ClassVar[dict[str, str]] = {
        "mean": "see the metrics",
        "top1_prob": "probability",
        "topk_prob": "probability",
        "settling_depth": "blocks run",
    }

    model: str
    metrics: tuple[str, ...]
    topk: int
    memory_layers: tuple[int, ...]
    cut: int
    max_difference: float
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    document_sums: np.ndarray
    document_counts: np.ndarray
    translators: str | None = None
    without_memory: bool = False
    by: str | None = None
    strata: tuple[str, ...] = ()
    stratum_mean: np.ndarray | None = None
    stratum_low: np.ndarray | None = None
    stratum_high: np.ndarray | None = None
    stratum_tokens: np.ndarray | None = None
    tokens: tuple[str, ...] | None = None
    top1_texts: tuple[tuple[str, ...], ...] | None = None
    topk_texts: tuple[tuple[tuple[str, ...], ...], ...] | None = None
    token_ids: np.ndarray | None = None
    special: np.ndarray | None = None
    token_values: np.ndarray | None = None
    top1_ids: np.ndarray | None = None
    top1_prob: np.ndarray | None = None
    topk_ids: np.ndarray | None = None
    topk_prob: np.ndarray | None = None
    settling_depth: np.ndarray | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mean.shape[0] != len(self.metrics):
            raise ValueError(f"mean has shape {self.mean.shape} for {len(self.metrics)} metrics")

    @property
    def depths(self) -> int:
        """Number of depths: blocks + 1."""
        return self.mean.shape[1]

    @property
    def lens(self) -> str:
        """Which lens it was read through: "tuned" or "plain"."""
        return "plain" if self.translators is None else "tuned"

    @property
    def name(self) -> str:
        """The model's name, and whether its memory was off."""
        return f"{self.model}, memory off" if self.without_memory else self.model

    @property
    def documents(self) -> int:
        return len(self.document_sums)

    @property
    def positions(self) -> int:
        """Tokens that the means are over."""
        return int(self.document_counts[:, self.metrics.index("kl")].sum())

    def curve(self, what: str = "kl") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, low and high of one metric, each [D]."""
        index = self._index(what)
        return self.mean[index], self.low[index], self.high[index]

    @property
    def mean_settling_depth(self) -> float:
        """Mean number of blocks after which the top token stays the final one."""
        return self.settling("settled")

    def settling(self, definition: str = "settled") -> float:
        """Mean settling depth in blocks, by one of the definitions in `SETTLED`.

        A token that never settles (its final top token may have less than half of the mass) counts
        with the number of depths.
        """
        if definition not in SETTLED:
            raise UsageError(f"{definition!r}: use one of {', '.join(SETTLED)}")
        return float((1 - self.curve(definition)[0]).sum())

    def minus(self, other: "LogitLens", seed: int = 0) -> "LensDifference":
        """This model's curves less the other's on the same texts, with paired intervals.

        Raises:
            UsageError: other texts, another number of layers, or another k.
        """
        from engram_probes.lens_difference import difference

        return difference(self, other, seed)

    def facts(self) -> dict:
        return {
            "model": self.model,
            "lens": self.lens,
            "memory": "off" if self.without_memory else "on" if self.memory_layers else "none",
            "depths": self.depths,
            "documents": self.documents,
            "tokens": self.positions,
        }

    def summary(self) -> str:
        if not self.positions:
            return "There is no token to speak of: every position is special."
        kl, settled = self.curve("kl")[0], self.mean_settling_depth
        half = int(np.argmax(kl <= kl[0] / 2))
        blocks = "block" if half == 1 else "blocks"
        documents = "document" if self.documents == 1 else "documents"
        under = "The" if self.translators is None else "Under the tuned lens the"
        return (
            f"{under} top token of {self.name} is settled after {settled:.1f} of "
            f"{self.depths - 1} blocks on average; KL(final || layer) falls from {kl[0]:.2f} nats "
            f"at the embedding to half of that after {half} {blocks}, over {self.positions:,} "
            f"tokens of {self.documents:,} {documents}."
        )

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each metric and depth."""
        import pandas as pd

        metric, depth = (index.ravel() for index in np.indices(self.mean.shape))
        return pd.DataFrame(
            {
                "metric": np.array(self.metrics, dtype=object)[metric],
                "unit": [METRICS[self.metrics[i]][0] for i in metric],
                "depth": depth,
                "mean": self.mean.ravel(),
                "low": self.low.ravel(),
                "high": self.high.ravel(),
                "tokens": self.document_counts.sum(0)[metric],
            }
        )

    def strata_frame(self) -> "pandas.DataFrame":
        """One row for each stratum, metric and depth.

        Raises:
            UsageError: the lens was taken without `by`.
        """
        import pandas as pd

        mean, low, high, tokens = self._strata()
        stratum, metric, depth = (index.ravel() for index in np.indices(mean.shape))
        return pd.DataFrame(
            {
                "stratum": np.array(self.strata, dtype=object)[stratum],
                "metric": np.array(self.metrics, dtype=object)[metric],
                "depth": depth,
                "mean": mean.ravel(),
                "low": low.ravel(),
                "high": high.ravel(),
                "tokens": tokens[stratum],
            }
        )

    def _strata(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        parts = (self.stratum_mean, self.stratum_low, self.stratum_high, self.stratum_tokens)
        mean, low, high, tokens = parts
        if mean is None or low is None or high is None or tokens is None:
            raise UsageError("the lens was not taken by strata; call logit_lens with by=")
        return mean, low, high, tokens

    def stratum_curves(
        self, what: str = "kl"
    ) -> list[tuple[str, int, np.ndarray, np.ndarray, np.ndarray]]:
        """Name, tokens, mean, low and high [D] of one metric in each stratum that has tokens."""
        index = self._index(what)
        mean, low, high, tokens = self._strata()
        return [
            (name, int(tokens[i]), mean[i, index], low[i, index], high[i, index])
            for i, name in enumerate(self.strata)
            if tokens[i]
        ]

    def token_frame(self) -> "pandas.DataFrame":
        """Of a single text: one row for each depth and position."""
        import pandas as pd

        values, top1 = self._per_token()
        depth, position = (index.ravel() for index in np.indices(top1.shape))
        return pd.DataFrame(
            {
                "depth": depth,
                "position": position,
                "token": np.array(self.tokens, dtype=object)[position],
                "top1": [text for row in self.top1_texts or () for text in row],
                "top1_prob": top1.ravel(),
                **{name: values[i].ravel() for i, name in enumerate(self.metrics)},
            }
        )

    def cell_frame(self, depth: int, position: int) -> "pandas.DataFrame":
        """Of a single text: the likeliest next tokens at a depth, beside the final ones.

        One row for each of the k of either: its probability at this depth and at the end, and its
        place among the k, from 1; NaN for what is not among them.

        Raises:
            UsageError: no such cell, or a lens that has none.
        """
        import pandas as pd

        if self.topk_prob is None or self.topk_ids is None or self.topk_texts is None:
            raise UsageError(
                "the likeliest tokens are kept for one text only; call logit_lens with a str"
            )
        depths, positions, _ = self.topk_prob.shape
        if not (0 <= depth < depths and 0 <= position < positions):
            raise UsageError(f"depth {depth}, position {position}: use 0 to {depths - 1} and 0 to "
                             f"{positions - 1}")  # fmt: skip
        places = {"here": depth, "final": depths - 1}
        rows: dict[int, dict[str, Any]] = {}
        for name, row in places.items():
            cell = zip(
                self.topk_ids[row, position].tolist(),
                self.topk_texts[row][position],
                self.topk_prob[row, position].tolist(),
                strict=True,
            )
            for place, (token_id, text, probability) in enumerate(cell, 1):
                token = rows.setdefault(token_id, {"token": text})
                token |= {f"place_{name}": place, f"prob_{name}": probability}
        columns = ["token", "place_here", "prob_here", "place_final", "prob_final"]
        return pd.DataFrame(list(rows.values()), columns=columns)

    def figure(
        self,
        what: str = "kl",
        view: str | None = None,
        positions: tuple[int, int] | None = None,
    ) -> "plotly.graph_objects.Figure":
        """A curve by depth, or for a single text a grid of depth by position.

        Args:
            what: a metric; in the grid one of `GRID`.
            view: "curve", "strata" (a curve for each) or "grid"; default the grid where there is
                one and it has `what`.
            positions: first and end of those that the grid shows; None: all.
        """
        from engram_probes.figures.lens import curve_figure, strata_figure
        from engram_probes.figures.lens_grid import grid_figure

        if what != "top1_prob":
            self._index(what)
        if view is None:
            view = "grid" if self.tokens is not None and what in GRID else "curve"
        if view == "grid":
            return grid_figure(self, what, positions)
        if view == "strata":
            return strata_figure(self, what)
        if view != "curve" or what == "top1_prob":
            raise UsageError(
                f"no view {view!r} of {what}: use 'curve' for means, 'grid' for a text"
            )
        return curve_figure([self], what)

    def grid(self, what: str = "kl") -> np.ndarray:
        """Of a single text: one metric, or `top1_prob`, at each depth and position, [D, p]."""
        values, top1 = self._per_token()
        return top1 if what == "top1_prob" else values[self._index(what)]

    def _per_token(self) -> tuple[np.ndarray, np.ndarray]:
        if self.token_values is None or self.top1_prob is None:
            raise UsageError(
                "values of single tokens are kept for one text only; call logit_lens with a str"
            )
        return self.token_values, self.top1_prob

    def _index(self, what: str) -> int:
        if what not in self.metrics:
            raise UsageError(f"{what!r} is no lens metric; use one of {', '.join(self.metrics)}")
        return self.metrics.index(what)


def logit_lens(
    model,
    tokenizer,
    texts,
    *,
    topk: int = 5,
    max_tokens: int | None = None,
    chunk_tokens: int | None = None,
    share: float = 1.0,
    by: str | None = None,
    translators: "TunedLens | None" = None,
    without_memory: bool = False,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> LogitLens:
    """Read every depth of a model through its own final norm and unembedding.

    Several residual streams are collapsed at each depth as the model's own head does it; the
    norm's statistics are those of that depth. The last depth must give the model's logits.

    Args:
        model: an Engram model, another causal model of `transformers`, or a bridge.
        tokenizer: its tokenizer; texts are read as `<bos>` + text.
        texts: a str (values of every token are kept), or a list of str or a Dataset with a column
            `text` (sums by document are kept; longer documents are cut to the context).
        topk: k of the top-k agreement.
        max_tokens: stop after the document that reaches so many tokens.
        chunk_tokens: tokens whose logits are held at a time; changes memory, not results.
        share: of the positions, drawn by seed, that are read; the time is almost all in reading.
            Models with one tokenizer are read at the same.
        by: give curves apart for tokens by `mechanism` of the span that the next token belongs to
            (of a corpus with spans), by `frequency` of the next token, or by `position`.
        translators: the model's tuned lens, whose translator is applied at each depth but the
            last before the final norm; None: the plain lens.
        without_memory: run the model with what its memory adds set to zero. `minus` compares it
            with the model as it is.
        seed: of the intervals, and of the positions where not all are read.
        progress: called with (documents done, documents in all or None); of a single text with
            (tokens done, tokens in all).

    Returns:
        A `LogitLens`.

    Raises:
        UsageError: an empty text, a single text longer than the context, k or share out of
            range, no such strata, translators of another model, or no memory to run without.
        CorpusError: no text.
        EngramError: the model's head does more than norm and unembedding.
    """
    from engram_probes.capture import Subject
    from engram_probes.lens_run import read_documents
    from engram_probes.strata import Strata
    from engram_probes.suppression import suppressed
    from engram_probes.text import Documents

    subject, documents = Subject.of(model), Documents(texts)
    if not 1 <= topk <= subject.config.vocab_size:
        raise UsageError(f"topk {topk}: use 1 to {subject.config.vocab_size}")
    if not 0 < share <= 1 or (documents.single and share < 1):
        raise UsageError(f"share {share}: use more than 0, and 1 at most; of a single text all")
    strata = Strata.named(by) if by is not None else None
    translate, checksum = None, None
    if translators is not None:
        translators.check(subject.model)
        translate, checksum = translators.module(subject.model.device), translators.sha256
    with suppressed(model) if without_memory else nullcontext():
        run = read_documents(
            subject, tokenizer, documents, topk, max_tokens, chunk_tokens, share, strata, seed,
            progress, translate,
        )  # fmt: skip
    counts = run.counts[..., None]
    low, high = ratio_interval(run.sums, counts, seed)
    settings = {"topk": topk, "max_tokens": max_tokens, "share": share, "by": by}
    settings |= {"translators": checksum, "without_memory": without_memory}
    return LogitLens(
        provenance=provenance([subject.model], tokenizer, documents.description(), settings, seed),
        model=subject.name,
        metrics=tuple(METRICS),
        topk=topk,
        memory_layers=subject.memory_layers,
        cut=run.cut,
        max_difference=run.max_difference,
        translators=checksum,
        without_memory=without_memory,
        mean=divide(run.sums.sum(0), counts.sum(0)),
        low=low,
        high=high,
        document_sums=run.sums,
        document_counts=run.counts,
        **({} if strata is None else _by_stratum(strata, run, seed)),
        **run.single,
    )


def _by_stratum(strata: "Strata", run: "LensRun", seed: int) -> dict[str, Any]:
    counts = run.stratum_counts[..., None]
    low, high = ratio_interval(run.stratum_sums, counts, seed)
    return {
        "by": strata.by,
        "strata": strata.names,
        "stratum_mean": divide(run.stratum_sums.sum(0), counts.sum(0)),
        "stratum_low": low,
        "stratum_high": high,
        "stratum_tokens": run.stratum_counts[..., 0].sum(0),
    }
