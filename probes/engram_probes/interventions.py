"""The memory changed by hand while one text is read: which tokens does the model then miss?"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote

import numpy as np

from engram_model.errors import UsageError
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

    from engram_model.row_patch import RowPatch

HOWS = {
    "zero": "nothing is added",
    "gate": "the gate is forced to a value",
    "scale": "what is added is multiplied",
    "rows_zero": "rows read as zero",
    "swap": "rows are read of the n-gram that ends another text",
}
OF_ROWS = ("rows_zero", "swap")
KEYS = ("layer", "order", "head", "stream", "slot", "pos")
CONDITIONS = ("intact", "edited")
_TARGET = rf"(?:{'|'.join(KEYS)})=\d+(?:-\d+)?"
_TARGETS = re.compile(rf"{_TARGET}(?:,{_TARGET})*")


@dataclass(frozen=True, kw_only=True)
class MemoryEdit:
    """One change of the memory, as text `HOW[=VALUE][@KEY=VALUE,...]`; see `parse`.

    Attributes:
        how: of `HOWS`. value: of gate and scale a number, of swap a text, else None.
        layer, order, head, stream, slot: the only one that is changed; None: all.
        pos: first and last position that is changed; None: all, generated ones too.
    """

    how: str
    value: float | str | None = None
    layer: int | None = None
    order: int | None = None
    head: int | None = None
    stream: int | None = None
    slot: int | None = None
    pos: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.how not in HOWS:
            raise UsageError(f"no edit {self.how!r}; use one of {', '.join(HOWS)}")
        number = isinstance(self.value, int | float) and bool(np.isfinite(self.value))
        if self.how in ("gate", "scale") and not number:
            raise UsageError(f"{self.how} needs a number, as {self.how}=0.5")
        if self.how == "swap" and not (isinstance(self.value, str) and self.value.strip()):
            raise UsageError("swap needs a text, as 'swap=New York@pos=4'")
        if self.how in ("zero", "rows_zero") and self.value is not None:
            raise UsageError(f"{self.how} takes no value")
        if self.how == "swap" and self.pos is None:
            raise UsageError("swap needs positions, as 'swap=New York@pos=4'")
        if self.how not in OF_ROWS and {self.order, self.head, self.slot} != {None}:
            raise UsageError(
                f"{self.how} changes what a layer's memory adds as a whole; for an order, head or "
                f"slot use one of {', '.join(OF_ROWS)}"
            )
        if self.how in OF_ROWS and self.stream is not None:
            raise UsageError(f"all streams read the same rows; {self.how} takes no stream")
        if self.pos is not None and self.pos[0] > self.pos[1]:
            raise UsageError(f"positions {self.pos[0]}-{self.pos[1]} are none; write FIRST-LAST")

    @classmethod
    def parse(cls, text: str) -> "MemoryEdit":
        """From text. Targets are what follows the last `@`, if that is nothing but targets; in a
        value `%40` stands for `@` and `%25` for `%`.

        Raises:
            UsageError: no such edit.
        """
        head, at, tail = text.rpartition("@")
        if not (at and _TARGETS.fullmatch(tail)):
            if at and "=" not in head:
                raise UsageError(
                    f"{tail!r} in {text!r} names nothing to edit; write KEY=NUMBER with commas "
                    f"between, of the keys {', '.join(KEYS)}"
                )
            head, tail = text, ""
        how, equals, value = head.partition("=")
        targets: dict[str, Any] = {}
        for pair in tail.split(",") if tail else ():
            key, _, numbers = pair.partition("=")
            first, dash, last = numbers.partition("-")
            if key in targets or (dash and key != "pos"):
                raise UsageError(f"{text!r}: give {key} once, as one number")
            targets[key] = (int(first), int(last or first)) if key == "pos" else int(first)
        return cls(how=how, value=_value(how, value) if equals else None, **targets)

    def __str__(self) -> str:
        value = self.value
        if isinstance(value, str):
            value = value.replace("%", "%25").replace("@", "%40")
        elif value is not None:
            value = f"{float(value)!r}".removesuffix(".0")
        targets = []
        for key in KEYS:
            found = getattr(self, key)
            if key == "pos" and found is not None:
                found = found[0] if found[0] == found[1] else f"{found[0]}-{found[1]}"
            if found is not None:
                targets.append(f"{key}={found}")
        named = self.how if value is None else f"{self.how}={value}"
        return f"{named}@{','.join(targets)}" if targets else named


def _value(how: str, text: str) -> float | str:
    if how not in ("gate", "scale"):
        return unquote(text)
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{how}={text}: {text!r} is no number") from None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Intervention(Result):
    """Positions P of one text; conditions intact and edited; k likeliest next tokens.

    Attributes:
        edits: as text. patched: rows that a patch wrote for the edited run.
        surprisal: of each token given those before, [condition, P]; NaN at 0.
        kl: of the next token's distribution, intact from edited, [P].
        next_ids: likeliest next tokens, [listed by condition, P, k].
        next_probs, next_ranks: theirs in each condition, [listed, condition, P, k]; ranks from 1.
        generated: greedy continuation, [condition, G]; -1 behind an end of text.
        generated_log_prob: of each of its tokens, [condition, G].
        control_*: mean, 2.5% and 97.5% over runs with a change as large in random directions,
            [3, P]; None without controls.
    """

    kind: ClassVar[str] = "intervention"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "token_ids": ("position",),
        "special": ("position",),
        "surprisal": ("condition", "position"),
        "kl": ("position",),
        "next_ids": ("listed", "position", "rank"),
        "next_probs": ("listed", "condition", "position", "rank"),
        "next_ranks": ("listed", "condition", "position", "rank"),
        "generated": ("condition", "step"),
        "generated_log_prob": ("condition", "step"),
        "control_surprisal": ("statistic", "position"),
        "control_kl": ("statistic", "position"),
    }
    units: ClassVar[dict[str, str]] = {
        "surprisal": "nats",
        "kl": "nats",
        "next_probs": "probability",
        "generated_log_prob": "nats",
        "control_surprisal": "nats",
        "control_kl": "nats",
    }

    edits: tuple[str, ...]
    patched: int
    tokens: tuple[str, ...]
    next_texts: tuple[tuple[tuple[str, ...], ...], ...]
    generated_texts: tuple[tuple[str, ...], ...]
    token_ids: np.ndarray
    special: np.ndarray
    surprisal: np.ndarray
    kl: np.ndarray
    next_ids: np.ndarray
    next_probs: np.ndarray
    next_ranks: np.ndarray
    generated: np.ndarray
    generated_log_prob: np.ndarray
    control_surprisal: np.ndarray | None = None
    control_kl: np.ndarray | None = None

    @property
    def helped(self) -> np.ndarray:
        """Nats by which each token is better predicted intact than edited, [P]; NaN at 0."""
        return self.surprisal[1] - self.surprisal[0]

    @property
    def most_helped(self) -> int | None:
        """The position that loses most; None in a text of special tokens."""
        usual = np.where(self.special, np.nan, self.helped)
        return None if np.isnan(usual).all() else int(np.nanargmax(usual))

    @property
    def parts_at(self) -> int | None:
        """First generated token in which the conditions differ; None: nowhere."""
        other = np.flatnonzero(self.generated[0] != self.generated[1])
        return int(other[0]) if len(other) else None

    def facts(self) -> dict[str, Any]:
        return {
            "model": self.provenance.models[0]["name"],
            "edits": list(self.edits),
            "tokens": len(self.tokens),
            "mean": round(float(self.helped[~self.special].mean()), 4) if self._usual else None,
        }

    @property
    def _usual(self) -> bool:
        return not bool(self.special.all())

    def summary(self) -> str:
        return f"{self._finding()}{self._continuation()}."

    def _finding(self) -> str:
        place = self.most_helped
        with_ = self._told
        if place is None or not (self.kl.any() or self.helped[~self.special].any()):
            return f"{with_}, no prediction changes"
        mean = float(self.helped[~self.special].mean())
        over = f"over the text the loss changes by {mean:+.3f} nats a token"
        if self.helped[place] <= 0:
            return f"{with_}, no token is predicted worse; {over}"
        before, after = np.exp(-self.surprisal[:, place])
        return (
            f"{with_}, “{self.tokens[place]}” (position {place}) loses most: its probability falls "
            f"from {before:.3g} to {after:.3g}, {self.helped[place]:.2f} nats"
            f"{self._control(place)}; {over}"
        )

    @property
    def _told(self) -> str:
        if self.edits == ("zero",) and not self.patched:
            return "Without the memory"
        rows = (f"{self.patched} edited rows",) if self.patched else ()
        return f"With {', '.join((*self.edits, *rows)) or 'no edit'}"

    def _control(self, place: int) -> str:
        if self.control_surprisal is None:
            return ""
        mean, low, high = self.control_surprisal[:, place]
        return f" (a change as large in random directions: {mean:.2f}, {low:.2f} to {high:.2f})"

    def _continuation(self) -> str:
        if not self.generated.shape[1]:
            return ""
        if self.parts_at is None:
            return "; the continuation stays the same"
        return f"; the continuations part at generated token {self.parts_at + 1}"

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each position."""
        import pandas as pd

        frame = pd.DataFrame(
            {
                "position": range(len(self.tokens)),
                "token": self.tokens,
                "special": self.special,
                "intact": self.surprisal[0],
                "edited": self.surprisal[1],
                "helped": self.helped,
                "kl": self.kl,
            }
        )
        if self.control_surprisal is not None:
            for name, values in zip(("mean", "low", "high"), self.control_surprisal, strict=True):
                frame[f"control_{name}"] = values
        return frame

    def figure(
        self, what: str = "tokens", position: int | None = None
    ) -> "plotly.graph_objects.Figure":
        """`tokens`: change of each token's surprisal. `next`: the next token at a position.

        Raises:
            UsageError: no such view or position.
        """
        from engram_probes.figures.interventions import next_figure, tokens_figure

        if what not in ("tokens", "next"):
            raise UsageError(f"no figure of {what!r}; use tokens or next")
        if what == "tokens":
            return tokens_figure(self)
        position = len(self.tokens) - 1 if position is None else position
        if not 0 <= position < len(self.tokens):
            raise UsageError(
                f"position {position} is outside of the text (0-{len(self.tokens) - 1})"
            )
        return next_figure(self, position)


