"""What do the attention heads look at, and does the memory relieve them of what is near?"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engram_model.errors import UsageError
from engram_probes.memory_changes import CHANGES, INTACT
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

NEAR = 4  # tokens before the query
SCORES = {
    "first": "attention to position 0",
    "previous": "attention to the token before",
    "near": f"attention to the {NEAR} tokens before",
    "itself": "attention to the token itself",
    "induction": "attention to what followed this token when it last occurred",
    "entropy": "entropy of the attention, nats",
    "distance": "mean distance of the attention, position 0 left out, tokens",
}
REPEATED = "repeated"  # a view of figures


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AttentionPatterns(Result):
    """Layers with attention L, heads H, scores S; conditions 1 + C: the model, then each change.

    Scores are means over queries: no special tokens, and not positions 0 and 1, where the token
    before is the first.

    Attributes:
        layers: 0-based ids. memory_layers: of those with a memory.
        scores: names, see `SCORES`. `induction` is over queries whose token occurred before.
        changes: of the memory, see `memory_changes.CHANGES`; none for a model without.
        documents, queries: how much was read.
        mean, low, high: of each head, [1 + C, S, L, H].
        change, change_low, change_high: changed less intact, documents drawn together, [C, S, L,
            H].
        layer_mean, layer_low, layer_high: mean over heads, [1 + C, S, L].
        layer_change, layer_change_low, layer_change_high: [C, S, L].
        repeated, repeated_low, repeated_high: induction on random tokens that are repeated, [1 + C,
            L, H], interval over sequences.
        fresh, fresh_low, fresh_high: its chance level: attention to the same positions where the
            second half is other random tokens.
        twin: name of the other model; "" without.
        twin_mean: of its heads, [S, L, H']. twin_layer, twin_layer_low, twin_layer_high: mean over
            its heads, [S, L].
        difference, difference_low, difference_high: this model's mean over heads less the twin's,
            documents drawn together, [S, L].
        overall, overall_low, overall_high: the same over all layers, [S].
        tokens: of a single text; () for several.
        pattern: of a single text, [L, H, query, key]; None for several.
    """

    kind: ClassVar[str] = "attention"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        **dict.fromkeys(("mean", "low", "high"), ("condition", "score", "layer", "head")),
        **dict.fromkeys(
            ("change", "change_low", "change_high"), ("change", "score", "layer", "head")
        ),
        **dict.fromkeys(("layer_mean", "layer_low", "layer_high"), ("condition", "score", "layer")),
        **dict.fromkeys(
            ("layer_change", "layer_change_low", "layer_change_high"), ("change", "score", "layer")
        ),
        **dict.fromkeys(
            ("repeated", "repeated_low", "repeated_high"), ("condition", "layer", "head")
        ),
        **dict.fromkeys(("fresh", "fresh_low", "fresh_high"), ("condition", "layer", "head")),
        "twin_mean": ("score", "layer", "twin head"),
        **dict.fromkeys(("twin_layer", "twin_layer_low", "twin_layer_high"), ("score", "layer")),
        **dict.fromkeys(("difference", "difference_low", "difference_high"), ("score", "layer")),
        **dict.fromkeys(("overall", "overall_low", "overall_high"), ("score",)),
        "pattern": ("layer", "head", "query", "key"),
    }
    units: ClassVar[dict[str, str]] = {
        "pattern": "share of attention",
        "repeated": "share of attention",
        "fresh": "share of attention",
    }

    layers: tuple[int, ...]
    memory_layers: tuple[int, ...]
    scores: tuple[str, ...]
    changes: tuple[str, ...]
    twin: str
    documents: int
    queries: int
    tokens: tuple[str, ...]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    change: np.ndarray
    change_low: np.ndarray
    change_high: np.ndarray
    layer_mean: np.ndarray
    layer_low: np.ndarray
    layer_high: np.ndarray
    layer_change: np.ndarray
    layer_change_low: np.ndarray
    layer_change_high: np.ndarray
    repeated: np.ndarray
    repeated_low: np.ndarray
    repeated_high: np.ndarray
    fresh: np.ndarray
    fresh_low: np.ndarray
    fresh_high: np.ndarray
    twin_mean: np.ndarray | None
    twin_layer: np.ndarray | None
    twin_layer_low: np.ndarray | None
    twin_layer_high: np.ndarray | None
    difference: np.ndarray | None
    difference_low: np.ndarray | None
    difference_high: np.ndarray | None
    overall: np.ndarray | None
    overall_low: np.ndarray | None
    overall_high: np.ndarray | None
    pattern: np.ndarray | None

    @property
    def conditions(self) -> tuple[str, ...]:
        return (INTACT, *self.changes)

    @property
    def after(self) -> list[int]:
        """Places of the layers from the first memory on."""
        return [i for i, layer in enumerate(self.layers) if layer >= min(self.memory_layers)]

    def score(self, name: str) -> int:
        """Place of a score.

        Raises:
            UsageError: no such score.
        """
        if name not in self.scores:
            raise UsageError(f"no score {name!r}; use one of {', '.join(self.scores)}")
        return self.scores.index(name)

    def facts(self) -> dict[str, Any]:
        return {
            "model": self.provenance.models[0]["name"],
            "layers": len(self.layers),
            "heads": self.mean.shape[-1],
            "changes": ", ".join(self.changes) or None,
            "twin": self.twin or None,
            "documents": self.documents,
        }

    def summary(self) -> str:
        named = [self._most(name) for name in ("first", "previous", "induction")]
        told = f"{self.provenance.models[0]['name']}: most {'; '.join(named)}"
        over = self.repeated_low[0] > self.fresh_high[0]
        told += (
            f". On repeated random tokens {int(over.sum())} of {over.size} heads look to what "
            f"followed more than at chance (at most {self.repeated[0].max():.2f}, chance "
            f"{self.fresh[0].max():.2f})"
        )
        return f"{told}{self._changed()}{self._against()}."

    def _most(self, name: str) -> str:
        values = np.nan_to_num(self.mean[0, self.score(name)])
        layer, head = np.unravel_index(values.argmax(), values.shape)
        return f"{SCORES[name]}: {self.layers[layer]}.{head} with {values.max():.2f}"

    def _changed(self) -> str:
        if not self.changes:
            return ""
        near, after = self.score("near"), self.after
        parts = [
            f"{self.layer_change[c, near, after].mean():+.3f} when {CHANGES[name]}"
            for c, name in enumerate(self.changes)
        ]
        return (
            f". Attention to the {NEAR} tokens before, mean over heads and layers from "
            f"{self.layers[after[0]]} on, changes by {'; '.join(parts)}"
        )

    def _against(self) -> str:
        if self.difference is None:
            return ""
        assert self.overall is not None
        assert self.overall_low is not None and self.overall_high is not None
        near = self.score("near")
        low, high = self.overall_low[near], self.overall_high[near]
        return (
            f". Attention to the {NEAR} tokens before, over all layers, differs from {self.twin}'s "
            f"by {self.overall[near]:+.3f} [{low:+.3f} to {high:+.3f}] (by layer "
            f"{self.difference[near].min():+.3f} to {self.difference[near].max():+.3f})"
        )

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each condition, score, layer and head."""
        import pandas as pd

        index = np.indices(self.mean.shape).reshape(4, -1)
        names = (self.conditions, self.scores, self.layers, range(self.mean.shape[-1]))
        frame = {
            column: [values[i] for i in places]
            for column, values, places in zip(
                ("condition", "score", "layer", "head"), names, index, strict=True
            )
        }
        return pd.DataFrame(
            {**frame, **{name: getattr(self, name).ravel() for name in ("mean", "low", "high")}}
        )

    def layers_frame(self) -> "pandas.DataFrame":
        """Means over heads: one row for each score and layer; changes and the twin beside."""
        import pandas as pd

        columns = {"mean": self.layer_mean[0], "low": self.layer_low[0], "high": self.layer_high[0]}
        for c, name in enumerate(self.changes):
            columns |= {
                name: self.layer_change[c],
                f"{name}_low": self.layer_change_low[c],
                f"{name}_high": self.layer_change_high[c],
            }
        if self.difference is not None:
            columns |= {
                "twin": self.twin_layer,
                "difference": self.difference,
                "difference_low": self.difference_low,
                "difference_high": self.difference_high,
            }
        index = np.indices(self.layer_mean.shape[1:]).reshape(2, -1)
        return pd.DataFrame(
            {
                "score": [self.scores[i] for i in index[0]],
                "layer": [self.layers[i] for i in index[1]],
                **{name: values.ravel() for name, values in columns.items()},
            }
        )

    def figure(
        self,
        what: str = "heads",
        score: str = "previous",
        *,
        change: str | None = None,
        layer: int | None = None,
        head: int = 0,
    ) -> "plotly.graph_objects.Figure":
        """Drawn in one of these views.

        `heads`: a score of all heads, or what a change of the memory does to it; score="repeated"
        for induction on repeated tokens. `layers`: its mean over heads by layer, with changes and
        twin. `pattern`: of one head of a single text.

        Raises:
            UsageError: no such view, score, change, layer or head; no single text.
        """
        from engram_probes.figures.attention import heads_figure, layers_figure, pattern_figure

        if what == "pattern":
            return pattern_figure(self, *self._head(layer, head))
        if what not in ("heads", "layers"):
            raise UsageError(f"no figure of {what!r}; use one of heads, layers, pattern")
        if score != REPEATED or what == "layers":
            self.score(score)
        if change is not None and change not in self.changes:
            raise UsageError(f"no change {change!r} here; use one of {', '.join(self.changes)}")
        return heads_figure(self, score, change) if what == "heads" else layers_figure(self, score)

    def _head(self, layer: int | None, head: int) -> tuple[int, int]:
        if self.pattern is None:
            raise UsageError("patterns are kept of a single text; this result is of several")
        layer = self.layers[0] if layer is None else layer
        if layer not in self.layers or not 0 <= head < self.pattern.shape[1]:
            raise UsageError(
                f"no head {layer}.{head}; layers with attention are {list(self.layers)} and each "
                f"has {self.pattern.shape[1]} heads"
            )
        return self.layers.index(layer), head


def attention_patterns(
    model,
    tokenizer,
    texts,
    *,
    twin=None,
    changes: Iterable[str] = ("zero", "noise"),
    max_documents: int | None = None,
    max_tokens: int | None = 50_000,
    sequences: int = 20,
    length: int = 50,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> AttentionPatterns:
    """What each head attends to: the pattern of one text, or scores over a corpus.

    Args:
        model: a causal model that TransformerLens adapts, or a TransformerBridge of one.
        texts: a str, whose patterns are kept; a list of str, or a Dataset with a column `text`, of
            which only sums are.
        twin: a model of the same tokenizer and number of layers to set beside, read on the same
            texts. Heads of two models do not correspond: means over heads are compared.
        changes: of the memory, each read beside the intact one; see `memory_changes.CHANGES`.
        max_documents, max_tokens: where to stop; None: at the end.
        sequences, length: of random tokens for induction: how many, and how long before they are
            repeated.
        seed: of sequences, changes and bootstrap.
        progress: called with documents done and in all.

    Raises:
        UsageError: a model that TransformerLens does not know, or without attention; a twin that
            does not fit; no such change.
        CorpusError: no text.
    """
    from engram_probes.attention_run import read, statistics

    if sequences < 2 or length < 2:
        raise UsageError(f"sequences={sequences}, length={length}: both at least 2")
    run = read(
        model, twin, tokenizer, texts, tuple(changes), max_documents, max_tokens, sequences, length,
        seed, progress,
    )  # fmt: skip
    settings = {
        "changes": list(run.changes),
        "max_documents": max_documents,
        "max_tokens": max_tokens,
        "sequences": sequences,
        "length": length,
    }
    return statistics(run, settings, seed)
