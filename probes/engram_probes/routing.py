"""Which experts does a mixture of experts choose, and does the memory change the choice?"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engram_model.errors import UsageError
from engram_probes.memory_changes import CHANGES, DEFAULT
from engram_probes.results import Result
from engram_probes.strata import MECHANISMS

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

ALL = "all tokens"
GROUPS = (ALL, *MECHANISMS)
VIEWS = ("kept", "mechanism", "load", "information", "text", "experts")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ExpertRouting(Result):
    """Layers with routed experts L, experts E, chosen for a token k, changes C, groups of tokens G.

    Attributes:
        layers: 0-based ids of the layers with routed experts.
        memory_layers: of those with a memory.
        chosen: k.
        changes: of the memory, see `memory_changes.CHANGES`; none for a model without.
        groups: all tokens, then by the mechanism of the span of the token that is predicted.
        documents: how many were read.
        group_tokens: [G], special ones left out.
        load, load_low, load_high: share of tokens that choose an expert, [L, E]; sums to k.
        weight: share of the weight that an expert has, [L, E]; sums to 1.
        evenness, evenness_low, evenness_high: entropy of the load over that of an even one, [L].
        router_entropy, ..._low, ..._high: mean entropy of a token's scores over all experts, [L].
        together: share of tokens that choose both of two experts, [L, E, E]; the load on the
            diagonal.
        information, ..._low, ..._high: mutual information of expert and mechanism, [L]; NaN for
            texts without spans.
        information_null: the same with the mechanisms of each document shifted along it by a random
            number of tokens, [P, L]; its mean is the bias of small samples.
        kept, kept_low, kept_high: of the experts that a token chooses with the memory the share
            that it still chooses under a change, [C, G, L].
        chance: what it would be for choices by the loads (before, after) alone, [C, G, L].
        difference, difference_low, difference_high: kept under the first change less kept under
            each other, documents drawn together, [C - 1, G, L].
        tokens: of a single text; () for several.
        expert_ids, expert_weights: of a single text, with the memory, then under each change, [1 +
            C, L, p, k]; weights sum to 1; None for several texts.
    """

    kind: ClassVar[str] = "routing"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "group_tokens": ("group",),
        "load": ("layer", "expert"),
        "load_low": ("layer", "expert"),
        "load_high": ("layer", "expert"),
        "weight": ("layer", "expert"),
        "evenness": ("layer",),
        "evenness_low": ("layer",),
        "evenness_high": ("layer",),
        "router_entropy": ("layer",),
        "router_entropy_low": ("layer",),
        "router_entropy_high": ("layer",),
        "together": ("layer", "expert", "expert"),
        "information": ("layer",),
        "information_low": ("layer",),
        "information_high": ("layer",),
        "information_null": ("permutation", "layer"),
        "kept": ("change", "group", "layer"),
        "kept_low": ("change", "group", "layer"),
        "kept_high": ("change", "group", "layer"),
        "chance": ("change", "group", "layer"),
        "difference": ("change", "group", "layer"),
        "difference_low": ("change", "group", "layer"),
        "difference_high": ("change", "group", "layer"),
        "expert_ids": ("condition", "layer", "position", "choice"),
        "expert_weights": ("condition", "layer", "position", "choice"),
    }
    units: ClassVar[dict[str, str]] = {
        "load": "share of tokens",
        "weight": "share of weight",
        "evenness": "share of an even load's entropy",
        "router_entropy": "nats",
        "information": "nats",
        "information_null": "nats",
        "kept": "share of a token's experts",
        "chance": "share of a token's experts",
        "difference": "share of a token's experts",
    }

    layers: tuple[int, ...]
    memory_layers: tuple[int, ...]
    chosen: int
    changes: tuple[str, ...]
    groups: tuple[str, ...]
    documents: int
    tokens: tuple[str, ...]
    group_tokens: np.ndarray
    load: np.ndarray
    load_low: np.ndarray
    load_high: np.ndarray
    weight: np.ndarray
    evenness: np.ndarray
    evenness_low: np.ndarray
    evenness_high: np.ndarray
    router_entropy: np.ndarray
    router_entropy_low: np.ndarray
    router_entropy_high: np.ndarray
    together: np.ndarray
    information: np.ndarray
    information_low: np.ndarray
    information_high: np.ndarray
    information_null: np.ndarray
    kept: np.ndarray
    kept_low: np.ndarray
    kept_high: np.ndarray
    chance: np.ndarray
    difference: np.ndarray
    difference_low: np.ndarray
    difference_high: np.ndarray
    expert_ids: np.ndarray | None
    expert_weights: np.ndarray | None

    @property
    def experts(self) -> int:
        return self.load.shape[1]

    @property
    def after(self) -> list[int]:
        """Places of the layers from the first memory on."""
        return [i for i, layer in enumerate(self.layers) if layer >= min(self.memory_layers)]

    def together_over_chance(self) -> np.ndarray:
        """How often two experts are chosen together over how often their loads alone would have it,
        [L, E, E]; NaN on the diagonal and for experts that no token chose."""
        pairs = self.load[:, :, None] * self.load[:, None, :]
        own = np.eye(self.experts, dtype=bool)
        pairs = np.where(own, np.nan, pairs)
        scale = np.nansum(np.where(own, np.nan, self.together), (1, 2)) / np.nansum(pairs, (1, 2))
        expected = pairs * scale[:, None, None]
        return np.divide(
            self.together, expected, out=np.full_like(pairs, np.nan), where=expected > 0
        )

    def text_kept(self, change: int = 0) -> np.ndarray:
        """Of a single text, the share of each token's experts that a change keeps, [L, p].

        Raises:
            UsageError: several texts, or a model without a memory.
        """
        if self.expert_ids is None or not self.changes:
            raise UsageError("only of a single text, read by a model with a memory")
        before, after = self.expert_ids[0], self.expert_ids[1 + change]
        return (before[..., :, None] == after[..., None, :]).any(-1).mean(-1)

    def token_frame(self, position: int) -> "pandas.DataFrame":
        """Of a token of a single text the experts of each layer, the weightiest first, with the
        memory and under each change, and the share that the first change keeps.

        Raises:
            UsageError: several texts, or no such position.
        """
        import pandas as pd

        if self.expert_ids is None or not 0 <= position < len(self.tokens):
            raise UsageError(f"no position {position} of a single text here")
        columns: dict[str, Any] = {"layer": self.layers}
        for c, name in enumerate(
            ("with the memory", *self.changes) if self.changes else ("experts",)
        ):
            columns[name] = [self.chosen_by(c, i, position) for i in range(len(self.layers))]
        if self.changes:
            columns["kept"] = self.text_kept()[:, position]
        return pd.DataFrame(columns)

    def chosen_by(self, condition: int, place: int, position: int) -> str:
        """Experts and their weights in words, the weightiest first; place: of the layer."""
        assert self.expert_ids is not None and self.expert_weights is not None
        ids, weights = (
            a[condition, place, position] for a in (self.expert_ids, self.expert_weights)
        )
        return ", ".join(f"{ids[i]} ({weights[i]:.2f})" for i in np.argsort(-weights))

    def facts(self) -> dict[str, Any]:
        return {
            "model": self.provenance.models[0]["name"],
            "layers": list(self.layers),
            "experts": f"{self.chosen} of {self.experts}",
            "changes": ", ".join(self.changes) or None,
            "documents": self.documents,
            "tokens": int(self.group_tokens[0]),
        }

    def summary(self) -> str:
        name = self.provenance.models[0]["name"]
        even = f"{self.evenness.min():.2f} to {self.evenness.max():.2f}"
        told = (
            f"{name} chooses {self.chosen} of {self.experts} experts in {len(self.layers)} layers, "
            f"with loads of {even} of an even one's entropy"
        )
        read = f"({int(self.group_tokens[0]):,} tokens of {self.documents:,} documents)"
        return f"{told}{self._specialised()} {read}{self._changed()}."

    def _specialised(self) -> str:
        if np.isnan(self.information).any():
            return ""
        excess = self.information - self.information_null.mean(0)
        over = int((self.information > self.information_null.max(0)).sum())
        return (
            f"; expert and mechanism share {excess.min():.3f} to {excess.max():.3f} nats more than "
            f"with shifted mechanisms (in {over} layers more than in every shift)"
        )

    def _changed(self) -> str:
        if not self.changes:
            return ""
        parts = [self._kept(change) for change in range(len(self.changes))]
        return (
            f". A token keeps of its experts, over layers from {min(self.memory_layers)} on: "
            f"{'; '.join(parts)}; by chance {self.chance[0, 0, self.after].mean():.0%}"
        )

    def _kept(self, change: int) -> str:
        kept = self.kept[change, 0, self.after]
        return (
            f"{kept.mean():.0%} ({kept.min():.0%} to {kept.max():.0%}) when "
            f"{CHANGES[self.changes[change]]}"
        )

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each change, group and layer; one a layer for a model without a memory."""
        import pandas as pd

        if not self.changes:
            return self.layers_frame()
        index = np.indices(self.kept.shape).reshape(3, -1)
        names = (self.changes, self.groups, self.layers)
        frame = {
            column: [values[i] for i in places]
            for column, values, places in zip(
                ("change", "group", "layer"), names, index, strict=True
            )
        }
        numbers = ("kept", "kept_low", "kept_high", "chance")
        frame |= {name: getattr(self, name).ravel() for name in numbers}
        return pd.DataFrame({**frame, "tokens": self.group_tokens[index[1]]})

    def layers_frame(self) -> "pandas.DataFrame":
        """One row for each layer: loads, router, specialisation."""
        import pandas as pd

        intervals = ("evenness", "router_entropy", "information")
        return pd.DataFrame(
            {
                "layer": self.layers,
                "largest_load": self.load.max(1),
                "smallest_load": self.load.min(1),
                **{
                    f"{name}{end}": getattr(self, f"{name}{end}")
                    for name in intervals
                    for end in ("", "_low", "_high")
                },
                "information_null": self.information_null.mean(0),
            }
        )

    def figure(self, what: str | None = None, change: int = 0) -> "plotly.graph_objects.Figure":
        """Drawn in one of these views; None: the first that there is something for.

        `kept`: experts kept under each change, by layer. `mechanism`: under one, by mechanism.
        `load`: of each expert. `information`: of expert and mechanism. Of a single text: `text`,
        what each token keeps; `experts`, which of them each token gives the most weight.

        Raises:
            UsageError: no such view, or nothing to draw there.
        """
        from engram_probes.figures.routing import FIGURES

        what = what or ("kept" if self.changes else "load")
        if what not in VIEWS:
            raise UsageError(f"no figure of {what!r}; use one of {', '.join(VIEWS)}")
        if what in ("kept", "mechanism") and not self.changes:
            raise UsageError(f"{what}: the model has no memory that could be changed")
        return FIGURES[what](self, change)


