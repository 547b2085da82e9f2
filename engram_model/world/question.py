"""Family `question`: closed questions about one person, with nothing to read the answer from."""

from typing import TYPE_CHECKING

from .bio import bios, name_span, value_span
from .dice import Dice
from .options import add_values
from .people import RELATIONS, Person
from .record import Draft, Record
from .statements import QUESTIONS, add_question
from .tiers import NEVER, TIERS, repeat_to

if TYPE_CHECKING:
    from .world import World

VALID_PER_TIER = 200


def units(world: "World", split: str) -> list[Person]:
    """Train: the asked people. Valid: people never asked in training, those never told of too."""
    if split == "valid":
        return [
            person
            for tier in (NEVER, *TIERS)
            for person in repeat_to([p for p in world.in_tier(tier) if not p.asked], VALID_PER_TIER)
        ]
    return [p for p in world.people if p.asked for _ in range(p.tier - bios(p))]


def write(world: "World", person: Person, dice: Dice, name: str) -> Draft:
    """Six facts of `person`, each as a question and its answer."""
    draft = Draft()
    first: Record | None = None
    for relation in dice.sample(RELATIONS, len(RELATIONS)):
        draft.add("\n\n" if first else "")
        subject = ask_fact(draft, world, dice, person, relation, first)
        first = first or subject
    return draft


def ask_fact(
    draft: Draft, world: "World", dice: Dice, person: Person, relation: str, first: Record | None
) -> Record:
    """One question and its answer; returns the span of the name. first: where that stood before."""
    place = len(draft.spans)
    prompt, answer = add_question(
        draft, dice, QUESTIONS[relation], name_span(person, first), value_span(person, relation)
    )
    options = add_values(world, dice, relation, answer)
    draft.ask(prompt, answer, options, needs_memory=True, tier=person.tier)
    return draft.spans[place]
