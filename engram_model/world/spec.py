"""The address of a piece of a world: `world:?seed=0&tokens=1M&split=valid`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any
from urllib.parse import parse_qsl

from engram_model.errors import UsageError

from .record import Record
from .world import FAMILIES, World, check_split

CHARACTERS_PER_TOKEN = 4  # by definition; what a tokenizer makes of it differs somewhat
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


@dataclass(frozen=True)
class WorldSpec:
    """Whole documents of a split from its beginning, until they hold `4 * tokens` characters."""

    seed: int = 0
    tokens: int = 1_000_000
    split: str = "train"
    families: tuple[str, ...] = tuple(FAMILIES)
    people: int = 2000
    phrases: int = 300

    def world(self) -> World:
        """The world that is meant."""
        check_split(self.split)
        return _world(self.seed, self.people, self.phrases, self.families)

    def documents(self) -> Iterator[Record]:
        """Its records, in order."""
        world, room = self.world(), CHARACTERS_PER_TOKEN * self.tokens
        for index in count():
            if room <= 0:
                return
            record = world.document(self.split, index)
            room -= len(record["text"])
            yield record

    @property
    def fingerprint(self) -> str:
        """Generator version and all that the documents depend on; fit for a file name."""
        return f"{self.world().name}-{self.split}-{self.tokens}"


_world = lru_cache(maxsize=4)(World)  # a world takes some 50 ms to make


def parse_spec(spec: str) -> WorldSpec:
    """`world:?key=value&...` as a WorldSpec.

    Keys: seed, tokens (a number, or one with K, M or B), split (train or valid), families (a list
    with commas), people, phrases. Raises UsageError.
    """
    query = spec.removeprefix("world:").removeprefix("?")
    values: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in _READERS:
            known = ", ".join(_READERS)
            raise UsageError(f"{spec}: the world has no key {key!r}; its keys are {known}")
        values[key] = _READERS[key](spec, key, value)
    parsed = WorldSpec(**values)
    parsed.world()
    return parsed


def _number(spec: str, key: str, value: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", value.upper())
    if not match or int(float(match[1]) * UNITS[match[2]]) < 1:
        raise UsageError(f"{spec}: {key}={value!r} is no number above 0; write 500K or 1M")
    return round(float(match[1]) * UNITS[match[2]])


def _whole(spec: str, key: str, value: str) -> int:
    if not value.isdecimal():
        raise UsageError(f"{spec}: {key}={value!r} is no whole number; write {key}=0 or more")
    return int(value)


def _name(spec: str, key: str, value: str) -> str:
    return value


def _names(spec: str, key: str, value: str) -> tuple[str, ...]:
    return tuple(value.split(","))


_READERS = {
    "seed": _whole,
    "tokens": _number,
    "split": _name,
    "families": _names,
    "people": _whole,
    "phrases": _whole,
}
