"""The logit lens over documents: what is kept of each is a sum, of a single text every token."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engram_model.errors import CorpusError
from engram_probes.capture import Subject, batches
from engram_probes.lens import METRICS
from engram_probes.lens_measure import NEEDS_NEXT, TokenValues, Translate, chunk_size, measure
from engram_probes.strata import Strata
from engram_probes.text import Documents, encode, nested_texts, token_texts


@dataclass(frozen=True, eq=False)
class LensRun:
    """sums [n, K, D], counts [n, K], and by stratum [n, S, K, D], [n, S, K] (S may be 0); `single`:
    the fields of a single text."""

    sums: np.ndarray
    counts: np.ndarray
    stratum_sums: np.ndarray
    stratum_counts: np.ndarray
    cut: int
    max_difference: float
    single: dict[str, Any] = field(default_factory=dict)


def read_documents(
    subject: Subject,
    tokenizer,
    documents: Documents,
    topk: int = 1,
    max_tokens: int | None = None,
    chunk_tokens: int | None = None,
    share: float = 1.0,
    strata: Strata | None = None,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
    translate: Translate | None = None,
) -> LensRun:
    """Measure every document; memory grows with their number only."""
    model = subject.model
    chunk = chunk_tokens or chunk_size(subject.config.vocab_size, model.device)
    reader = _Reader(subject, tokenizer, documents, max_tokens, share, strata, seed)
    sums, counts, single = [], [], {}
    stratum_sums, stratum_counts = [], []
    difference = 0.0
    for batch in batches(reader, lambda one: len(one.ids), subject.tokens_at_once):
        texts = [one.ids for one in batch]
        chosen = [one.chosen for one in batch]
        residuals = subject.residuals(texts)
        kept, within = (topk, progress) if documents.single else (0, None)
        measured = measure(subject, residuals, texts, chosen, topk, chunk, translate, kept, within)
        for one, token in zip(batch, measured, strict=True):
            ids = one.ids
            counted = _counted(subject, tokenizer, ids)[:, one.chosen]
            values = np.where(counted[:, None], token.values, 0).astype(np.float64)
            sums.append(values.sum(-1))
            counts.append(counted.sum(-1))
            members = (
                one.strata[one.chosen] == np.arange(len(strata.names) if strata else 0)[:, None]
            )
            stratum_sums.append(np.einsum("kdp,sp->skd", values, members))
            stratum_counts.append(np.einsum("kp,sp->sk", counted, members, dtype=np.int64))
            difference = max(difference, token.max_difference)
            if documents.single:
                single = _single(subject, tokenizer, ids, token)
        if progress and not documents.single:
            progress(len(sums), documents.total)
    if not sums:
        raise CorpusError("the corpus is empty: there is no text to read")
    return LensRun(
        sums=np.stack(sums),
        counts=np.stack(counts),
        stratum_sums=np.stack(stratum_sums),
        stratum_counts=np.stack(stratum_counts),
        cut=reader.cut,
        max_difference=difference,
        single=single,
    )


@dataclass(frozen=True, eq=False)
class _Read:
    """ids of a document; the positions to read, position 0 always; the stratum of each position,
    [p], -1 for none."""

    ids: list[int]
    chosen: np.ndarray
    strata: np.ndarray


class _Reader:
    """Ids of document after document, cut to the context; `cut` counts those."""

    def __init__(
        self,
        subject: Subject,
        tokenizer,
        documents: Documents,
        max_tokens: int | None,
        share: float,
        strata: Strata | None,
        seed: int,
    ) -> None:
        self._subject, self._tokenizer, self._documents = subject, tokenizer, documents
        self._max_tokens, self._strata = max_tokens, strata
        self._share, self._generator = share, np.random.default_rng([seed, 4])
        self.cut = 0

    def __iter__(self) -> Iterator[_Read]:
        tokens = 0
        for document in self._documents:
            ids = self._ids(document["text"])
            strata = np.full(len(ids), -1)
            if self._strata is not None:
                strata = self._strata.of(document, self._tokenizer, ids)
            drawn = self._generator.random(len(ids)) < self._share
            drawn[0] = True
            yield _Read(ids, np.flatnonzero(drawn), strata)
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
    topk_ids = token.topk_ids.swapaxes(1, 2)
    return {
        "token_ids": np.array(ids, dtype=np.int64),
        "tokens": token_texts(tokenizer, ids),
        "special": subject.special(tokenizer, ids),
        "token_values": values,
        "top1_ids": token.top1_ids,
        "top1_prob": token.top1_prob,
        "top1_texts": nested_texts(tokenizer, token.top1_ids),
        "topk_ids": topk_ids,
        "topk_prob": token.topk_prob.swapaxes(1, 2),
        "topk_texts": nested_texts(tokenizer, topk_ids),
        "settling_depth": token.settling_depth,
    }
