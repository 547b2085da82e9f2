"""The logit lens over documents: what is kept of each is a sum, of a single text every token."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engram_model.errors import CorpusError
from engram_probes.capture import Subject, batches, encode
from engram_probes.lens import METRICS
from engram_probes.lens_measure import NEEDS_NEXT, TokenValues, chunk_size, measure
from engram_probes.text import Documents, token_texts


@dataclass(frozen=True, eq=False)
class LensRun:
    """sums [n, K, D], counts [n, K]; `single`: the fields of a single text."""

    sums: np.ndarray
    counts: np.ndarray
    cut: int
    max_difference: float
    single: dict[str, Any] = field(default_factory=dict)


def read_documents(
    subject: Subject,
    tokenizer,
    documents: Documents,
    topk: int,
    max_tokens: int | None,
    chunk_tokens: int | None,
    progress: Callable[[int, int | None], None] | None,
) -> LensRun:
    """Measure every document; memory grows with their number only."""
    model = subject.model
    chunk = chunk_tokens or chunk_size(model.config.vocab_size, model.device)
    reader = _Reader(subject, tokenizer, documents, max_tokens)
    sums, counts, single = [], [], {}
    difference = 0.0
    for batch in batches(reader, len):
        for ids, token in zip(
            batch, measure(subject, subject.residuals(batch), batch, topk, chunk), strict=True
        ):
            counted = _counted(subject, tokenizer, ids)
            sums.append(np.where(counted[:, None], token.values, 0).sum(-1, dtype=np.float64))
            counts.append(counted.sum(-1))
            difference = max(difference, token.max_difference)
            if documents.single:
                single = _single(subject, tokenizer, ids, token)
        if progress:
            progress(len(sums), documents.total)
    if not sums:
        raise CorpusError("the corpus is empty: there is no text to read")
    return LensRun(np.stack(sums), np.stack(counts), reader.cut, difference, single)


class _Reader:
    """Ids of document after document, cut to the context; `cut` counts those."""

    def __init__(
        self, subject: Subject, tokenizer, documents: Documents, max_tokens: int | None
    ) -> None:
        self._subject, self._tokenizer, self._documents = subject, tokenizer, documents
        self._max_tokens = max_tokens
        self.cut = 0

    def __iter__(self) -> Iterator[list[int]]:
        tokens = 0
        for document in self._documents:
            ids = self._ids(document["text"])
            yield ids
            tokens += len(ids)
            if self._max_tokens is not None and tokens >= self._max_tokens:
                return

    def _ids(self, text: str) -> list[int]:
        if self._documents.single:
            return self._subject.encode(self._tokenizer, text)
        ids = encode(self._tokenizer, text)
        self.cut += len(ids) > self._subject.context
        ids = ids[: self._subject.context]
        self._subject.check_vocabulary(ids)
        return ids


def _counted(subject: Subject, tokenizer, ids: list[int]) -> np.ndarray:
    """Bool [K, positions]: what enters the mean of each metric."""
    usual = ~subject.special(tokenizer, ids)
    known = usual.copy()
    known[-1] = False  # the token after the last is not known
    return np.stack([known if name in NEEDS_NEXT else usual for name in METRICS])


def _single(subject: Subject, tokenizer, ids: list[int], token: TokenValues) -> dict[str, Any]:
    values = token.values.copy()
    for index, name in enumerate(METRICS):
        if name in NEEDS_NEXT:
            values[index, :, -1] = np.nan
    return {
        "token_ids": np.array(ids, dtype=np.int64),
        "tokens": token_texts(tokenizer, ids),
        "special": subject.special(tokenizer, ids),
        "token_values": values,
        "top1_ids": token.top1_ids,
        "top1_prob": token.top1_prob,
        "top1_texts": tuple(token_texts(tokenizer, row) for row in token.top1_ids),
        "settling_depth": token.settling_depth,
    }
