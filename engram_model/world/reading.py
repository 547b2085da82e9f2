"""Family `reading`: a passage about new people, then questions that the passage answers.

It needs no memory: surnames and values are made for this one document. They are worded as in `bio`
and `question`, so that the families differ in where the answer comes from and in little else.
"""

from typing import TYPE_CHECKING

from .dice import Dice
from .people import RELATIONS, fresh_value
from .record import Draft, Record
from .statements import QUESTIONS, add_question, add_statement
from .words import new_word

if TYPE_CHECKING:
    from .world import World

PEOPLE = 4
FACTS = 2
TRAIN_PER_PERSON = 4
VALID = 1000


def units(world: "World", split: str) -> list[None]:
    """Nothing is told twice, so a unit is no more than a place in the plan."""
    return [None] * (VALID if split == "valid" else TRAIN_PER_PERSON * world.size)


def write(world: "World", unit: None, dice: Dice, name: str) -> Draft:
    """Four new people with two facts each, then one question on each relation."""
    draft = Draft()
    relations = dice.sample(RELATIONS, FACTS)
    taken = set(world.pools.taken)
    names = [fresh_name(world, dice, f"{name}:{i}", taken) for i in range(PEOPLE)]
    values = [[fresh_fact(dice, r, who, taken) for r in relations] for who in names]
    add_passage(draft, dice, relations, names, values)
    passage = draft.text
    for column, relation in enumerate(relations):
        draft.add("\n\n")
        number = dice.below(PEOPLE)
        prompt, answer = add_question(
            draft, dice, QUESTIONS[relation], names[number], values[number][column]
        )
        options = dice.sample([" " + row[column]["text"] for row in values], PEOPLE)
        draft.ask(f"{passage}\n\n{prompt}", answer, options, needs_memory=False)
    return draft


def add_passage(
    draft: Draft, dice: Dice, relations: list[str], names: list[Record], values: list[list[Record]]
) -> None:
    """State values[i][j] of names[i] for relations[j], in any order.

    What has been written becomes the source of its later copies.
    """
    cells = [(i, j) for i in range(len(names)) for j in range(len(relations))]
    for place, (i, j) in enumerate(dice.sample(cells, len(cells))):
        draft.add(" " if place else "")
        before = len(draft.spans)
        value = add_statement(draft, dice, relations[j], names[i], values[i][j], None)
        _copy_from(names[i], draft.spans[before])
        _copy_from(values[i][j], value)


def _copy_from(span: Record, source: Record) -> None:
    if not span.get("source"):
        span.update(mechanism="copy", source=source)


def fresh_name(world: "World", dice: Dice, entity_id: str, taken: set[str]) -> Record:
    """How the name of a new person is marked."""
    text = f"{dice.pick(world.pools.first_names)} {new_word(dice, 2, taken)}"
    return {"text": text, "kind": "name", "mechanism": "none", "entity_id": entity_id}


def fresh_fact(dice: Dice, relation: str, who: Record, taken: set[str]) -> Record:
    """How a new value is marked, when it is told of `who`."""
    return {
        "text": fresh_value(dice, relation, taken),
        "kind": relation,
        "mechanism": "none",
        "entity_id": who["entity_id"],
        "fact_id": f"{who['entity_id']}:{relation}",
    }
