"""Family `memory_chain`: questions about the mentor of a known person, who is not named.

The answer takes two facts that biographies state: who the mentor is, and the mentor's own. The last
question of a document asks for the step between.
"""

from typing import TYPE_CHECKING

from . import question
from .bio import name_span, value_span
from .dice import Dice
from .options import add_options, add_values
from .people import MENTOR, RELATIONS, Person
from .record import Draft, Record
from .statements import MENTOR_QUESTIONS, QUESTIONS, add_question
from .tiers import TIERS, repeat_to

if TYPE_CHECKING:
    from .world import World

QUESTIONS_OF_TWO_HOPS = 3
VALID_PER_TIER = 60


def units(world: "World", split: str) -> list[tuple[Person, Person]]:
    """People with their mentors. Train: the asked, as often as in `question`. Valid: others."""
    if split == "train":
        return _with_mentors(world, question.units(world, split))
    return [
        pair
        for tier in TIERS
        for pair in repeat_to(
            _with_mentors(world, [p for p in world.in_tier(tier) if not p.asked]), VALID_PER_TIER
        )
    ]


def _with_mentors(world: "World", people: list[Person]) -> list[tuple[Person, Person]]:
    return [(p, world.people[p.mentor]) for p in people if p.mentor is not None]


def write(world: "World", pair: tuple[Person, Person], dice: Dice, name: str) -> Draft:
    """Three facts of somebody's mentor, then who that is."""
    draft = Draft()
    person, mentor = pair
    first: Record | None = None
    for relation in dice.sample(RELATIONS, QUESTIONS_OF_TWO_HOPS):
        subject, value = name_span(person, first), value_span(mentor, relation)
        prompt, answer = add_question(draft, dice, MENTOR_QUESTIONS[relation], subject, value)
        options = add_values(world, dice, relation, answer)
        draft.ask(prompt, answer, options, needs_memory=True, tier=person.tier, hops=2)
        first = first or draft.spans[0]
        draft.add("\n\n")
    _ask_mentor(draft, world, dice, person, first)
    return draft


def _ask_mentor(
    draft: Draft, world: "World", dice: Dice, person: Person, first: Record | None
) -> None:
    prompt, answer = add_question(
        draft, dice, QUESTIONS[MENTOR], name_span(person, first), value_span(person, MENTOR)
    )
    others = world.in_tier(person.tier)
    options = add_options(dice, answer, lambda: " " + dice.pick(others).name)
    draft.ask(prompt, answer, options, needs_memory=True, tier=person.tier)
