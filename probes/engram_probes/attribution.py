"""Who wrote a logit: embedding, attention, MLPs, and the memory row by row, as an exact sum."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engram_model.errors import UsageError
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

PARTS = {
    "embed": "embedding",
    "attention": "attention",
    "mlp": "MLPs",
    "memory": "memory",
    "bias": "bias",
    "remainder": "remainder",
}
DRAWS = 1000
MOST_BARS = 40
VIEWS = ("components", "parts", "memory")
ROW = re.compile(r"(\d+)_engram_order(\d+)_head(\d+)")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Attribution(Result):
    """Components C, oldest first; residual streams M; positions p (0 is <bos>), up to the one
    attributed.

    Attributes:
        tokens: text of each token as shown (see `GateMap`).
        token_ids: [p].
        target, target_id: the token whose logit at the last position is attributed.
        against, against_id: the token whose logit was subtracted; None: none was.
        logit: of the target, less that of `against`, as the model gave it.
        probability, rank: of the target as next token; 1 is the likeliest.
        components: `embed`, `{layer}_attn_out`, `{layer}_mlp_out`; of a memory
            `{layer}_engram_order{n}_head{h}`, `_conv` and `_bias`; `bias` of norm and unembedding;
            `remainder`, by which the others miss the logit.
        parts: what each component is of, a key of `PARTS`.
        contribution: [C]; the sum is `logit`.
        by_stream: the same by the stream it was written to, [C, M]; NaN for bias and remainder,
            which are in no stream.
        slots: row of the layer's flat table, [C]; -1 for what is no row.
        random_low, random_high: 95% interval of what rows of the same head drawn at random would
            add, read through the same gate, [C]; NaN for what is no row.
        random_sum: the same interval of the sum of all rows, [2]; NaN without a memory.
        logit_without_memory, probability_without_memory: with the memories adding nothing, and all
            that reads them changed accordingly; None for a model without a memory.
    """

    kind: ClassVar[str] = "attribution"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "token_ids": ("position",),
        "contribution": ("component",),
        "by_stream": ("component", "stream"),
        "slots": ("component",),
        "random_low": ("component",),
        "random_high": ("component",),
        "random_sum": ("bound",),
    }
    units: ClassVar[dict[str, str]] = {
        "contribution": "logits",
        "by_stream": "logits",
        "random_low": "logits",
        "random_high": "logits",
        "random_sum": "logits",
        "slots": "row of the layer's table",
    }

    tokens: tuple[str, ...]
    target: str
    target_id: int
    against: str | None
    against_id: int | None
    logit: float
    probability: float
    rank: int
    components: tuple[str, ...]
    parts: tuple[str, ...]
    logit_without_memory: float | None
    probability_without_memory: float | None
    token_ids: np.ndarray
    contribution: np.ndarray
    by_stream: np.ndarray
    slots: np.ndarray
    random_low: np.ndarray
    random_high: np.ndarray
    random_sum: np.ndarray

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.components) == len(self.parts) == len(self.contribution):
            raise ValueError(
                f"{len(self.contribution)} contributions for {len(self.components)} components"
            )

    @property
    def remainder(self) -> float:
        """Logit less all other components."""
        return float(self.contribution[self.components.index("remainder")])

    @property
    def memory(self) -> float:
        """Sum of what the memories wrote; 0 for a model without."""
        return self.by_part().get("memory", 0.0)

    @property
    def memory_share(self) -> float:
        """`memory` over the sum of the sizes of all contributions, between -1 and 1."""
        size = float(np.abs(self.contribution).sum())
        return self.memory / size if size else 0.0

    def by_part(self) -> dict[str, float]:
        """Sums over the components of each part that the model has; they sum to the logit."""
        parts = np.array(self.parts)
        return {
            part: float(self.contribution[parts == part].sum())
            for part in PARTS
            if part in self.parts
        }

    def facts(self) -> dict:
        return {
            "model": self.provenance.models[0]["name"],
            "target": self.target,
            **({} if self.against is None else {"against": self.against}),
            "logit": round(self.logit, 4),
            "memory": round(self.memory, 4),
            "remainder": float(f"{self.remainder:.1e}"),
        }

    def summary(self) -> str:
        of = f"The logit of “{self.target}”"
        if self.against is not None:
            of += f" less that of “{self.against}”"
        sums = ", ".join(
            f"{PARTS[part]} {value:+.2f}"
            for part, value in self.by_part().items()
            if part not in ("bias", "remainder") or abs(value) >= 0.005
        )
        return (
            f"{of} after “{self.tokens[-1]}” is {self.logit:.2f} (probability "
            f"{self.probability:.2g}, rank {self.rank}): {sums}{self._of_memory()}."
        )

    def _of_memory(self) -> str:
        if self.logit_without_memory is None:
            return ""
        rows = np.where(self.slots >= 0, self.contribution, 0)
        largest = np.argmax(np.abs(rows))
        return (
            f"; the memory's rows add {rows.sum():+.2f} (rows drawn at random: "
            f"{self.random_sum[0]:+.2f} to {self.random_sum[1]:+.2f}), the largest of them "
            f"{self.components[largest]} {rows[largest]:+.2f}; if the memory added nothing it "
            f"would be {self.logit_without_memory:.2f} (probability "
            f"{self.probability_without_memory:.2g})"
        )

    def to_frame(self) -> "pandas.DataFrame":
        """Disjoint rows `component`, `contribution` (logits); they sum to the logit."""
        import pandas as pd

        return pd.DataFrame({"component": self.components, "contribution": self.contribution})

    def memory_frame(self) -> "pandas.DataFrame":
        """What the memories wrote, piece by piece; of rows the n-gram, the row of the table, and
        what rows drawn at random would add; `beyond`: outside of that."""
        import pandas as pd

        places = [i for i, part in enumerate(self.parts) if part == "memory"]
        frame = pd.DataFrame([self._piece(i) for i in places])
        return frame.astype({"row": "Int64", "order": "Int64", "head": "Int64"} if places else {})

    def largest(self) -> str:
        """The component of the memory that adds most, of either sign; of a model without one of
        all."""
        of = [part == "memory" for part in self.parts]
        sizes = np.abs(self.contribution) * (of if any(of) else 1)
        return self.components[int(sizes.argmax())]

    def about(self, component: str) -> str:
        """What a component is and adds, in a sentence.

        Raises:
            UsageError: no such component.
        """
        if component not in self.components:
            raise UsageError(f"no component {component!r} in this attribution")
        i = self.components.index(component)
        part, value = self.parts[i], f"{self.contribution[i]:+.3f} logits"
        if self.slots[i] < 0:
            return f"{component} ({PARTS[part]}) adds {value}."
        piece = self._piece(i)
        beyond = "more than" if piece["beyond"] else "no more than"
        return (
            f"Row {piece['row']:,} of layer {piece['layer']}, read for “{piece['n-gram']}” by head "
            f"{piece['head']} of order {piece['order']}, adds {value}: {beyond} rows of its head "
            f"drawn at random ({piece['random_low']:+.3f} to {piece['random_high']:+.3f})."
        )

    def _piece(self, i: int) -> dict[str, Any]:
        name, value = self.components[i], float(self.contribution[i])
        row = ROW.fullmatch(name)
        order, head = (int(row[2]), int(row[3])) if row else (None, None)
        low, high = float(self.random_low[i]), float(self.random_high[i])
        return {
            "component": name,
            "layer": int(name.split("_")[0]),
            "order": order,
            "head": head,
            "n-gram": "".join(self.tokens[-order:]) if order else "",
            "row": int(self.slots[i]) if row else None,
            "contribution": value,
            "random_low": low,
            "random_high": high,
            "beyond": bool(row) and not low <= value <= high,
        }

    def figure(
        self, what: str = "components", most: int = MOST_BARS
    ) -> "plotly.graph_objects.Figure":
        """Horizontal bars, oldest on top, the memory in a colour of its own.

        Args:
            what: `components`; `parts`, their sums; or `memory`, what the memories wrote.
            most: bars at most; the smallest contributions beyond are summed in one.

        Raises:
            UsageError: no such view, less than two bars, or no memory.
        """
        from engram_probes.figures.attribution import attribution_figure, parts_figure

        if what not in VIEWS:
            raise UsageError(f"no figure of {what!r}; use one of {', '.join(VIEWS)}")
        if most < 2:
            raise UsageError(f"most={most}: a figure needs at least two bars")
        if what == "parts":
            return parts_figure(self)
        if what == "memory" and "memory" not in self.parts:
            raise UsageError("memory: the model has none that could have written anything")
        return attribution_figure(self, most, "memory" if what == "memory" else None)


def attribute(
    model,
    tokenizer,
    text: str,
    target: str | int | None = None,
    against: str | int | None = None,
    *,
    position: int | None = None,
    heads: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> Attribution:
    """Attribute a logit, at the last position of `<bos>` + text or another, to what wrote it.

    The final norm's scale and all mixing weights of the streams are held at the values they had,
    as in TransformerLens; the logit is then a sum over components.

    Args:
        model: an `EngramForCausalLM`, a bridge of one, or another causal model that
            TransformerLens knows and whose logit its components add up to.
        tokenizer: its tokenizer.
        text: at most as long as the context.
        target: one token, as text or id; None: the likeliest next token.
        against: a second token whose logit is subtracted.
        position: the token after which the logit is asked for, 0 being `<bos>`; what follows it is
            not read. None: the last.
        heads: attention by its heads, `{layer}_attn_head{h}`.
        draws: rows drawn at random for each row that was looked up.
        seed: of these draws.
        progress: called with passes of the model done and in all.

    Raises:
        UsageError: an empty or too long text, no such position, a target that is not one token, or
            a model whose logit is not the sum of its components.
    """
    from engram_probes.attribution_run import run

    if not isinstance(text, str):
        raise UsageError(f"attribute reads one text, not {type(text).__name__}; call it once each")
    if draws < 1:
        raise UsageError(f"draws={draws}: at least one row must be drawn")
    return run(model, tokenizer, text, target, against, position, heads, draws, seed, progress)
