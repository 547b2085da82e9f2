"""Where the memory speaks: score, gate and size of what it adds, on every token of a text."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from engram_model.errors import UsageError
from engram_probes.bootstrap import divide
from engram_probes.provenance import provenance
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

What = Literal["gate", "score", "added"]
WHAT: tuple[What, ...] = ("gate", "score", "added")
NEUTRAL_GATE = 0.5


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GateMap(Result):
    """Memory layers L, positions p (0 is <bos>), residual streams M, slots a position C.

    Attributes:
        layers: 0-based ids of the memory layers, [L].
        token_ids: [p].
        tokens: text of each token as shown: spaces in front `·`, newline `↵`, stray bytes `<0x..>`.
        max_ngram_size, n_heads: column c of `slots` is order 2 + c // n_heads, head c % n_heads.
        scores: <norm hidden, norm key> / sqrt(d) before root and sigmoid, [L, p, M].
        gate: [L, p, M]; 0.5 is neutral. The gate alone is not the contribution: see `added_norm`.
        value_norm: Euclidean norm of the value, [L, p].
        added_norm: of what was added to each stream, convolution included, [L, p, M].
        residual_norm: of the stream that it was added to, before, [L, p, M].
        slots: rows of the layer's flat table, [L, p, C] int64.
        next_surprisal: -ln of the probability of the true next token, nats, [p]; NaN at the last.
        next_ids, next_probs: the k likeliest next tokens after each position, [p, k].
        next_texts: their texts as shown, p tuples of k.
        special: positions of special tokens and position 0, which statistics leave out, bool [p].
    """

    kind: ClassVar[str] = "gates"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "token_ids": ("position",),
        "scores": ("layer", "position", "stream"),
        "gate": ("layer", "position", "stream"),
        "value_norm": ("layer", "position"),
        "added_norm": ("layer", "position", "stream"),
        "residual_norm": ("layer", "position", "stream"),
        "slots": ("layer", "position", "column"),
        "next_surprisal": ("position",),
        "next_ids": ("position", "rank"),
        "next_probs": ("position", "rank"),
        "special": ("position",),
    }
    units: ClassVar[dict[str, str]] = {
        "gate": "0 to 1, 0.5 is neutral",
        "next_surprisal": "nats",
        "next_probs": "probability",
        "slots": "row of the layer's table",
    }

    layers: tuple[int, ...]
    tokens: tuple[str, ...]
    max_ngram_size: int
    n_heads: int
    next_texts: tuple[tuple[str, ...], ...]
    token_ids: np.ndarray
    scores: np.ndarray
    gate: np.ndarray
    value_norm: np.ndarray
    added_norm: np.ndarray
    residual_norm: np.ndarray
    slots: np.ndarray
    next_surprisal: np.ndarray
    next_ids: np.ndarray
    next_probs: np.ndarray
    special: np.ndarray

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate.shape[:2] != (len(self.layers), len(self.tokens)):
            raise ValueError(
                f"gate has shape {self.gate.shape} for {len(self.layers)} layers and "
                f"{len(self.tokens)} tokens"
            )

    @property
    def streams(self) -> int:
        return self.gate.shape[2]

    @property
    def added_relative(self) -> np.ndarray:
        """Size of what was added over that of the stream it entered, [L, p, M]."""
        return divide(self.added_norm, self.residual_norm)

    def values(
        self, what: What = "gate", layer: int | None = None, stream: int | None = None
    ) -> np.ndarray:
        """One number a token.

        Args:
            what: "gate" and "score" are averaged over streams; "added" is the norm of all that was
                added over the norm of all streams it entered.
            layer: id of a memory layer; None: all.
            stream: one stream instead of all.

        Returns:
            [L, p], or [p] for one layer.

        Raises:
            UsageError: no such quantity, layer or stream.
        """
        self._check(what, layer, stream)
        index = slice(None) if layer is None else self.layers.index(layer)
        streams = slice(None) if stream is None else slice(stream, stream + 1)
        if what == "added":
            added, residual = self.added_norm[..., streams], self.residual_norm[..., streams]
            return divide(_norm(added), _norm(residual))[index]
        array = self.gate if what == "gate" else self.scores
        return array[..., streams].mean(-1)[index]

    def strip(
        self, what: What = "gate", layer: int | None = None, stream: int | None = None
    ) -> list[tuple[str, float]]:
        """Token and value, in the text's order; the mean over layers if none is named."""
        values = self.values(what, layer, stream)
        values = values if layer is not None else values.mean(0)
        return [(token, float(value)) for token, value in zip(self.tokens, values, strict=True)]

    def facts(self) -> dict:
        return {
            "model": self.provenance.models[0]["name"],
            "layers": list(self.layers),
            "streams": self.streams,
            "tokens": len(self.tokens),
        }

    def summary(self) -> str:
        if self.special.all():
            return "There is no token to speak of: the text holds special tokens only."
        added = np.where(self.special, -np.inf, self.values("added"))
        layer, position = np.unravel_index(np.argmax(added), added.shape)
        gate = self.values("gate")
        return (
            f"The memory adds most at “{self.tokens[position]}” (position {position}, layer "
            f"{self.layers[layer]}): {added[layer, position]:.2f} of the residual it enters, at a "
            f"gate of {gate[layer, position]:.2f}; the mean gate of the text is "
            f"{gate[:, ~self.special].mean():.2f}, where {NEUTRAL_GATE} is neutral."
        )

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each layer, position and stream."""
        import pandas as pd

        layer, position, stream = (
            index.ravel() for index in np.indices(self.gate.shape, dtype=np.int64)
        )
        return pd.DataFrame(
            {
                "layer": np.array(self.layers)[layer],
                "position": position,
                "token": np.array(self.tokens, dtype=object)[position],
                "token_id": self.token_ids[position],
                "special": self.special[position],
                "stream": stream,
                "score": self.scores.ravel(),
                "gate": self.gate.ravel(),
                "value_norm": self.value_norm[layer, position],
                "added_norm": self.added_norm.ravel(),
                "added_relative": self.added_relative.ravel(),
                "next_surprisal": self.next_surprisal[position],
            }
        )

    def figure(
        self, what: What = "gate", layer: int | None = None, stream: int | None = None
    ) -> "plotly.graph_objects.Figure":
        """Heatmap of layers (or, for one layer, of its streams) by position."""
        from engram_probes.figures.gates import gate_figure

        self._check(what, layer, stream)
        return gate_figure(self, what, layer, stream)

    def _check(self, what: str, layer: int | None, stream: int | None) -> None:
        if what not in WHAT:
            raise UsageError(f"{what!r} is not in a gate map; use one of {', '.join(WHAT)}")
        if layer is not None and layer not in self.layers:
            has = ", ".join(str(i) for i in self.layers)
            raise UsageError(f"layer {layer} has no memory; layers with one: {has}")
        if stream is not None and not 0 <= stream < self.streams:
            raise UsageError(f"stream {stream}: the model has streams 0..{self.streams - 1}")


def _norm(parts: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(parts).sum(-1))


def gate_map(
    model,
    tokenizer,
    text: str,
    *,
    topk: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> GateMap:
    """Run a text and see what each memory does on each token.

    Args:
        model: an Engram model with a memory, or a TransformerBridge of one.
        tokenizer: its tokenizer; the text is read as `<bos>` + text, as in training.
        text: at most the model's context long.
        topk: likeliest next tokens kept at each position.
        progress: called with (done, total).

    Returns:
        A `GateMap`. Scores and gates are those of the model's own forward pass.

    Raises:
        UsageError: an empty text, one longer than the context, a corpus instead of a text, or a
            model without a memory.
    """
    from engram_probes.capture import MemoryTrace, Subject

    subject = Subject.of(model)
    if not subject.memories:
        raise UsageError(
            f"{subject.name} has no memory, so it has no gates; give a model with one, or look at "
            "this one with logit_lens or cka"
        )
    if not isinstance(text, str):
        raise UsageError(f"gate_map reads one text, not {type(text).__name__}; call it once a text")
    ids = subject.encode(tokenizer, text)
    with MemoryTrace(subject) as trace:
        logits = subject.logits(ids)
    if progress:
        progress(1, 1)
    return _gate_map(subject, tokenizer, text, ids, trace.arrays(), logits, topk)


def _gate_map(subject, tokenizer, text, ids, traced, logits, topk) -> GateMap:
    from engram_probes.capture import next_surprisal
    from engram_probes.text import describe_texts, nested_texts, token_texts

    log_probs = logits.float().log_softmax(-1)
    best = log_probs.topk(min(topk, log_probs.shape[-1]))
    memory = subject.memories[0]
    return GateMap(
        provenance=provenance(
            [subject.model], tokenizer, describe_texts([text]), {"topk": topk}, None
        ),
        layers=tuple(memory.layer_id for memory in subject.memories),
        tokens=token_texts(tokenizer, ids),
        token_ids=np.array(ids, dtype=np.int64),
        max_ngram_size=memory.max_ngram_size,
        n_heads=memory.n_heads,
        next_surprisal=next_surprisal(log_probs, ids),
        next_ids=best.indices.cpu().numpy(),
        next_probs=best.values.exp().cpu().numpy(),
        next_texts=nested_texts(tokenizer, best.indices.cpu().numpy()),
        special=subject.special(tokenizer, ids),
        **traced,
    )
