"""What a causal model expects at each token of one text: one run, any model, no hooks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from engram_model.errors import UsageError
from engram_probes.provenance import provenance
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Predictions(Result):
    """Positions p of one text.

    Attributes:
        model: name of the model.
        tokens: text of each token as shown.
        next_texts: of the likeliest next tokens, p tuples of k.
        token_ids: [p].
        surprisal: -ln of the probability of the token at a position given all before it, nats, [p];
            NaN at position 0, which nothing comes before.
        entropy: of the prediction after each position, nats, [p].
        next_ids, next_probs: the k likeliest next tokens after each position, [p, k].
        special: positions of special tokens and position 0, which statistics leave out, bool [p].
    """

    kind: ClassVar[str] = "predictions"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "token_ids": ("position",),
        "surprisal": ("position",),
        "entropy": ("position",),
        "next_ids": ("position", "rank"),
        "next_probs": ("position", "rank"),
        "special": ("position",),
    }
    units: ClassVar[dict[str, str]] = {
        "surprisal": "nats",
        "entropy": "nats",
        "next_probs": "probability",
    }

    model: str
    tokens: tuple[str, ...]
    next_texts: tuple[tuple[str, ...], ...]
    token_ids: np.ndarray
    surprisal: np.ndarray
    entropy: np.ndarray
    next_ids: np.ndarray
    next_probs: np.ndarray
    special: np.ndarray

    @property
    def next_surprisal(self) -> np.ndarray:
        """Of the token that follows each position, as gate maps have it; NaN at the last, [p]."""
        return np.roll(self.surprisal, -1)

    def facts(self) -> dict:
        return {"model": self.model, "tokens": len(self.tokens)}

    def summary(self) -> str:
        usual = np.where(self.special, np.nan, self.surprisal)
        if not np.isfinite(usual).any():
            return "There is no token to speak of: every position is special."
        most = int(np.nanargmax(usual))
        return (
            f"{self.model} needs {np.nanmean(usual):.2f} nats a token for this text, most for "
            f"“{self.tokens[most]}” (position {most}): {usual[most]:.2f}."
        )

    def to_frame(self) -> "pandas.DataFrame":
        """One row a position."""
        import pandas as pd

        return pd.DataFrame(
            {
                "position": np.arange(len(self.tokens)),
                "token": self.tokens,
                "surprisal": self.surprisal,
                "entropy": self.entropy,
                "next": [texts[0] for texts in self.next_texts],
                "next_prob": self.next_probs[:, 0],
                "special": self.special,
            }
        )

    def figure(self) -> "plotly.graph_objects.Figure":
        """Surprisal of each token."""
        from engram_probes.figures.token_comparison import predictions_figure

        return predictions_figure(self)


def next_tokens(
    model,
    tokenizer,
    text: str,
    *,
    topk: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Run a text and keep what the model expected of each token, and expects after it.

    Args:
        model: an Engram model, a TransformerBridge of one, or another causal model.
        tokenizer: its tokenizer; the text is read as `<bos>` + text, as in training.
        text: at most the model's context long.
        topk: likeliest next tokens kept at each position.
        progress: called with (done, total).

    Raises:
        UsageError: an empty text, one longer than the context, or not a text.
    """
    from engram_probes.capture import Subject, next_surprisal
    from engram_probes.text import describe_texts, nested_texts, token_texts

    if not isinstance(text, str):
        raise UsageError(f"next_tokens reads one text, not {type(text).__name__}")
    subject = Subject.of(model)
    ids = subject.encode(tokenizer, text)
    log_probs = subject.logits(ids).float().log_softmax(-1)
    best = log_probs.topk(min(topk, log_probs.shape[-1]))
    if progress:
        progress(1, 1)
    return Predictions(
        provenance=provenance(
            [subject.model], tokenizer, describe_texts([text]), {"topk": topk}, None
        ),
        model=subject.name,
        tokens=token_texts(tokenizer, ids),
        next_texts=nested_texts(tokenizer, best.indices.cpu().numpy()),
        token_ids=np.array(ids, dtype=np.int64),
        surprisal=np.roll(next_surprisal(log_probs, ids), 1),
        entropy=-(log_probs.exp() * log_probs).sum(-1).cpu().numpy(),
        next_ids=best.indices.cpu().numpy(),
        next_probs=best.values.exp().cpu().numpy(),
        special=subject.special(tokenizer, ids),
    )
