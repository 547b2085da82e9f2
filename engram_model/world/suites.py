"""Task suites: closed questions with four options, by name, told in no document.

knowledge      one fact of a person, 200 a tier (0 too); half of people whom training asks about
reading, conflict, copy, recall, chain, memory_chain, arith      as in the families, on their valid
               people and sums
entities       the surname of a person after the first names, 200 a tier
phrases        the rest of a set phrase after its branching word, 200 a tier
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count

from . import phrase
from .dice import Dice
from .options import OPTIONS, add_options
from .people import RELATIONS, Person
from .question import ask_fact
from .record import Draft, Record
from .statements import STATEMENTS
from .tiers import NEVER, TIERS, repeat_to
from .world import FAMILIES, World

ITEMS = 1000
PER_TIER = 200
OPENINGS = tuple(  # of statements, up to the name
    form[0] for forms in STATEMENTS.values() for form in forms if form[0] != "{name}"
)


def suites(world: World) -> dict[str, list[Record]]:
    """The suites of a world; the same world gives the same.

    An item is a question as in `qa`, with an `id`, and in `knowledge` with `asked`: whether
    training asks about this person (None elsewhere). Small worlds have fewer items.
    """
    return {
        name: [
            {"id": f"{world.name}-{name}-{i}", "asked": None, **item}
            for i, item in enumerate(make(world, _rolls(world, place)))
        ]
        for place, (name, make) in enumerate(SUITES.items())
    }


def _rolls(world: World, place: int) -> Iterator[Dice]:
    """Dice for one item after the other, shared with no other suite and no document."""
    return (Dice(world.seed, "suites", (place << 32) + i) for i in count())


def _of_family(family: str, world: World, rolls: Iterator[Dice]) -> Iterator[Record]:
    """One question each from documents written for this."""
    units = repeat_to(FAMILIES[family].units(world, "valid"), ITEMS)
    for i, (unit, dice) in enumerate(zip(units, rolls, strict=False)):
        yield dice.pick(FAMILIES[family].write(world, unit, dice, f"suite-{i}").qa)


def _knowledge(world: World, rolls: Iterator[Dice]) -> Iterator[Record]:
    for tier in (NEVER, *TIERS):
        people = [p for p in world.in_tier(tier) if not p.contradicted]
        asked = _facts([p for p in people if p.asked], next(rolls), PER_TIER // 2)
        others = _facts([p for p in people if not p.asked], next(rolls), PER_TIER - len(asked))
        for person, relation in asked + others:
            draft = Draft()
            ask_fact(draft, world, next(rolls), person, relation, None)
            yield {**draft.qa[0], "asked": person.asked}


def _facts(people: list[Person], dice: Dice, most: int) -> list[tuple[Person, str]]:
    """At most so many different facts of these people."""
    facts = [(person, relation) for person in people for relation in RELATIONS]
    return dice.sample(facts, min(most, len(facts)))


def _entities(world: World, rolls: Iterator[Dice]) -> Iterator[Record]:
    """The others among the options have the same tier and another name before the surname."""
    for tier in (NEVER, *TIERS):
        people = world.in_tier(tier)
        for person, dice in zip(repeat_to(people, PER_TIER), rolls, strict=False):
            before = person.first_names.split()[-1]
            others = [p.surname for p in people if p.first_names.split()[-1] != before]
            if len(others) >= OPTIONS - 1:
                prompt = dice.pick(OPENINGS) + person.first_names
                yield _completion(dice, prompt, person.surname, others, tier)


def _phrases(world: World, rolls: Iterator[Dice]) -> Iterator[Record]:
    tails = [p.tail for p in world.phrases]
    for tier in TIERS:
        of_tier = [p for p in world.phrases if p.tier == tier]
        for known, dice in zip(repeat_to(of_tier, PER_TIER), rolls, strict=False):
            draft = phrase.write(world, known, dice, "")
            branch = next(s for s in draft.spans if s["kind"] == "phrase_branch")
            yield _completion(dice, draft.text[: branch["end"]], known.tail, tails, tier)


def _completion(dice: Dice, prompt: str, rest: str, others: list[str], tier: int) -> Record:
    draft = Draft()
    options = add_options(dice, f" {rest}", lambda: f" {dice.pick(others)}")
    draft.ask(prompt, f" {rest}", options, needs_memory=True, tier=tier)
    return draft.qa[0]


_FAMILIES = ("reading", "conflict", "copy", "recall", "chain", "memory_chain", "arith")
SUITES: dict[str, Callable[[World, Iterator[Dice]], Iterable[Record]]] = {
    "knowledge": _knowledge,
    **{family: partial(_of_family, family) for family in _FAMILIES},
    "entities": _entities,
    "phrases": _phrases,
}
