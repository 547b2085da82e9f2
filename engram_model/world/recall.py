"""Family `recall`: a list of keys and their values, some of which are then looked up."""

from typing import TYPE_CHECKING

from .dice import Dice
from .options import add_options
from .record import Draft, Record
from .tiers import fresh_units
from .words import new_words

if TYPE_CHECKING:
    from .world import World

QUERIES = 3

units = fresh_units


def write(world: "World", unit: str, dice: Dice, name: str) -> Draft:
    """6 to 12 lines `key: value`; after an empty line, three of them again."""
    draft = Draft()
    count = 6 + dice.below(7)
    words = new_words(dice, 2 * count)
    pairs = list(zip(words[:count], words[count:], strict=True))
    spans = [_add_pair(draft, pair) for pair in pairs]
    draft.add("\n")
    listing = draft.text
    for number in dice.sample(range(count), QUERIES):
        key, value = pairs[number]
        _add_pair(draft, pairs[number], spans[number])
        options = add_options(dice, f" {value}", lambda: f" {dice.pick(pairs)[1]}")
        draft.ask(f"{listing}\n{key}:", f" {value}", options, needs_memory=False)
    return draft


def _add_pair(
    draft: Draft, pair: tuple[str, str], sources: tuple[Record | None, Record | None] = (None, None)
) -> tuple[Record, Record]:
    """Write a line; sources: the spans of key and value that it repeats."""
    draft.add("\n" if draft.length else "")
    mechanism = "copy" if sources[0] else "none"
    key = draft.mark(pair[0], "key", mechanism, source=sources[0])
    draft.add(": ")
    value = draft.mark(pair[1], "value", mechanism, source=sources[1])
    return key, value
