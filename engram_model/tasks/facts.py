"""Items from a file of facts: JSON lines with prompt, answer, subject, relation and split."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from engram_model.errors import CorpusError
from engram_model.textfiles import read_lines

from .items import Item, sample

NEEDED = ("prompt", "answer", "relation")
OTHERS = 3


def fact_items(path: str | Path, most: int | None = None, seed: int = 0) -> list[Item]:
    """Each fact with three other answers of its relation; all others are there for the rank.

    Args:
        most: facts, by seed (None: all).

    Raises:
        CorpusError: the file cannot be read, is empty, or a line is no fact.
    """
    facts = _read(str(path))
    answers: dict[str, set[str]] = defaultdict(set)
    for fact in facts:
        answers[fact["relation"]].add(fact["answer"])
    single = [relation for relation, found in answers.items() if len(found) == 1]
    if single:
        raise CorpusError(f"{path}: relation {single[0]!r} has one answer: there is no choice")
    ordered = {relation: sorted(found) for relation, found in answers.items()}
    numbered = sample(list(enumerate(facts)), most, seed)
    return [_item(fact, i, ordered[fact["relation"]], seed) for i, fact in numbered]


def _read(path: str) -> list[dict[str, str]]:
    facts = [_fact(line, f"{path}: line {i}") for i, line in read_lines(path) if line.strip()]
    if not facts:
        raise CorpusError(f"{path} is empty: there is no fact to ask for")
    return facts


def _fact(line: str, where: str) -> dict[str, str]:
    try:
        fact = json.loads(line)
    except ValueError:
        raise CorpusError(f"{where}: not JSON; write one object a line") from None
    for name in NEEDED:
        if not (isinstance(fact, dict) and isinstance(fact.get(name), str) and fact[name]):
            raise CorpusError(f"{where}: has no text {name!r}; a fact has {', '.join(NEEDED)}")
    return fact


def _item(fact: dict[str, str], index: int, answers: list[str], seed: int) -> Item:
    others = [answer for answer in answers if answer != fact["answer"]]
    dice = np.random.default_rng([seed, index])
    order = [others[i] for i in dice.permutation(len(others))]
    options = [fact["answer"], *order[:OTHERS]]
    return Item(
        id=f"facts-{index}",
        suite="facts",
        prompt=fact["prompt"],
        answer=fact["answer"],
        options=tuple(options[i] for i in dice.permutation(len(options))),
        entity=fact.get("subject") or f"facts-{index}",
        labels={name: fact[name] for name in ("relation", "split") if fact.get(name)},
        others=tuple(order[OTHERS:]),
    )
