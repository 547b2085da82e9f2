"""How well tokens are foretold by what they are part of: by mechanism and kind of their spans."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from engram_model.evaluate import ScoredDocument
from engram_model.intervals import ratio_interval

OUTSIDE = "outside"  # tokens that belong to no span
FIELDS = ("mechanism", "kind")


@dataclass(frozen=True)
class SpanScore:
    """The tokens of one mechanism or kind.

    Attributes:
        accuracy: share of tokens than which no other was likelier.
        low, high: 95% interval of it, by bootstrap over documents.
        loss, loss_low, loss_high: nats a token.
        tokens, documents: how many there are.
    """

    accuracy: float
    low: float
    high: float
    loss: float
    loss_low: float
    loss_high: float
    tokens: int
    documents: int

    def to_dict(self) -> dict:
        return asdict(self)


def by_span(documents: Iterable[ScoredDocument], seed: int = 0) -> dict[str, dict[str, SpanScore]]:
    """Scores of the labelled documents: field of the span -> its value -> score.

    Empty where no document has labels.
    """
    labelled = [document for document in documents if document.spans]
    return {field: _by_field(labelled, field, seed) for field in FIELDS} if labelled else {}


def span_sums(document: ScoredDocument, field: str) -> dict[str, tuple[int, int, float]]:
    """Of a labelled document, value of the field -> tokens, how many were right, summed loss."""
    names = np.array([span[field] if span else OUTSIDE for span in document.spans])
    sums = {}
    for name in np.unique(names):
        of_name = names == name
        right = int(document.scores.top[of_name].sum())
        loss = float(-document.scores.log_probs[of_name].sum())
        sums[str(name)] = (int(of_name.sum()), right, loss)
    return sums


def _by_field(documents: list[ScoredDocument], field: str, seed: int) -> dict[str, SpanScore]:
    found: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
    for document in documents:
        for name, sums in span_sums(document, field).items():
            found[name].append(sums)
    return {name: _score(found[name], seed) for name in sorted(found)}


def _score(documents: list[tuple[int, int, float]], seed: int) -> SpanScore:
    tokens, right, losses = np.array(documents, dtype=np.float64).T
    low, high = ratio_interval(right, tokens, seed)
    loss_low, loss_high = ratio_interval(losses, tokens, seed)
    return SpanScore(
        accuracy=float(right.sum() / tokens.sum()),
        low=low,
        high=high,
        loss=float(losses.sum() / tokens.sum()),
        loss_low=loss_low,
        loss_high=loss_high,
        tokens=int(tokens.sum()),
        documents=len(tokens),
    )