def expert_routing(
    model,
    tokenizer,
    texts,
    *,
    changes: Iterable[str] = DEFAULT,
    max_documents: int | None = None,
    max_tokens: int | None = 50_000,
    permutations: int = 100,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> ExpertRouting:
    """Which experts are chosen over a corpus, with the memory and with a changed one.

    Args:
        model: a mixture of experts that TransformerLens adapts, or a TransformerBridge of one.
        texts: a str, a list of str, or a Dataset with a column `text`; with a column `spans` (as
            the synthetic world has) the mechanism of each token is known.
        changes: of the memory, each read beside the intact one; see `memory_changes.CHANGES`. The
            first is compared with the others: by default the memory silenced, with random vectors
            as large, with the same taken away of another token's, and with other rows.
        max_documents, max_tokens: where to stop; None: at the end.
        permutations: how often mechanisms are shifted along their documents.
        seed: of changes, shifts and bootstrap.
        progress: called with documents done and in all.

    Raises:
        UsageError: a model without experts to choose, or one that TransformerLens does not know;
            no such change.
        CorpusError: no text.
    """
    from engram_probes.routing_run import read, statistics

    changes = tuple(changes)
    if permutations < 1:
        raise UsageError(f"permutations={permutations}: at least 1")
    run = read(
        model, tokenizer, texts, changes, max_documents, max_tokens, permutations, seed, progress
    )
    settings = {
        "changes": list(run.changes),
        "max_documents": max_documents,
        "max_tokens": max_tokens,
        "permutations": permutations,
    }
    return statistics(run, settings, seed)
