"""Family `conflict`: reading against memory.

A passage states of a known person what training does not, and a question asks what the passage
says. In training some people are contradicted; in valid it happens to the others.
"""

from typing import TYPE_CHECKING

from .bio import name_span, value_span
from .dice import Dice
from .options import add_values
from .people import RELATIONS, Person
from .reading import add_passage, fresh_fact, fresh_name
from .record import Draft, Record
from .statements import PASSAGE_QUESTIONS, add_question
from .tiers import TIERS, repeat_to

if TYPE_CHECKING:
    from .world import World

FACTS = 2
TRAIN_SHARE = 4  # one passage to so many documents that tell the truth
VALID_PER_TIER = 75
TIERS_KNOWN = TIERS[1:]  # told often enough for a memory to be in the way


def units(world: "World", split: str) -> list[Person]:
    """Train: the contradicted, in proportion to their tiers. Valid: the others, all tiers alike."""
    if split == "train":
        return [p for p in world.people if p.contradicted for _ in range(p.tier // TRAIN_SHARE)]
    return [
        person
        for tier in TIERS_KNOWN
        for person in repeat_to(
            [p for p in world.in_tier(tier) if not p.contradicted], VALID_PER_TIER
        )
    ]


def write(world: "World", person: Person, dice: Dice, name: str) -> Draft:
    """Two other facts of `person` and two of somebody new, then one question on each relation."""
    draft = Draft()
    relations = dice.sample(RELATIONS, FACTS)
    taken = set(world.pools.taken)
    names = [name_span(person, None), fresh_name(world, dice, f"{name}:0", taken)]
    theirs = [_other_fact(world, dice, relation, person, name) for relation in relations]
    strangers = [fresh_fact(dice, relation, names[1], taken) for relation in relations]
    draft.add("Passage: ")
    add_passage(draft, dice, relations, names, [theirs, strangers])
    passage = draft.text
    for relation, value, stranger in zip(relations, theirs, strangers, strict=True):
        draft.add("\n\n")
        prompt, answer = add_question(draft, dice, PASSAGE_QUESTIONS[relation], names[0], value)
        memory = " " + person.facts[relation]
        options = add_values(world, dice, relation, answer, memory, " " + stranger["text"])
        draft.ask(
            f"{passage}\n\n{prompt}",
            answer,
            options,
            needs_memory=False,
            tier=person.tier,
            memory_answer=memory,
        )
    return draft


def _other_fact(world: "World", dice: Dice, relation: str, person: Person, name: str) -> Record:
    """How a value is marked that is told of `person` nowhere else."""
    text = person.facts[relation]
    while text in person.facts.values():
        text = world.pools.draw(dice, relation)
    return {
        **value_span(person, relation),
        "text": text,
        "fact_id": f"{name}:{relation}",
        "mechanism": "none",
        "needs_memory": False,
    }
