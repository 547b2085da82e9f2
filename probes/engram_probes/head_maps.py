"""Where each head of one text looks, and how far that moves when the memory is silenced."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from engram_model.errors import UsageError
from engram_probes.memory_changes import CHANGES, CONTROLS
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

MOST = 128  # cells along a side of a kept pattern
Shown = Literal["difference", "with", "without"]
SHOWN: dict[Shown, str] = {
    "difference": "without the memory less with it",
    "with": "with the memory",
    "without": "without the memory",
}
VIEWS = ("heads", "layer", "pattern")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AttentionMap(Result):
    """Layers with attention L, heads H, positions p (0 is <bos>), controls C, draws D.

    A pattern has a row for each query and a column for each key; of a long text each stands for
    `block` tokens in a row: a cell is the share of attention that its queries, on average, give
    to all of its keys, so that rows sum to 1.

    Attributes:
        tokens: text of each token as shown (see `GateMap`).
        layers: 0-based ids. memory_layers: of those with a memory.
        how: the change of the memory, one of `suppression.HOWS`; "" for a model without.
        controls: changes as large, see `memory_changes.CONTROLS`.
        block: tokens in a cell of a pattern.
        token_ids, special: [p]; means leave special tokens and position 0 out.
        pattern: with the memory, [L, H, query, key].
        changed: with the memory changed; None for a model without.
        moved: share of the attention of each query that the change moves to other keys, [L, H, p]:
            half the sum of what each key gains or loses; None for a model without a memory.
        control_moved: what the controls move, mean over draws, [C, L, H, p].
        control_draws: mean over queries of each draw, [C, D, L, H].
    """

    kind: ClassVar[str] = "attention-map"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "token_ids": ("position",),
        "special": ("position",),
        "pattern": ("layer", "head", "query", "key"),
        "changed": ("layer", "head", "query", "key"),
        "moved": ("layer", "head", "position"),
        "control_moved": ("control", "layer", "head", "position"),
        "control_draws": ("control", "draw", "layer", "head"),
    }
    units: ClassVar[dict[str, str]] = dict.fromkeys(
        ("pattern", "changed", "moved", "control_moved", "control_draws"), "share of attention"
    )

    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    memory_layers: tuple[int, ...]
    how: str
    controls: tuple[str, ...]
    block: int
    token_ids: np.ndarray
    special: np.ndarray
    pattern: np.ndarray
    changed: np.ndarray | None
    moved: np.ndarray | None
    control_moved: np.ndarray | None
    control_draws: np.ndarray | None

    @property
    def heads(self) -> int:
        return self.pattern.shape[1]

    def heads_moved(self) -> np.ndarray:
        """`moved`, mean over queries, [L, H].

        Raises:
            UsageError: a model without a memory.
        """
        if self.moved is None:
            raise UsageError(f"{self._name} has no memory that could be changed")
        return self.moved[..., ~self.special].mean(-1)

    def beyond(self) -> np.ndarray:
        """Whether a head is moved more than in every draw of every control, [L, H]."""
        if self.control_draws is None or not self.controls:
            return np.zeros((len(self.layers), self.heads), bool)
        return self.heads_moved() > self.control_draws.max((0, 1))

    @property
    def draws(self) -> int:
        """Of each control."""
        return 0 if self.control_draws is None else self.control_draws.shape[1]

    def most_moved(self) -> tuple[int, int]:
        """Layer and head that the change moves most; of a model without a memory the first."""
        if self.moved is None:
            return self.layers[0], 0
        place = int(self.heads_moved().max(1).argmax())
        return self.layers[place], self.most_moved_of(self.layers[place])

    def most_moved_of(self, layer: int) -> int:
        """Head of a layer that the change moves most."""
        return 0 if self.moved is None else int(self.heads_moved()[self._place(layer)].argmax())

    def values(self, layer: int, shown: Shown = "difference") -> np.ndarray:
        """Patterns of a layer's heads, [H, query, key]: with the memory, without, or the
        difference.

        Raises:
            UsageError: no such layer, or no memory that could be changed.
        """
        if shown not in SHOWN:
            raise UsageError(f"nothing called {shown!r}; use one of {', '.join(SHOWN)}")
        at = self._place(layer)
        if shown == "with":
            return self.pattern[at]
        if self.changed is None:
            raise UsageError(f"{self._name} has no memory that could be changed")
        return self.changed[at] - (0 if shown == "without" else self.pattern[at])

    def named(self, shown: Shown) -> str:
        """What of a pattern is shown, in words."""
        return "attention" if self.changed is None else SHOWN[shown]

    def _place(self, layer: int) -> int:
        if layer not in self.layers:
            raise UsageError(f"no attention in layer {layer}; it is in {list(self.layers)}")
        return self.layers.index(layer)

    @property
    def _name(self) -> str:
        return self.provenance.models[0]["name"]

    def facts(self) -> dict[str, Any]:
        return {
            "model": self._name,
            "tokens": len(self.tokens),
            "layers": len(self.layers),
            "heads": self.heads,
            "how": self.how or None,
        }

    def summary(self) -> str:
        if self.moved is None:
            first = self.pattern[:, :, -1, 0].mean()
            return (
                f"{self._name} has no memory; of the attention of the last token its heads give "
                f"{first:.0%} to the start of the text, on average."
            )
        values, after = self.heads_moved(), self._after
        layer, head = self.most_moved()
        most = values.max()
        told = (
            f"When {CHANGES[self.how]}, heads from layer {min(self.memory_layers)} on move "
            f"{values[after].mean():.1%} of their attention to other tokens{self._of_controls()}; "
            f"most does head {layer}.{head} with {most:.1%}"
        )
        if not self.controls:
            return f"{told}."
        over = self.beyond()[after]
        return (
            f"{told}, and {int(over.sum())} of {over.size} more than in any draw of the controls."
        )

    @property
    def _after(self) -> list[int]:
        return [i for i, layer in enumerate(self.layers) if layer >= min(self.memory_layers)]

    def _of_controls(self) -> str:
        assert self.control_draws is not None
        means = self.control_draws.mean(1)[:, self._after].mean((1, 2))
        parts = [
            f"{mean:.1%} when {CONTROLS[name]}"
            for name, mean in zip(self.controls, means, strict=True)
        ]
        return f" ({'; '.join(parts)})" if parts else ""

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each layer and head: attention to position 0 and to the token before; what is
        moved, and what the controls move, mean and most of the draws."""
        import pandas as pd

        index = np.indices((len(self.layers), self.heads)).reshape(2, -1)
        columns = {"layer": [self.layers[i] for i in index[0]], "head": index[1]}
        if self.moved is None:
            columns["to the start"] = self.pattern[..., 0].mean(-1).ravel()
            return pd.DataFrame(columns)
        columns["moved"] = self.heads_moved().ravel()
        assert self.control_draws is not None
        for name, draws in zip(self.controls, self.control_draws, strict=True):
            columns[name] = draws.mean(0).ravel()
            columns[f"{name}_most"] = draws.max(0).ravel()
        return pd.DataFrame({**columns, "beyond controls": self.beyond().ravel()})

    def keys_frame(self, layer: int, head: int, position: int) -> "pandas.DataFrame":
        """What a query looks at, the most first: key, token (the first of its block), attention
        with the memory and without.

        Raises:
            UsageError: no such layer, head or position.
        """
        import pandas as pd

        if not (0 <= head < self.heads and 0 <= position < len(self.tokens)):
            raise UsageError(f"no head {head} or no position {position} here")
        query = position // self.block
        keys = np.arange(query + 1) * self.block
        columns: dict[str, Any] = {
            "position": keys,
            "token": [self.tokens[key] for key in keys],
            "with the memory": self.values(layer, "with")[head, query, : query + 1],
        }
        if self.changed is not None:
            columns["without"] = self.values(layer, "without")[head, query, : query + 1]
            columns["difference"] = columns["without"] - columns["with the memory"]
        frame = pd.DataFrame(columns)
        return frame.sort_values("with the memory", ascending=False, ignore_index=True)

    def figure(
        self,
        what: str = "heads",
        layer: int | None = None,
        head: int | None = None,
        shown: Shown | None = None,
    ) -> "plotly.graph_objects.Figure":
        """Drawn in one of these views.

        `heads`: how much of its attention each head moves; a dot where that is beyond the controls.
        `layer`: patterns of all heads of a layer. `pattern`: of one head. Layer and head are by
        default those most moved; `shown` is the difference where there is a memory.

        Raises:
            UsageError: no such view, layer or head; a change of a model without a memory.
        """
        from engram_probes.figures.head_maps import heads_figure, layer_figure, one_figure

        if what not in VIEWS:
            raise UsageError(f"no figure of {what!r}; use one of {', '.join(VIEWS)}")
        if what == "heads":
            return heads_figure(self)
        shown = shown or ("with" if self.changed is None else "difference")
        most = self.most_moved()
        layer = most[0] if layer is None else layer
        if what == "layer":
            return layer_figure(self, layer, shown)
        head = most[1] if head is None else head
        if not 0 <= head < self.heads:
            raise UsageError(f"no head {head}; each layer has {self.heads}")
        return one_figure(self, layer, head, shown)


def attention_map(
    model,
    tokenizer,
    text: str,
    *,
    how: str = "zero",
    controls: Iterable[str] = ("noise", "other"),
    draws: int = 8,
    most: int = MOST,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> AttentionMap:
    """Patterns of all heads on one text, with the memory and with a changed one.

    Args:
        model: a causal model that TransformerLens adapts, or a TransformerBridge of one.
        text: at most as long as the context.
        how: the memory is changed, one of `suppression.HOWS`.
        controls: changes as large, `draws` times each; see `memory_changes.CONTROLS`.
        most: cells along a side of a pattern; of a longer text each is of several tokens.
        seed: of the draws.
        progress: called with passes of the model done and in all.

    Raises:
        UsageError: an empty or too long text, no such change, a model that TransformerLens does not
            know or that has no attention.
    """
    from engram_probes.head_maps_run import run

    if not isinstance(text, str):
        raise UsageError(f"attention_map reads one text, not {type(text).__name__}")
    if draws < 1 or most < 2:
        raise UsageError(f"draws={draws}, most={most}: at least 1 draw and 2 cells")
    return run(model, tokenizer, text, how, tuple(controls), draws, most, seed, progress)
