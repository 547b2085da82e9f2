"""N-grams of compressed ids as people read them."""

from collections.abc import Iterable

import numpy as np

from engram_probes.text import token_texts


class NgramTexts:
    """Function: compressed ids -> text, each id by one of the raw tokens that share it.

    That is the token that a corpus has most often; without a corpus, the first one in lower case.
    Which of them the n-gram had is not known: it was hashed without.

    Args:
        compression: raw id -> compressed id, int [vocabulary].
        raw_counts: occurrences of the raw tokens, int [vocabulary]; None: no corpus.
    """

    def __init__(
        self, tokenizer, compression: np.ndarray, raw_counts: np.ndarray | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._compression = compression
        self._counts = raw_counts
        self._known: dict[int, str] = {}

    def __call__(self, ngram: Iterable[int]) -> str:
        return "".join(self._text(int(compressed)) for compressed in ngram)

    def _text(self, compressed: int) -> str:
        if compressed not in self._known:
            members = np.flatnonzero(self._compression == compressed)
            if self._counts is not None:
                members = members[np.argsort(-self._counts[members], kind="stable")]
            texts = token_texts(self._tokenizer, members)
            counted = self._counts is not None and self._counts[members[0]] > 0
            lower = (text for text in texts if text == text.lower())
            self._known[compressed] = texts[0] if counted else next(lower, texts[0])
        return self._known[compressed]
