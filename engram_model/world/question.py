"""Family `question`: closed questions about one person, with nothing to read the answer from."""

from typing import TYPE_CHECKING

from .bio import bios, name_span, value_span
from .dice import Dice
from .people import RELATIONS, Person
from .record import Draft, Record
from .statements import add_question
from .tiers import NEVER, TIERS, repeat_to

if TYPE_CHECKING:
    from .world import World

VALID_PER_TIER = 200
OPTIONS = 4


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
    """All six facts of `person`, each as a question and its answer."""
    draft = Draft()
    first: Record | None = None
    for relation in dice.sample(RELATIONS, len(RELATIONS)):
        if first:
            draft.add("\n\n")
        before = len(draft.spans)
        prompt, answer = add_question(
            draft, dice, relation, name_span(person, first), value_span(person, relation)
        )
        first = first or draft.spans[before]
        options = _options(world, dice, relation, answer)
        draft.ask(prompt, answer, options, needs_memory=True, tier=person.tier)
    return draft


def _options(world: "World", dice: Dice, relation: str, answer: str) -> list[str]:
    """The answer among other values of the same relation, in random order."""
    options = [answer]
    while len(options) < OPTIONS:
        other = " " + world.pools.draw(dice, relation)
        if other not in options:
            options.append(other)
    return dice.sample(options, OPTIONS)
