"""Which tokens of a document are looked at."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engram_model.errors import CorpusError, UsageError
from engram_probes.text import encode, with_bos

ENTITY_KINDS = ("name", "entity", None)  # of spans; None: a corpus that knows entities only
TRAITS = ("kind", "mechanism")  # of spans, by which they can be chosen


@dataclass(frozen=True, eq=False)
class Choice:
    """Positions that are looked at, as asked for.

    Attributes:
        asked: "sampled", "entity", or "kind:NAME" or "mechanism:NAME" of spans.
        met: how many spans of each name were read, so that an error can list them.
    """

    asked: str
    met: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        trait, colon, name = self.asked.partition(":")
        if self.asked not in ("sampled", "entity") and not (trait in TRAITS and colon and name):
            raise UsageError(
                f"positions {self.asked!r}: use 'sampled' or 'entity', or spans of one kind or "
                "mechanism such as 'kind:name' or 'mechanism:fact'"
            )

    def of(self, document: dict[str, Any], tokenizer) -> tuple[list[int], np.ndarray]:
        """Ids of `<bos>` + text, and all positions that may be looked at."""
        if self.asked != "sampled":
            return span_ends(document, tokenizer, self._wanted)
        ids = encode(tokenizer, document["text"])
        usual = ~np.isin(ids, tokenizer.all_special_ids)
        return ids, np.flatnonzero(usual)

    def _wanted(self, span: dict[str, Any]) -> bool:
        trait, _, name = self.asked.partition(":")
        self.met[span.get(trait)] += 1
        return is_entity(span) if self.asked == "entity" else span.get(trait) == name

    def missing(self) -> str:
        """Why nothing was found, "" where that is not a matter of spans."""
        trait = self.asked.partition(":")[0]
        if trait not in TRAITS or self.met[self.asked.partition(":")[2]]:
            return ""
        names = ", ".join(sorted(str(name) for name in self.met if name is not None)) or "none"
        return f"no span of the corpus has the {self.asked.replace(':', ' ')}; it has: {names}"


def is_entity(span: dict[str, Any]) -> bool:
    """A span of the kind `name` or `entity`, or any span where spans have no kind."""
    return span.get("kind") in ENTITY_KINDS


def entity_final(
    document: dict[str, Any], tokenizer, most: int, generator: np.random.Generator
) -> tuple[list[int], np.ndarray]:
    """Ids of `<bos>` + text, and the last token of at most `most` of its entities.

    Raises:
        CorpusError: the document has no `spans`.
    """
    ids, ends = span_ends(document, tokenizer, is_entity)
    return ids, generator.permutation(ends)[:most]


def span_ends(
    document: dict[str, Any], tokenizer, wanted: Callable[[dict[str, Any]], bool]
) -> tuple[list[int], np.ndarray]:
    """Ids of `<bos>` + text, and the tokens that end the last character of the spans wanted.

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
        if wanted(span) and end is not None
    }
    return ids, np.array(sorted(ends), dtype=np.int64)


def last_tokens(spans: list[dict[str, Any]], offsets: list[tuple[int, int]]) -> list[int | None]:
    """Of each span the token that ends its last character; None: no token does."""
    last: dict[int, int] = {}  # character -> last token that covers it
    for index, (start, end) in enumerate(offsets):
        last.update(dict.fromkeys(range(start, end), index))
    return [last.get(span["end"] - 1) for span in spans]


def same_ends(text: str, tokenizer, other) -> tuple[list[int], np.ndarray]:
    """How two tokenizers' positions correspond: where tokens of both end at the same character.

    Returns:
        Ids of `<bos>` + text by `other`; and of each position of `tokenizer` the position of
        `other`, -1 for none. Position 0 is that of position 0. Where several tokens end at one
        character (parts of it in bytes), the last of each counts.
    """
    first, second = (
        one(text, add_special_tokens=False, return_offsets_mapping=True)
        for one in (tokenizer, other)
    )
    sizes = [len(with_bos(one, [])) for one in (tokenizer, other)]
    ends = [
        {
            end: index + size
            for index, (start, end) in enumerate(one["offset_mapping"])
            if end > start
        }
        for one, size in zip((first, second), sizes, strict=True)
    ]
    place = np.full(len(first["input_ids"]) + sizes[0], -1)
    for end, position in ends[0].items():
        place[position] = ends[1].get(end, -1)
    place[0] = 0
    return with_bos(other, second["input_ids"]), place
