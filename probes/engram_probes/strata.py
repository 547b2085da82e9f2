"""Kinds of tokens that curves are drawn apart for. A position belongs to the token after it, which
is what is predicted there."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from engram_model.errors import CorpusError, UsageError

MECHANISMS = ("outside", "none", "copy", "fact", "ngram", "compute")
POSITIONS = (1, 16, 64, 256)  # the first of each band
BANDS = 6  # of a token's id: a BPE numbers its tokens in about the order of their frequency


@dataclass(frozen=True)
class Strata:
    """by: what the strata are of. names: of each."""

    by: str
    names: tuple[str, ...]

    @classmethod
    def named(cls, by: str) -> "Strata":
        """Raises UsageError: no such strata."""
        last = (f"{POSITIONS[-1]:,} on",)
        bands = tuple(f"{a} to {b - 1}" for a, b in pairwise(POSITIONS))
        names = {
            "mechanism": MECHANISMS,
            "position": bands + last,
            "frequency": tuple(f"band {band + 1} of {BANDS}" for band in range(BANDS)),
        }
        if by not in names:
            raise UsageError(f"by={by!r}: use one of {', '.join(names)}")
        return cls(by, names[by])

    def of(self, document: dict[str, Any], tokenizer, ids: list[int]) -> np.ndarray:
        """Stratum of each position of `<bos>` + text, [p]; -1 at the last.

        Raises:
            CorpusError: no spans in the document, where they are needed.
        """
        found = np.full(len(ids), -1)
        if self.by == "position":
            places = np.searchsorted(POSITIONS, np.arange(1, len(ids)), side="right") - 1
        elif self.by == "frequency":
            places = frequency_bands(np.array(ids[1:]), len(tokenizer))
        else:
            places = _mechanisms(document, tokenizer)[: len(ids) - 1]
        found[:-1] = places
        return found


def frequency_bands(ids: np.ndarray, vocabulary: int) -> np.ndarray:
    """0 (the most frequent tokens) to `BANDS` - 1, by the logarithm of the id."""
    bands = np.log(ids + 1) / np.log(vocabulary) * 2 * BANDS - BANDS
    return np.clip(bands.astype(int), 0, BANDS - 1)


def _mechanisms(document: dict[str, Any], tokenizer) -> np.ndarray:
    """Of each token of the text."""
    from engram_model.world import token_spans

    spans = document.get("spans")
    if spans is None:
        raise CorpusError(
            "the corpus has no column 'spans', so the mechanism of its tokens is not known; use "
            "by='frequency' or 'position', or a corpus with spans such as world:"
        )
    encoded = tokenizer(document["text"], add_special_tokens=False, return_offsets_mapping=True)
    owners = token_spans(spans, encoded["offset_mapping"])
    return np.array([MECHANISMS.index(name) for name in mechanism_names(spans, owners)], dtype=int)


def mechanism_names(spans: list[dict[str, Any]], owners: list[int | None]) -> list[str]:
    """One of `MECHANISMS` for each token, given the span that it belongs to."""
    return ["outside" if o is None else spans[o].get("mechanism") or "none" for o in owners]
