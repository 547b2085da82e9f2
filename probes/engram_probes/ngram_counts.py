"""The distinct n-grams of a corpus and how often each occurs, for all orders in one pass."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from engram_model.errors import CorpusError, UsageError

if TYPE_CHECKING:
    from engram_model.hashing import NgramHasher

DOCUMENTS_AT_ONCE = 256
Progress = Callable[[int, int | None], None]


def pad_documents(
    documents: Iterable[np.ndarray], pad_id: int, max_ngram_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Documents one after another, each behind N-1 pads: the hash's view of a text's start.

    Returns:
        Ids int64 [t], and which of them belong to a document, bool [t].
    """
    pads = np.full(max_ngram_size - 1, pad_id, dtype=np.int64)
    parts, inside = [np.empty(0, np.int64)], [np.empty(0, bool)]
    for ids in documents:
        parts += [pads, np.asarray(ids, dtype=np.int64)]
        inside += [np.zeros(len(pads), bool), np.ones(len(ids), bool)]
    return np.concatenate(parts), np.concatenate(inside)


def ending_ngrams(compressed: np.ndarray, hasher: "NgramHasher") -> list[np.ndarray]:
    """Of each order 2..N the n-gram that ends at each position of one text, [p, order]."""
    size = hasher.max_ngram_size
    padded, inside = pad_documents(hasher.segments(compressed), hasher.pad_id, size)
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[inside[size - 1 :]]
    return [windows[:, -order:] for order in range(2, size + 1)]


def count_ngrams(
    ids: np.ndarray, counted: np.ndarray, max_ngram_size: int, vocabulary: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """N-grams of the orders 2..N that end where `counted` says.

    An n-gram's key is the rank of its first n-1 ids among their kind and its last id: that fits
    int64 where the ids themselves, packed, would not (99,092^4 > 2^63), and it sorts as the ids do.

    Args:
        ids: int [t] compressed ids, see `pad_documents`.
        counted: bool [t].
        max_ngram_size: N.
        vocabulary: ids lie in [0, vocabulary).

    Yields:
        For each order n: ids int32 [n, distinct] in lexicographic order, counts int64 [distinct].
    """
    ranks = ids
    grams = np.arange(vocabulary, dtype=np.int32)[None]
    for order in range(2, max_ngram_size + 1):
        keys, ranks = np.unique(ranks[:-1] * vocabulary + ids[order - 1 :], return_inverse=True)
        last = (keys % vocabulary).astype(np.int32)
        grams = np.concatenate([grams[:, keys // vocabulary], last[None]])
        counts = np.bincount(ranks[counted[order - 1 :]], minlength=len(keys))
        seen = counts > 0
        yield grams[:, seen], counts[seen]


def read_tokens(
    tokenizer, corpus: Any, vocabulary: int, progress: Progress | None
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Raw ids of every document (SPEC, Dataset or texts) as `<bos>` + text, and what was read.

    Raises:
        CorpusError: it cannot be read or is empty.
        UsageError: tokens beyond the tables' vocabulary.
    """
    from engram_probes.text import Documents

    origin: dict[str, Any] = {}
    if isinstance(corpus, str):
        from engram_model import corpora

        spec, corpus = corpus, corpora.iter_documents(corpus)
        origin = {"spec": corpora.public_spec(spec), "fingerprint": corpora.fingerprint(spec)}
    documents = Documents(corpus)
    raw = list(_tokens(tokenizer, documents, progress))
    if not raw:
        raise CorpusError("the corpus is empty: give at least one document with text")
    largest = max(int(row.max()) for row in raw)
    if largest >= vocabulary:
        raise UsageError(
            f"token id {largest} is outside the tables' vocabulary of {vocabulary:,}; use the "
            "tokenizer they were trained with"
        )
    return raw, {**documents.description(), **origin}


def ordinary_positions(
    raw: list[np.ndarray], inside: np.ndarray, special_ids: list[int]
) -> np.ndarray:
    """Where ordinary tokens are among padded documents, bool [t]: not special, not position 0.

    Raises:
        CorpusError: nowhere.
    """
    ordinary = [~np.isin(row, special_ids) for row in raw]
    for row in ordinary:
        row[0] = False
    counted = inside.copy()
    counted[inside] = np.concatenate(ordinary)
    if not counted.any():
        raise CorpusError("the corpus holds special tokens only; give one with text")
    return counted


def _tokens(tokenizer, documents, progress: Progress | None) -> Iterator[np.ndarray]:
    from engram_probes.text import with_bos

    batch: list[str] = []

    def encoded() -> Iterator[np.ndarray]:
        if batch:
            rows = tokenizer(batch, add_special_tokens=False)["input_ids"]
            yield from (np.array(with_bos(tokenizer, row), dtype=np.int32) for row in rows)
            batch.clear()
        if progress:
            progress(documents.read, documents.total)

    for document in documents:
        batch.append(document["text"])
        if len(batch) == DOCUMENTS_AT_ONCE:
            yield from encoded()
    yield from encoded()
