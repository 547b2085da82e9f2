"""Texts in, tokens as people read them out."""

import hashlib
from collections.abc import Iterable, Iterator, Sized
from functools import cache
from typing import Any

import numpy as np

from engram_model.errors import CorpusError, UsageError


class Documents:
    """The documents of a str, a list of str, or a Dataset with a column `text`; empty ones skipped.

    Attributes:
        single: whether one text was given by itself.
        total: number of documents, or None where that is known only at the end.
        read: number of documents handed out so far.
    """

    def __init__(self, texts: Any, limit: int | None = None) -> None:
        self.single = isinstance(texts, str)
        self.read = 0
        self._texts = [texts] if self.single else texts
        self._limit = limit
        self._digest = hashlib.sha256()
        if self.single and not texts.strip():
            raise UsageError("the text is empty; give at least a word")
        if not isinstance(self._texts, Iterable) or isinstance(texts, dict):
            raise UsageError(
                f"texts is a {type(texts).__name__}; give a str, a list of str, or a Dataset with "
                "a column 'text'"
            )
        self.total = len(self._texts) if isinstance(self._texts, Sized) else None
        if self.total is not None and limit is not None:
            self.total = min(self.total, limit)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for record in self._texts:
            if self._limit is not None and self.read >= self._limit:
                return
            document = {"text": record} if isinstance(record, str) else record
            text = document.get("text") if isinstance(document, dict) else None
            if not isinstance(text, str):
                raise CorpusError(
                    f"document {self.read} has no text: give strings, or records with a column "
                    "'text'"
                )
            if not text.strip():
                continue
            self.read += 1
            self._digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
            yield document

    def description(self) -> dict[str, Any]:
        """What was read so far, for provenance."""
        return {
            "kind": "text" if self.single else "texts",
            "documents": self.read,
            "sha256": self._digest.hexdigest(),
        }


def describe_texts(texts: list[str]) -> dict[str, Any]:
    """Description of a text that was read by itself, or of several."""
    documents = Documents(texts[0] if len(texts) == 1 else texts)
    for _ in documents:
        pass
    return documents.description()


def encode(tokenizer, text: str) -> list[int]:
    """Ids of `<bos>` + text; without `<bos>` for a tokenizer that has none."""
    return with_bos(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])


def with_bos(tokenizer, ids: list[int]) -> list[int]:
    return ids if tokenizer.bos_token_id is None else [tokenizer.bos_token_id, *ids]


def token_texts(tokenizer, ids: Iterable[int]) -> tuple[str, ...]:
    """Each token as shown: spaces in front `·`, line ends `↵`, bytes that are no text `<0x..>`."""
    pieces = tokenizer.convert_ids_to_tokens([int(i) for i in ids])
    special = set(tokenizer.all_special_tokens)
    return tuple(
        "?" if piece is None else piece if piece in special else _shown(tokenizer, piece)
        for piece in pieces
    )


def nested_texts(tokenizer, ids: np.ndarray) -> tuple:
    """Ids of any shape -> their texts, tuples in tuples; each id is read once."""
    unique, place = np.unique(ids, return_inverse=True)
    texts = np.array(token_texts(tokenizer, unique), dtype=object)

    def tuples(part: Any) -> Any:
        return tuple(map(tuples, part)) if isinstance(part, list) else part

    return tuples(texts[place.reshape(ids.shape)].tolist())


def _shown(tokenizer, piece: str) -> str:
    alphabet = _byte_of()
    if all(character in alphabet for character in piece):
        raw = bytes(alphabet[character] for character in piece)
        text = raw.decode("utf-8", errors="surrogateescape")
    else:  # not a byte-level vocabulary
        text = tokenizer.convert_tokens_to_string([piece])
    text = "".join(_visible(character) for character in text)
    words = text.lstrip(" ")
    return "·" * (len(text) - len(words)) + words


def _visible(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no whole character
        return f"<0x{code - 0xDC00:02X}>"
    if character in "\n\t":
        return {"\n": "↵", "\t": "⇥"}[character]
    return f"<0x{code:02X}>" if code < 0x20 or code == 0x7F else character


@cache
def _byte_of() -> dict[str, int]:
    """Character that stands for a byte in a byte-level vocabulary -> the byte.

    Printable characters of Latin-1 stand for themselves; the others, in order, are shifted to 256
    and up.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(256 + i): byte for i, byte in enumerate(others)}
    return {**{chr(byte): byte for byte in printable}, **shifted}
