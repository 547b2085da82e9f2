"""From character spans to tokens."""

from collections.abc import Sequence

from .record import Record


def token_labels(spans: Sequence[Record], offsets: Sequence[tuple[int, int]]) -> list[str | None]:
    """The kind of span that each token belongs to (None: to no span).

    spans: those of a record. offsets: (start, end) characters of each token, as a fast tokenizer's
    `return_offsets_mapping` gives them. A token belongs to the span that holds more than half of
    its characters; a token without characters (a special token) belongs to none.
    """
    return [None if i is None else spans[i]["kind"] for i in token_spans(spans, offsets)]


def token_spans(spans: Sequence[Record], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """As `token_labels`, but the place of the span in `spans`."""
    return [_owner(spans, start, end) for start, end in offsets]


def _owner(spans: Sequence[Record], start: int, end: int) -> int | None:
    for i, span in enumerate(spans):
        shared = min(end, span["end"]) - max(start, span["start"])
        if 2 * shared > end - start:
            return i
    return None
