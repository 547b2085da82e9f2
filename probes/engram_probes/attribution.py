"""Who wrote this logit: exact shares of a prediction, with the memory's rows among the writers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engram_model.errors import UsageError
from engram_probes.provenance import provenance
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

REMAINDER = "remainder"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Attribution(Result):
    """Shares of the last position's logit of a token, or of the difference of two.

    Attributes:
        model: its name.
        tokens: the text's tokens as shown; the logit is that after the last one.
        target, against: the token, and the one whose logit is taken off it; "" for none.
        target_id, against_id: their ids; -1 for none.
        components: the writers, oldest first: `embed`, `{layer}_attn_out`, `{layer}_mlp_out`, of a
            memory `{layer}_engram_order{n}_head{h}`, `{layer}_engram_conv`, and `remainder`.
        contribution: of each to the logit, [components]; they sum to it.
        logit: the model's own.
        prob: probability of the target.
    """

    kind: ClassVar[str] = "attribution"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {"contribution": ("component",)}
    units: ClassVar[dict[str, str]] = {"contribution": "logit"}

    model: str
    tokens: tuple[str, ...]
    target: str
    target_id: int
    against: str
    against_id: int
    components: tuple[str, ...]
    logit: float
    prob: float
    contribution: np.ndarray

    @property
    def from_memory(self) -> np.ndarray:
        """Bool [components]: the parts of a memory's write."""
        return np.array(["_engram_" in name for name in self.components])

    def facts(self) -> dict[str, Any]:
        pair = f"{self.target} less {self.against}" if self.against else self.target
        return {
            "model": self.model,
            "target": pair,
            "logit": round(self.logit, 3),
            "components": len(self.components),
        }

    def summary(self) -> str:
        what = f"The logit of “{self.target}”"
        if self.against:
            what = f"The logit of “{self.target}” less that of “{self.against}”"
        largest = int(np.argmax(np.abs(self.contribution)))
        said = (
            f"{what} after “{self.tokens[-1]}” is {self.logit:+.2f}; the largest share has "
            f"{self.components[largest]} ({self.contribution[largest]:+.2f})"
        )
        if not self.from_memory.any():
            return f"{said}."
        memory = self.contribution[self.from_memory]
        inside = np.flatnonzero(self.from_memory)[int(np.argmax(np.abs(memory)))]
        return (
            f"{said}, the memory {memory.sum():+.2f} in all, most of it from "
            f"{self.components[inside]} ({self.contribution[inside]:+.2f})."
        )

    def to_frame(self) -> "pandas.DataFrame":
        """`component`, `contribution`; disjoint rows, which sum to the logit."""
        import pandas as pd

        return pd.DataFrame({"component": self.components, "contribution": self.contribution})

    def figure(self, most: int = 24) -> "plotly.graph_objects.Figure":
        """Bars of the largest shares, oldest writer on top; the memory's in a colour of its own.

        most: bars; what is left is one bar `others`.
        """
        from engram_probes.figures.attribution import attribution_figure

        return attribution_figure(self, most)


def attribute(
    model,
    tokenizer,
    text: str,
    target: str | int | None = None,
    *,
    against: str | int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Attribution:
    """Exact shares of the logit of a token after a text.

    Every writer's output is followed to the final norm, through mixed residual streams with the
    weights they had (see `engram_model.decompose`); the norm's scale is held, as is usual for
    direct logit attribution (Elhage et al. 2021). A memory's gated value is linear in the rows
    looked up, so it is split exactly by order and head; its convolution is a writer of its own.

    Args:
        model: an `EngramForCausalLM`, or the bridge of one, whose hooks stay live.
        text: read as `<bos>` + text.
        target: a token as text (its space in front included) or id; None: the likeliest.
        against: a second token: shares of the difference of the two logits.

    Raises:
        UsageError: an empty or too long text, a target of several tokens, or a model that is no
            Engram model (with or without memories).
    """
    import torch

    from engram_probes.capture import Subject
    from engram_probes.text import describe_texts, token_texts

    subject = Subject.of(model)
    bridge = _bridge(model, tokenizer, subject.name)
    if not isinstance(text, str):
        raise UsageError(f"attribute reads one text, not {type(text).__name__}")
    ids = subject.encode(tokenizer, text)
    other = None if against is None else _token(tokenizer, against)
    one = None if target is None else _token(tokenizer, target)
    with torch.inference_mode():
        logits, cache = bridge.run_with_cache(torch.tensor([ids], device=subject.model.device))
        last = logits[0, -1].float()
        one = int(last.argmax()) if one is None else one
        stack, labels = cache.decompose_resid(pos_slice=-1, return_labels=True, expand_memory=True)
        shares = cache.logit_attrs(stack, one, pos_slice=-1, incorrect_tokens=other)[:, 0]
    logit = float(last[one] - (0 if other is None else last[other]))
    contribution = shares.double().cpu().numpy()
    if progress:
        progress(1, 1)
    names = token_texts(tokenizer, [one] if other is None else [one, other])
    return Attribution(
        provenance=provenance(
            [subject.model],
            tokenizer,
            describe_texts([text]),
            {"target": one, "against": other},
            None,
        ),
        model=subject.name,
        tokens=token_texts(tokenizer, ids),
        target=names[0],
        target_id=one,
        against="" if other is None else names[1],
        against_id=-1 if other is None else other,
        components=(*labels, REMAINDER),
        contribution=np.append(contribution, logit - contribution.sum()),
        logit=logit,
        prob=float(last.softmax(-1)[one]),
    )


def _bridge(model, tokenizer, name: str):
    """The bridge given, or a new one."""
    from engram_model import hooked
    from engram_model.modeling import EngramForCausalLM

    if hasattr(model, "run_with_cache"):
        return model
    if not isinstance(model, EngramForCausalLM):
        raise UsageError(
            f"{name} is a {type(model).__name__}: attribution needs an Engram model, with or "
            "without memories; for others use TransformerLens's logit_attrs"
        )
    return hooked(model, tokenizer)


def _token(tokenizer, given: str | int) -> int:
    """Raises UsageError unless it is one token of the vocabulary."""
    if isinstance(given, int):
        if 0 <= given < len(tokenizer):
            return given
        raise UsageError(f"token id {given} is outside the vocabulary ({len(tokenizer):,})")
    ids = tokenizer(given, add_special_tokens=False)["input_ids"]
    if len(ids) == 1:
        return ids[0]
    from engram_probes.text import token_texts

    pieces = " ".join(token_texts(tokenizer, ids)) or "nothing"
    raise UsageError(
        f"{given!r} is {len(ids)} tokens ({pieces}), not one; give the first of them, with its "
        "space in front if it has one"
    )
