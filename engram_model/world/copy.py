"""Family `copy`: a string of chance words, repeated after a gap.

No word comes twice in what is repeated, so that from the first repeated word on, the one before
says which comes next.
"""

import string
from typing import TYPE_CHECKING

from .dice import Dice
from .options import add_options
from .record import Draft, Record
from .tiers import fresh_units
from .words import new_words

if TYPE_CHECKING:
    from .world import World

CUE = 2  # repeated words that are not marked: until then nothing says that this is a copy

units = fresh_units


def write(world: "World", unit: str, dice: Dice, name: str) -> Draft:
    """8 to 15 words or letters, up to 10 others, then the first ones again."""
    draft = Draft()
    length, gap = 8 + dice.below(8), dice.below(11)
    words = _words(dice, length + gap)
    sources = [_add_word(draft, word) for word in words]
    for word in words[:CUE]:
        _add_word(draft, word)
    for word, source in zip(words[CUE:length], sources[CUE:], strict=False):
        draft.add(" ")
        draft.mark(word, "copy", "copy", source=source)
    span = dice.pick(draft.spans)
    text, answer = draft.text, " " + draft.text[span["start"] : span["end"]]
    options = add_options(dice, answer, lambda: " " + dice.pick(words[:length]))
    draft.ask(text[: span["start"] - 1], answer, options, needs_memory=False)
    return draft


def _words(dice: Dice, count: int) -> list[str]:
    if dice.below(3) == 0:
        return dice.sample(string.ascii_lowercase, count)
    return new_words(dice, count)


def _add_word(draft: Draft, word: str) -> Record:
    """Add a word, not as a span; returns where it stands."""
    draft.add(" " if draft.length else "")
    start = draft.length
    draft.add(word)
    return {"start": start, "end": draft.length}
