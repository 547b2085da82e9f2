"""Family `bio`: all facts about a known person, in any order and wording.

The first full name is an n-gram to complete; later ones are copies of it; each value is a fact.
"""

from typing import TYPE_CHECKING

from .dice import Dice
from .people import Person
from .record import Draft, Record
from .statements import add_statement
from .tiers import NEVER, TIERS, repeat_to

if TYPE_CHECKING:
    from .world import World

VALID_PER_TIER = 200


def units(world: "World", split: str) -> list[Person]:
    """Train: each person as often as the tier says, less what questions state. Valid: all alike."""
    if split == "valid":
        return [p for tier in TIERS for p in repeat_to(world.in_tier(tier), VALID_PER_TIER)]
    return [p for p in world.people if p.tier != NEVER for _ in range(bios(p))]


def bios(person: Person) -> int:
    """How many biographies of this person an epoch has."""
    return person.tier - person.tier // 2 if person.asked else person.tier


def write(world: "World", person: Person, dice: Dice, name: str) -> Draft:
    """One biography of `person`."""
    draft = Draft()
    first: Record | None = None
    for relation in dice.sample(list(person.facts), len(person.facts)):
        if first:
            draft.add(" ")
        pronoun = person.pronoun if first and dice.below(3) == 0 else None
        subject = name_span(person, first)
        if first and dice.below(2) == 0:
            subject = surname_span(person, first)
        before = len(draft.spans)
        add_statement(draft, dice, relation, subject, value_span(person, relation), pronoun)
        first = first or draft.spans[before]
    return draft


def name_span(person: Person, first: Record | None) -> Record:
    """How a name is marked: an n-gram when new to the document, then a copy of `first`."""
    return {
        "text": person.name,
        "kind": "name",
        "mechanism": "copy" if first else "ngram" if person.tier else "none",
        "entity_id": person.id,
        "tier": person.tier,
        "source": first,
    }


def surname_span(person: Person, first: Record) -> Record:
    """How a surname alone is marked: a copy of the end of the full name `first`."""
    source = {"start": first["end"] - len(person.surname), "end": first["end"]}
    return {**name_span(person, first), "text": person.surname, "source": source}


def value_span(person: Person, relation: str) -> Record:
    """How the value of a known fact is marked; nothing foretells that of a person never told of."""
    return {
        "text": person.facts[relation],
        "kind": relation,
        "mechanism": "fact" if person.tier else "none",
        "entity_id": person.id,
        "fact_id": f"{person.id}:{relation}",
        "tier": person.tier,
        "needs_memory": True,
    }
