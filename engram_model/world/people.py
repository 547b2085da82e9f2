"""Who lives in the world: people, their names, their facts and how often these are told."""

from dataclasses import dataclass, replace
from itertools import pairwise

from .dice import Dice
from .tiers import NEVER, TIERS, assign_tiers
from .words import MONTHS, new_word

MIN_PEOPLE = 40  # fewer leave a tier without anybody to ask about
RELATIONS = ("birth_city", "birth_date", "university", "major", "employer", "work_city")
MENTOR = "mentor"
COMPANY = ("Works", "Mills", "Press", "Bank", "Guild", "Line", "Brothers", "Foundry")
SCHOOL = ("College", "Academy", "Institute", "Hall")


@dataclass(frozen=True)
class Person:
    """A person. `facts` has one value for each of `RELATIONS`, and the name of the mentor.

    asked: training asks about this person. Half of the person's documents are then questions; the
    others are asked about in valid only, so that an answer has to come from a biography.
    contradicted: training has passages in which other facts are stated of this person.
    mentor: the place of the mentor among the people of the world, if there is one.
    """

    id: str
    name: str
    surname: str
    pronoun: str
    tier: int
    asked: bool
    contradicted: bool
    facts: dict[str, str]
    mentor: int | None = None

    @property
    def first_names(self) -> str:
        return self.name.removesuffix(f" {self.surname}")


class Pools:
    """The values that facts are drawn from, and the words already taken.

    The city somebody works in follows from the employer: each employer has one city.
    """

    def __init__(self, seed: int, people: int):
        dice = Dice(seed, "words")
        self.taken: set[str] = set()
        self.first_names = [new_word(dice, 1 + i % 2, self.taken) for i in range(160)]
        self.cities = [new_word(dice, 3, self.taken) for _ in range(200)]
        self.companies = [company(dice, self.taken) for _ in range(200)]
        self.schools = [school(dice, self.taken) for _ in range(100)]
        self.majors = [major(dice, self.taken) for _ in range(100)]
        self.city_of = {name: dice.pick(self.cities) for name in self.companies}
        self.surnames = [new_word(dice, 2, self.taken) for _ in range(people)]

    def draw(self, dice: Dice, relation: str) -> str:
        """A value for `relation`, from the pools."""
        if relation == "birth_date":
            return birth_date(dice)
        pool = {
            "birth_city": self.cities,
            "work_city": self.cities,
            "university": self.schools,
            "major": self.majors,
            "employer": self.companies,
        }[relation]
        return dice.pick(pool)


def company(dice: Dice, taken: set[str]) -> str:
    return f"{new_word(dice, 2, taken)} {dice.pick(COMPANY)}"


def school(dice: Dice, taken: set[str]) -> str:
    return f"{new_word(dice, 2, taken)} {dice.pick(SCHOOL)}"


def major(dice: Dice, taken: set[str]) -> str:
    return new_word(dice, 2, taken).lower() + "ology"


def birth_date(dice: Dice) -> str:
    return f"{1 + dice.below(28)} {dice.pick(MONTHS)} {1800 + dice.below(200)}"


def fresh_date(dice: Dice, taken: set[str]) -> str:
    while True:
        date = birth_date(dice)
        if date not in taken:
            taken.add(date)
            return date


def fresh_value(dice: Dice, relation: str, taken: set[str]) -> str:
    """A value for `relation` that is not in `taken`; it is added there."""
    if relation == "birth_date":
        return fresh_date(dice, taken)
    if relation == "university":
        return school(dice, taken)
    if relation == "major":
        return major(dice, taken)
    if relation == "employer":
        return company(dice, taken)
    return new_word(dice, 3, taken)


def make_people(seed: int, pools: Pools, people: int) -> list[Person]:
    """The people of a world, then a tenth as many (tier `NEVER`) that nobody is told about."""
    dice = Dice(seed, "people")
    tiers = assign_tiers(people, least=4)  # one of four is asked about
    tiers += [NEVER] * (len(pools.surnames) - people)
    made = [_make_person(dice, pools, number, tier) for number, tier in enumerate(tiers)]
    _assign_mentors(Dice(seed, "mentors"), made)
    return made


def _make_person(dice: Dice, pools: Pools, number: int, tier: int) -> Person:
    surname = pools.surnames[number]
    names = dice.sample(pools.first_names, 2 if number % 8 == 1 else 1)
    facts = {relation: pools.draw(dice, relation) for relation in RELATIONS}
    facts["work_city"] = pools.city_of[facts["employer"]]
    return Person(
        id=f"p{number}",
        name=" ".join([*names, surname]),
        surname=surname,
        pronoun=dice.pick(("He", "She")),
        tier=tier,
        asked=tier >= 4 and number % 4 == 0,
        contradicted=tier >= 4 and number % 4 == 3,
        facts=facts,
    )


def _assign_mentors(dice: Dice, people: list[Person]) -> None:
    """Line up each tier in random order; everyone is the mentor of the next.

    So nobody is their own mentor by any path, and a name is told as a mentor's as often as its own
    tier says.
    """
    for tier in TIERS:
        numbers = [number for number, person in enumerate(people) if person.tier == tier]
        for mentor, number in pairwise(dice.sample(numbers, len(numbers))):
            person = people[number]
            facts = {**person.facts, MENTOR: people[mentor].name}
            people[number] = replace(person, facts=facts, mentor=mentor)
