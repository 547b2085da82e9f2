"""Which tokens of a document are looked at."""

from typing import Any

import numpy as np

from engram_model.errors import CorpusError
from engram_probes.capture import with_bos

ENTITY_KINDS = ("name", "entity", None)  # of spans; None: a corpus that knows entities only


def sampled(special: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    """At most `most` positions drawn from those that are not special, in random order."""
    usual = np.flatnonzero(~special)
    return generator.permutation(usual)[:most]


def entity_final(
    document: dict[str, Any], tokenizer, most: int, generator: np.random.Generator
) -> tuple[list[int], np.ndarray]:
    """Ids of `<bos>` + text, and the last token of at most `most` of its entities.

    An entity is a span of the kind `name` or `entity`, or any span where spans have no kind. Its
    last token is the one that ends its last character.

    Raises:
        CorpusError: the document has no `spans`.
    """
    spans = document.get("spans")
    if spans is None:
        raise CorpusError(
            "the corpus has no column 'spans', so entities are not known; use "
            "positions='sampled', or a corpus with spans such as world:"
        )
    encoded = tokenizer(document["text"], add_special_tokens=False, return_offsets_mapping=True)
    ids = with_bos(tokenizer, encoded["input_ids"])
    shift = len(ids) - len(encoded["input_ids"])
    ends = {
        end + shift
        for span, end in zip(spans, last_tokens(spans, encoded["offset_mapping"]), strict=True)
        if span.get("kind") in ENTITY_KINDS and end is not None
    }
    return ids, generator.permutation(np.array(sorted(ends), dtype=np.int64))[:most]


def last_tokens(spans: list[dict[str, Any]], offsets: list[tuple[int, int]]) -> list[int | None]:
    """Of each span the token that ends its last character; None: no token does."""
    last: dict[int, int] = {}  # character -> last token that covers it
    for index, (start, end) in enumerate(offsets):
        last.update(dict.fromkeys(range(start, end), index))
    return [last.get(span["end"] - 1) for span in spans]
