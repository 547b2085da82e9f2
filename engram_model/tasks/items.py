"""Items: the suites of a world, or a part of them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engram_model import world
from engram_model.errors import UsageError
from engram_model.world.suites import SUITES

LABELS = ("tier", "hops", "asked")
ANSWER_IS_ENTITY = ("entities", "phrases")  # in the others the prompt names who is asked about


@dataclass(frozen=True)
class Item:
    """A closed question.

    Attributes:
        options: the answer among them.
        entity: what the intervals draw whole: items of one person, phrase or document.
        labels: what it counts under, beside its suite: name -> value.
        memory_answer: the option that training says where the prompt says otherwise.
        others: further answers that are scored for the answer's rank alone.
    """

    id: str
    suite: str
    prompt: str
    answer: str
    options: tuple[str, ...]
    entity: str
    labels: dict[str, Any] = field(default_factory=dict)
    memory_answer: str | None = None
    others: tuple[str, ...] = ()


def suite_names(names: Iterable[str]) -> list[str]:
    """Suites of the world; `all` stands for all of them.

    Raises:
        UsageError: a name that is none of them.
    """
    names = list(names)
    for name in names:
        if name != "all" and name not in SUITES:
            raise UsageError(f"no suite {name!r}; there are {', '.join(SUITES)}, and all")
    return list(SUITES) if "all" in names else names


def world_items(
    source: world.World, names: Iterable[str], most: int | None = None, seed: int = 0
) -> list[Item]:
    """The items of suites; of each a sample of `most`, by seed (None: all)."""
    suites = world.suites(source)
    people = {person.surname for person in source.people}
    return [
        _item(record, name, people)
        for name in suite_names(names)
        for record in sample(suites[name], most, seed)
    ]


def sample(items: list, most: int | None, seed: int) -> list:
    """At most so many of the items, in their order."""
    if most is None or most >= len(items):
        return items
    drawn = np.random.default_rng(seed).choice(len(items), most, replace=False)
    return [items[i] for i in np.sort(drawn)]


def _item(record: world.record.Record, suite: str, people: set[str]) -> Item:
    return Item(
        id=record["id"],
        suite=suite,
        prompt=record["prompt"],
        answer=record["answer"],
        options=tuple(record["options"]),
        entity=_entity(record, suite, people),
        labels={name: record[name] for name in LABELS if record[name] is not None},
        memory_answer=record["memory_answer"],
    )


def _entity(record: world.record.Record, suite: str, people: set[str]) -> str:
    """The known person last named in the prompt; else what is asked for, or the item itself."""
    if suite in ANSWER_IS_ENTITY:
        return record["answer"]
    if record["tier"] is None:
        return record["id"]
    named = [word for word in re.findall(r"\w+", record["prompt"]) if word in people]
    return named[-1] if named else record["id"]