def edits_of(edits: Iterable[str | MemoryEdit]) -> tuple[MemoryEdit, ...]:
    """Each edit parsed, in order."""
    given = [edits] if isinstance(edits, str | MemoryEdit) else edits
    return tuple(MemoryEdit.parse(one) if isinstance(one, str) else one for one in given)


def intervene(
    model,
    tokenizer,
    text: str,
    edits: Iterable[str | MemoryEdit] = ("zero",),
    *,
    patch: "RowPatch | None" = None,
    generate: int = 0,
    topk: int = 5,
    controls: int = 0,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> Intervention:
    """Read a text with the memory as it is, and edited.

    Args:
        model: a model with a memory, or a TransformerBridge of one, whose hooks stay live.
        edits: made together, those of one layer in order; see `MemoryEdit.parse`.
        patch: rows that are written for the edited run and taken out again.
        generate: tokens of greedy continuation in each condition.
        topk: likeliest next tokens that are kept.
        controls: runs with a random change as large, at the layers that are edited.
        seed: of these.
        progress: called with passes done and in all.

    Raises:
        UsageError: a model without a memory, an edit of what is not there, a text too long.
    """
    from engram_probes.interventions_run import run

    return run(
        model, tokenizer, text, edits_of(edits), patch, generate, topk, controls, seed, progress
    )
