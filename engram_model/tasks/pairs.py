"""Pairs of texts that differ in who or what is asked about, for patching one into the other."""

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from engram_model import world
from engram_model.errors import CorpusError
from engram_model.textfiles import read_lines
from engram_model.world.people import RELATIONS, Person
from engram_model.world.tiers import NEVER

FIELDS = ("clean", "corrupted", "target", "against")


@dataclass(frozen=True)
class Pair:
    """Two texts of as many tokens, and how each goes on.

    Attributes:
        clean, corrupted: the texts.
        target, against: what follows clean, and corrupted; None: what the model holds likeliest.
    """

    clean: str
    corrupted: str
    target: str | int | None = None
    against: str | int | None = None


def pair_of(record: Any, where: str) -> Pair:
    """The pair of a dict with clean, corrupted, target and against.

    Raises:
        CorpusError: something else.
    """
    if isinstance(record, Pair):
        return record
    found: list[Any] = [record.get(name) if isinstance(record, dict) else None for name in FIELDS]
    if not all(isinstance(text, str) and text for text in found):
        raise CorpusError(f"{where} is no pair: it needs the texts {', '.join(FIELDS)}")
    return Pair(*found)


def read_pairs(path: str) -> list[Pair]:
    """The pairs of a file of JSON lines.

    Raises:
        CorpusError: the file cannot be read, is empty, or a line is no pair.
    """
    pairs = []
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            pairs.append(pair_of(json.loads(line), where))
        except ValueError:
            raise CorpusError(f"{where}: not JSON; write one object a line") from None
    if not pairs:
        raise CorpusError(f"{path} is empty: there is no pair to patch")
    return pairs


def world_pairs(source: world.World, tokenizer, most: int | None, seed: int = 0) -> list[Pair]:
    """Questions about a person, and the same about somebody whose name has as many tokens.

    The questions are those of the suite `knowledge` about people whom training tells of; both
    people are of one tier. Nobody is in two pairs, so that pairs are independent.

    Args:
        most: pairs at most, by seed (None: as many as there are).
    """
    known = {person.surname: person for person in source.people if person.tier != NEVER}
    tokens = _token_counts(tokenizer, [person.name for person in known.values()])
    items = [record for record in world.suites(source)["knowledge"] if record["tier"] != NEVER]
    pairs: list[Pair] = []
    for i in np.random.default_rng(seed).permutation(len(items)):
        if len(pairs) == most:
            break
        named = [word for word in re.findall(r"\w+", items[i]["prompt"]) if word in known]
        relation = _relation(known[named[0]], items[i]["answer"]) if named else None
        if relation is None:
            continue  # already in a pair, or two facts have this answer
        person = known[named[0]]
        others = [
            other
            for other in known.values()
            if (other.tier, tokens[other.name]) == (person.tier, tokens[person.name])
            and other.facts[relation] != person.facts[relation]
        ]
        if others:
            other = others[np.random.default_rng([seed, i]).integers(len(others))]
            pairs.append(_pair(items[i], person, other, relation))
            del known[person.surname], known[other.surname]
    return pairs


def _token_counts(tokenizer, names: list[str]) -> dict[str, int]:
    encoded = tokenizer([f" {name}" for name in names], add_special_tokens=False)["input_ids"]
    return dict(zip(names, map(len, encoded), strict=True))


def _relation(person: Person, answer: str) -> str | None:
    found = [name for name in RELATIONS if person.facts[name] == answer.strip()]
    return found[0] if len(found) == 1 else None


def _pair(item: world.record.Record, person: Person, other: Person, relation: str) -> Pair:
    return Pair(
        clean=item["prompt"],
        corrupted=item["prompt"].replace(person.name, other.name),
        target=item["answer"],
        against=f" {other.facts[relation]}",
    )
