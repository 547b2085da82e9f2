"""The world: who and what there is, and which document stands at which index."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count

from engram_model.errors import UsageError

from . import (
    arith,
    bio,
    chain,
    code,
    conflict,
    copy,
    filler,
    lookalike,
    memory_chain,
    phrase,
    question,
    reading,
    recall,
)
from .dice import Dice, permutation
from .people import MIN_PEOPLE, Person, Pools, make_people
from .record import Record

VERSION = 2  # raise it when any document changes
SPLITS = ("train", "valid")
# A family is a module with `units(world, split)`: what an epoch tells, a unit a document; and
# `write(world, unit, dice, name)`: the document.
FAMILIES = {
    "bio": bio,
    "phrase": phrase,
    "question": question,
    "reading": reading,
    "conflict": conflict,
    "memory_chain": memory_chain,
    "copy": copy,
    "recall": recall,
    "chain": chain,
    "arith": arith,
    "code": code,
    "filler": filler,
    "lookalike": lookalike,
}


class World:
    """A synthetic world, fixed by its seed, whose documents carry exact labels.

    seed: 0 or more; worlds of other seeds have other people, words and phrases (the syllables and
    the English words are the same). people, phrases: how many have a tier (a tenth as many people
    more are never told of). families: the kinds of document, in any order.
    Document i of a split depends on these and on nothing else: it may be asked for in any order and
    by any process. The plan of a split is a list of units (one epoch) in random order; after
    the last of them the next epoch tells the same again, in new documents and a new order.
    """

    def __init__(
        self,
        seed: int = 0,
        people: int = 2000,
        phrases: int = 300,
        families: tuple[str, ...] = tuple(FAMILIES),
    ):
        _check(seed, people, phrases, families)
        self.seed = seed
        self.size = people
        self.families = tuple(name for name in FAMILIES if name in families)
        self.pools = Pools(seed, people + people // 10)
        self.people = make_people(seed, self.pools, people)
        self.phrases = phrase.make_phrases(seed, phrases)
        self._plan = lru_cache(maxsize=None)(self._make_plan)
        self._order = lru_cache(maxsize=4)(self._make_order)

    @property
    def name(self) -> str:
        """Version, seed and sizes: worlds of one name are the same."""
        kinds = "-".join(self.families) if len(self.families) < len(FAMILIES) else "all"
        return f"world{VERSION}-s{self.seed}-p{self.size}-f{len(self.phrases)}-{kinds}"

    def in_tier(self, tier: int) -> list[Person]:
        """The people of one tier (0: never told of)."""
        return [person for person in self.people if person.tier == tier]

    def epoch_length(self, split: str) -> int:
        """Documents in an epoch of `split`."""
        return len(self._plan(split))

    def document(self, split: str, index: int) -> Record:
        """Document `index` of `split`: a dict of id, family, split, text, spans and qa."""
        plan = self._plan(split)
        epoch, place = divmod(index, len(plan))
        family, unit = plan[self._order(split, epoch)[place]]
        name = f"world{VERSION}-{self.seed}-{split}-{index}"
        draft = FAMILIES[family].write(self, unit, Dice(self.seed, split, index), name)
        return {
            "id": name,
            "family": family,
            "split": split,
            "text": draft.text,
            "spans": draft.spans,
            "qa": draft.qa,
        }

    def documents(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Documents `start` to `stop` of `split` (without end when `stop` is None)."""
        check_split(split)
        for index in count(start) if stop is None else range(start, stop):
            yield self.document(split, index)

    def _make_plan(self, split: str) -> list[tuple[str, object]]:
        check_split(split)
        plan = [(f, unit) for f in self.families for unit in FAMILIES[f].units(self, split)]
        if not plan:
            told = ", ".join(self.families)
            raise UsageError(f"world: {split} has no documents of the family {told}; use valid")
        return plan

    def _make_order(self, split: str, epoch: int) -> list[int]:
        n = len(self._plan(split))
        return permutation(self.seed, f"{split} order", epoch, n).tolist()


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise UsageError(f"world: split {split!r} is unknown; use one of {', '.join(SPLITS)}")


def _check(seed: int, people: int, phrases: int, families: tuple[str, ...]) -> None:
    if not 0 <= seed < 2**63:
        raise UsageError(f"world: seed {seed} is out of range; use 0 to 2**63 - 1")
    if people < MIN_PEOPLE:
        raise UsageError(f"world: {people} people are too few; use {MIN_PEOPLE} or more")
    if not 10 <= phrases <= 2000:
        raise UsageError(f"world: {phrases} phrases are out of range; use 10 to 2000")
    unknown = [name for name in families if name not in FAMILIES]
    if unknown or not families:
        given = ", ".join(unknown) or "none given"
        raise UsageError(f"world: family {given}: not known; use any of {', '.join(FAMILIES)}")
