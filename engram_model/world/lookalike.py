"""Family `lookalike`: controls that begin like something known and go on otherwise. Valid only.

A span with the name of the control begins where the n-gram no longer holds; its `entity_id` is who
or what was begun.

name_lookalike     first names and half of the surname of a known person, then another ending
name_other         first names of a known person, then a new surname
name_shuffled      the surname of a known person, then the first names
phrase_broken      a set phrase up to some word of its tail, then another word
"""

from typing import TYPE_CHECKING

from .dice import Dice
from .people import RELATIONS, Person
from .phrase import Phrase, add_opening, in_context
from .reading import fresh_fact
from .record import Draft, Record
from .statements import add_statement
from .tiers import TIERS, repeat_to
from .words import NOUNS, new_word, pseudo_word

if TYPE_CHECKING:
    from .world import World

FACTS = 3
VALID_PER_TIER = 20


def units(world: "World", split: str) -> list[tuple[str, Person | Phrase]]:
    """Train: none. Valid: each control on people, or phrases, of all tiers alike."""
    if split == "train":
        return []
    known: list[Person | Phrase] = [*world.people, *world.phrases]
    return [
        (control, one)
        for control in (*NAMES, "phrase_broken")
        for tier in TIERS
        for one in repeat_to(
            [k for k in known if k.tier == tier and isinstance(k, Person) == (control in NAMES)],
            VALID_PER_TIER,
        )
    ]


def write(world: "World", unit: tuple[str, Person | Phrase], dice: Dice, name: str) -> Draft:
    """A short biography under a wrong name, or three sentences with a broken phrase."""
    control, known = unit
    if isinstance(known, Phrase):
        phrase = known
        return in_context(dice, lambda draft: _add_broken(draft, dice, phrase))
    return _biography(world, control, known, dice, name)


def _biography(world: "World", control: str, person: Person, dice: Dice, name: str) -> Draft:
    """Three new facts under the name that `control` makes of that of `person`."""
    draft, taken = Draft(), set(world.pools.taken)
    start, gap, rest = NAMES[control](dice, person, taken)
    new = {"text": start + gap + rest, "kind": "name", "entity_id": f"{name}:0"}
    first: Record | None = None
    for relation in dice.sample(RELATIONS, FACTS):
        draft.add(" " if first else "")
        place = len(draft.spans)
        subject = {**new, "mechanism": "copy" if first else "none", "source": first}
        add_statement(draft, dice, relation, subject, fresh_fact(dice, relation, new, taken), None)
        if first is None:
            first = dict(draft.spans[place])
            _mark_control(draft, draft.spans[place], control, person, len(start), len(rest))
    return draft


def _mark_control(
    draft: Draft, span: Record, control: str, person: Person, left: int, right: int
) -> None:
    """Cut a name where it stops to be that of `person`."""
    span.update(kind="name_start", entity_id=person.id, tier=person.tier)
    draft.split(span, left, right, kind=control)
    if control == "name_lookalike":  # until then the surname goes on as it should
        span.update(mechanism="ngram", needs_memory=True)


def _add_broken(draft: Draft, dice: Dice, phrase: Phrase) -> None:
    words = phrase.tail.split()
    kept = dice.below(len(words))
    add_opening(draft, phrase)
    if kept:
        text = " ".join(words[:kept])
        draft.mark(text, "phrase_tail", "ngram", entity_id=phrase.id, tier=phrase.tier)
        draft.add(" ")
    other = dice.pick([noun for noun in NOUNS if noun != words[kept]])
    draft.mark(other, "phrase_broken", "none", entity_id=phrase.id, tier=phrase.tier)


def _lookalike(dice: Dice, person: Person, taken: set[str]) -> tuple[str, str, str]:
    half = 1 + len(person.surname) // 2
    start, next_letter = person.surname[:half], person.surname[half]
    rest = ""
    while not rest or rest[0] == next_letter or start + rest in taken:
        rest = pseudo_word(dice, 1)
    return f"{person.first_names} {start}", "", rest


def _other(dice: Dice, person: Person, taken: set[str]) -> tuple[str, str, str]:
    return person.first_names, " ", new_word(dice, 2, taken)


def _shuffled(dice: Dice, person: Person, taken: set[str]) -> tuple[str, str, str]:
    return person.surname, " ", person.first_names


# control -> how a name begins, what stands between, and how it goes on
NAMES = {"name_lookalike": _lookalike, "name_other": _other, "name_shuffled": _shuffled}
