"""Loss of a model on a corpus, by source: nats a token and bits a byte, with intervals.

A document is `<bos> text`; every token of the text is predicted once, in windows of at most the
context. A window begins where the last one ended, with no overlap: a token's context is what its
window holds before it.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from engram_model.errors import CorpusError
from engram_model.intervals import ratio_interval
from engram_model.scoring import Progress, TokenScores, opening_id, score_rows

DEFAULT_DATA = "world:?seed=0&split=valid&tokens=20K"
Span = dict[str, Any]


@dataclass(frozen=True)
class SourceLoss:
    """Loss on one source.

    Attributes:
        loss: mean negative log-likelihood, nats a token.
        low, high: 95% interval of it, by bootstrap over documents.
        bits_per_byte: of the UTF-8 text.
        documents, tokens, bytes: how much text this is.
    """

    loss: float
    low: float
    high: float
    bits_per_byte: float
    documents: int
    tokens: int
    bytes: int

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class ScoredDocument:
    """A document and how each of its tokens was foretold.

    Attributes:
        source: its publisher (the `owner` of owner/name) or world family.
        bytes: of the UTF-8 text.
        scores: of all tokens of the text.
        spans: the labelled span that each token belongs to; None: to none. Empty where the corpus
            has no labels.
    """

    source: str
    bytes: int
    scores: TokenScores
    spans: list[Span | None]


def evaluate(
    model,
    tokenizer,
    data: str = DEFAULT_DATA,
    *,
    batch: int = 8,
    context: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, SourceLoss]:
    """Loss by source (a document's publisher, or the world's family) and over `all`.

    Args: as `score_documents`.
        seed: of the bootstrap.

    Raises:
        CorpusError: no text in the corpus.
    """
    documents = score_documents(
        model, tokenizer, data, batch=batch, context=context, progress=progress
    )
    return by_source(documents, seed)


def score_documents(
    model,
    tokenizer,
    data: str,
    *,
    batch: int = 8,
    context: int | None = None,
    progress: Progress | None = None,
) -> list[ScoredDocument]:
    """Every document of a corpus, from one pass of the model.

    Args:
        model: a causal model in evaluation mode.
        data: a corpus as for `load_corpus`.
        batch: windows at a time; more where they are short.
        context: tokens a window (None: the model's).
        progress: called with the number of tokens done.

    Raises:
        CorpusError: no text in the corpus.
    """
    from engram_model.corpora import iter_documents

    context = context or model.config.max_position_embeddings
    read: list[_Read] = []
    rows = _windows(iter_documents(data), tokenizer, context, read)
    windows = score_rows(model, rows, batch * context, progress)
    documents: list[ScoredDocument] = []
    parts: list[TokenScores] = []
    for window in windows:
        parts.append(window)
        document = read[len(documents)]
        if sum(map(len, parts)) == len(document.ids):
            documents.append(document.scored(TokenScores.join(parts)))
            parts = []
    if not documents:
        raise CorpusError(f"{data} is empty: there is no text to evaluate on")
    return documents


@dataclass(frozen=True)
class _Read:
    """A document that waits for its scores."""

    record: dict
    ids: list[int]
    spans: list[Span | None]

    def scored(self, scores: TokenScores) -> ScoredDocument:
        size = len(self.record["text"].encode())
        return ScoredDocument(_source(self.record), size, scores, self.spans)


def _windows(
    records: Iterable[dict], tokenizer, context: int, read: list[_Read]
) -> Iterator[list[int]]:
    """Windows of context + 1 ids: the inputs and, one on, the targets. Fills `read`."""
    for record in records:
        document = _read(record, tokenizer)
        if not document.ids:
            continue
        read.append(document)
        ids = [opening_id(tokenizer), *document.ids]
        for start in range(0, len(ids) - 1, context):
            yield ids[start : start + context + 1]


def _read(record: dict, tokenizer) -> _Read:
    from engram_model.world import token_spans

    text, spans = record["text"], record.get("spans")
    if spans is None:
        return _Read(record, tokenizer(text, add_special_tokens=False)["input_ids"], [])
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    owners = token_spans(spans, encoded["offset_mapping"])
    return _Read(record, encoded["input_ids"], [None if i is None else spans[i] for i in owners])


def _source(record: dict) -> str:
    if record.get("family"):
        return f"world/{record['family']}"
    return (record.get("source") or "text").split("/")[0]


def by_source(documents: Iterable[ScoredDocument], seed: int = 0) -> dict[str, SourceLoss]:
    """Loss by source, in the order of their names, then over `all`."""
    groups: dict[str, list[ScoredDocument]] = defaultdict(list)
    for document in documents:
        groups[document.source].append(document)
        groups["all"].append(document)
    order = sorted(name for name in groups if name != "all")
    return {name: _source_loss(groups[name], seed) for name in [*order, "all"]}


def _source_loss(documents: list[ScoredDocument], seed: int) -> SourceLoss:
    losses = np.array([-document.scores.log_probs.sum() for document in documents])
    tokens = np.array([len(document.scores) for document in documents], dtype=np.int64)
    size = sum(document.bytes for document in documents)
    low, high = ratio_interval(losses, tokens, seed)
    return SourceLoss(
        loss=float(losses.sum() / tokens.sum()),
        low=low,
        high=high,
        bits_per_byte=float(losses.sum() / math.log(2) / size),
        documents=len(losses),
        tokens=int(tokens.sum()),
        bytes=size,
    )
