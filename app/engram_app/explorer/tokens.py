"""The tokens of a text, coloured by what the memory adds, and what may follow each."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from engram_app.colours import Scale
from engram_app.explorer import cached
from engram_app.explorer.ngrams import ending_at
from engram_app.measures import memory_values
from engram_probes.gates import GateMap


@dataclass(frozen=True, eq=False)
class Line:
    """tokens as shown; values and scale of their colours. gates: None for a model without a
    memory."""

    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    special: np.ndarray
    values: np.ndarray
    scale: Scale
    quantity: str
    tokenizer: Any
    gates: GateMap | None

    def next_tokens(self, position: int) -> dict[str, int]:
        """Text -> id of the likeliest next tokens and of the one that follows, where known."""
        found = {}
        if self.gates is not None:
            texts, ids = self.gates.next_texts[position], self.gates.next_ids[position]
            found = {text: int(token) for text, token in zip(texts, ids, strict=True)}
        if position + 1 < len(self.tokens):
            found[self.tokens[position + 1]] = self.token_ids[position + 1]
        return found

    def ngram(self, position: int) -> tuple[int, ...]:
        """Ids of the longest n-gram that a memory looks up at a position."""
        size = 1 if self.gates is None else self.gates.max_ngram_size
        return ending_at(self.token_ids, position, size)

    def as_typed(self, token: int) -> str:
        """A token as the command line takes it."""
        return self.tokenizer.decode([token])


def read_line(path: str, text: str) -> Line:
    """The tokens of a text.

    Raises:
        UsageError: an empty or too long text.
    """
    tokenizer = cached.held(path).tokenizer
    if not cached.has_memory(path):
        return _plain(path, text)
    gates = cached.probe("gate_map", path, text)
    values, scale = memory_values(gates, "added")
    ids = tuple(gates.token_ids.tolist())
    return Line(gates.tokens, ids, gates.special, values, scale, "added", tokenizer, gates)


def _plain(path: str, text: str) -> Line:
    from engram_probes.capture import Subject
    from engram_probes.text import token_texts

    one = cached.held(path)
    subject = Subject.of(one.model)
    ids = subject.encode(one.tokenizer, text)
    special, values = subject.special(one.tokenizer, ids), np.zeros(len(ids))
    tokens = token_texts(one.tokenizer, ids)
    scale = Scale("tokens; the model has no memory", 0.0, 1.0, 0.0)
    return Line(tokens, tuple(ids), special, values, scale, "nothing", one.tokenizer, None)
