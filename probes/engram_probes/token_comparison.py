"""Two models on one text, or one on two texts: what differs at the tokens they have in common."""

from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from engram_model.errors import UsageError
from engram_probes.gates import GateMap
from engram_probes.predictions import Predictions
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

# What is compared, its unit, and how it is named in figures.
WHAT = {
    "surprisal": ("nats", "Surprisal of the token"),
    "entropy": ("nats", "Entropy of the prediction after it"),
    "gate": ("0 to 1", "Gate of the memory, mean over layers and streams"),
    "added": ("share", "Size of what the memory adds / residual it enters"),
}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TokenComparison(Result):
    """Sides A and B, n tokens in common.

    Attributes:
        names: what the sides are called: models, or texts.
        texts: the tokens of each side's text as shown.
        positions: of the tokens in common, in each side's text, [2, n].
        surprisal, entropy: of each side at them, [2, n]; see `Predictions`.
        gate, added: of each side's memory at them, means over layers and streams, [2, n]; NaN on a
            side without a memory. None: no side's gates were given.
        special: tokens in common that statistics leave out, bool [n].
    """

    kind: ClassVar[str] = "token-comparison"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "positions": ("side", "token"),
        "surprisal": ("side", "token"),
        "entropy": ("side", "token"),
        "gate": ("side", "token"),
        "added": ("side", "token"),
        "special": ("token",),
    }
    units: ClassVar[dict[str, str]] = {
        "surprisal": "nats",
        "entropy": "nats",
        "gate": "0 to 1, 0.5 is neutral",
        "added": "share of the residual",
    }

    names: tuple[str, str]
    texts: tuple[tuple[str, ...], tuple[str, ...]]
    positions: np.ndarray
    surprisal: np.ndarray
    entropy: np.ndarray
    gate: np.ndarray | None
    added: np.ndarray | None
    special: np.ndarray

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens in common."""
        return tuple(self.texts[0][i] for i in self.positions[0])

    @property
    def offered(self) -> tuple[str, ...]:
        """Quantities that both sides have."""
        found = (w for w in WHAT if np.isfinite(self._difference(w)).any())
        return tuple(found) or ("surprisal",)

    def values(self, what: str = "surprisal") -> np.ndarray:
        """Of both sides, [2, n].

        Raises:
            UsageError: no such quantity, or no memory that has it.
        """
        if what not in WHAT:
            raise UsageError(f"{what!r} is not compared; use one of {', '.join(WHAT)}")
        values = getattr(self, what)
        if values is None:
            raise UsageError(f"no {what} here: no gates were given of either side")
        return values

    def difference(self, what: str = "surprisal") -> np.ndarray:
        """A less B at each token in common, [n]."""
        first, second = self.values(what)
        return first - second

    def _difference(self, what: str) -> np.ndarray:
        return np.empty(0) if getattr(self, what) is None else self.difference(what)

    def strip(self, side: int, what: str = "surprisal") -> np.ndarray:
        """A less B at every token of one side's text; NaN where the other has no such token."""
        spread = np.full(len(self.texts[side]), np.nan)
        spread[self.positions[side]] = self.difference(what)
        return spread

    @property
    def most_apart(self) -> int:
        """Position in A's text of the token whose surprisal differs most; 0 if there is none."""
        apart = np.where(self.special, np.nan, np.abs(self.difference()))
        return int(self.positions[0, np.nanargmax(apart)]) if np.isfinite(apart).any() else 0

    def facts(self) -> dict:
        return {"a": self.names[0], "b": self.names[1], "in_common": len(self.special)}

    def summary(self) -> str:
        usual = np.where(self.special, np.nan, self.difference())
        first, second = self.names
        if not np.isfinite(usual).any():
            return f"{first} and {second} have no token in common to compare."
        if not np.nan_to_num(usual).any():
            return f"{first} and {second} expect the tokens in common equally well."
        most = int(np.nanargmax(np.abs(usual)))
        mean = float(np.nanmean(usual))
        how = "more" if mean > 0 else "less"
        return (
            f"{first} is {abs(mean):.2f} nats a token {how} surprised than {second}, over "
            f"{np.isfinite(usual).sum()} tokens in common; most apart at “{self.tokens[most]}” "
            f"(position {self.positions[0, most]}): {usual[most]:+.2f} nats."
        )

    def to_frame(self) -> "pandas.DataFrame":
        """One row a token in common and quantity."""
        import pandas as pd

        return pd.concat(
            [
                pd.DataFrame(
                    {
                        "position_a": self.positions[0],
                        "position_b": self.positions[1],
                        "token": self.tokens,
                        "quantity": what,
                        "unit": WHAT[what][0],
                        "a": self.values(what)[0],
                        "b": self.values(what)[1],
                        "a_less_b": self.difference(what),
                        "special": self.special,
                    }
                )
                for what in WHAT
                if getattr(self, what) is not None
            ],
            ignore_index=True,
        )

    def figure(self, what: str = "surprisal") -> "plotly.graph_objects.Figure":
        """Both sides, and their difference below."""
        from engram_probes.figures.token_comparison import comparison_figure

        self.values(what)
        return comparison_figure(self, what)


def compare_tokens(
    first: Predictions,
    second: Predictions,
    gates: tuple[GateMap | None, GateMap | None] = (None, None),
    names: tuple[str, str] | None = None,
) -> TokenComparison:
    """A less B at the tokens that both texts have, in the longest runs in common (difflib).

    Args:
        first, second: of two models on one text, or of one model on two texts.
        gates: of the same texts, where a side has a memory.
        names: what to call the sides; None: the models' names.

    Raises:
        UsageError: other tokenizers, or gates of another text.
    """
    origin = first.provenance, second.provenance
    if origin[0].tokenizer_sha256 != origin[1].tokenizer_sha256:
        raise UsageError(
            f"{first.model} and {second.model} have other tokenizers, so their tokens do not "
            "correspond; compare models of one tokenizer"
        )
    sides = first, second
    for side, gate in zip(sides, gates, strict=True):
        if gate is not None and not np.array_equal(gate.token_ids, side.token_ids):
            raise UsageError(f"the gates given for {side.model} are of another text")
    positions = _in_common(first.token_ids, second.token_ids)
    models = [*origin[0].models, *origin[1].models]
    known = any(gate is not None for gate in gates)
    return TokenComparison(
        provenance=replace(
            origin[0],
            models=[m for i, m in enumerate(models) if m not in models[:i]],
            corpus={**origin[0].corpus, "second": origin[1].corpus},
        ),
        names=names or (first.model, second.model),
        texts=(first.tokens, second.tokens),
        positions=positions,
        surprisal=np.stack([s.surprisal[i] for s, i in zip(sides, positions, strict=True)]),
        entropy=np.stack([s.entropy[i] for s, i in zip(sides, positions, strict=True)]),
        gate=_of_memory("gate", gates, positions) if known else None,
        added=_of_memory("added", gates, positions) if known else None,
        special=first.special[positions[0]] | second.special[positions[1]],
    )


def _in_common(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Positions of the tokens in common, [2, n]."""
    blocks = SequenceMatcher(None, first.tolist(), second.tolist(), autojunk=False)
    pairs = [
        (block.a + i, block.b + i)
        for block in blocks.get_matching_blocks()
        for i in range(block.size)
    ]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2).T


def _of_memory(what, gates: tuple[GateMap | None, ...], positions: np.ndarray) -> np.ndarray:
    rows = [
        np.full(len(at), np.nan) if gate is None else gate.values(what).mean(0)[at]
        for gate, at in zip(gates, positions, strict=True)
    ]
    return np.stack(rows)
