"""Family `filler`: sentences of a small probabilistic grammar, in which nothing can be known."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .dice import Dice
from .record import Draft
from .tiers import fresh_units
from .words import ADJECTIVES, NOUNS, VERBS, WORKERS

if TYPE_CHECKING:
    from .world import World

SENTENCES = 3
GRAMMAR = {  # the ways to write a part of a sentence, all as likely; the first ends the recursion
    "sentence": ("subject predicate", "subject predicate place", "place subject predicate"),
    "subject": ("det worker", "det adjective worker", "det worker who predicate"),
    "object": ("det noun", "det adjective noun", "det noun of object", "det noun place"),
    "predicate": ("verb object", "verb object and verb object"),
    "place": ("prep object",),
}
WORDS = {
    "det": ("the", "every", "some", "each", "no"),
    "prep": ("near", "above", "inside", "around", "beside"),  # none that a set phrase begins with
    "worker": WORKERS,
    "noun": NOUNS,
    "adjective": ADJECTIVES,
    "verb": VERBS,
}
DEPTH = 4  # from here on, the first way

units = fresh_units


def write(world: "World", unit: str, dice: Dice, name: str) -> Draft:
    """Three sentences; the kind of a span is its part of speech."""
    draft = Draft()
    for _ in range(SENTENCES):
        for place, (kind, word) in enumerate(_expand(dice, "sentence", depth=0)):
            draft.add(" " if draft.length else "")
            draft.mark(word if place else word.capitalize(), kind, "none")
        draft.add(".")
    return draft


def _expand(dice: Dice, part: str, depth: int) -> Iterator[tuple[str, str]]:
    """The words of a part of a sentence, each with its part of speech."""
    if part in GRAMMAR:
        form = dice.pick(GRAMMAR[part]) if depth < DEPTH else GRAMMAR[part][0]
        for symbol in form.split():
            yield from _expand(dice, symbol, depth + 1)
    elif part in WORDS:
        yield part, dice.pick(WORDS[part])
    else:
        yield "function", part
