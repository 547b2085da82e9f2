"""Family `arith`: sums, with and without carries, and remainders.

One sum in seven is never in training: valid has those alone.
"""

from typing import TYPE_CHECKING

from .dice import Dice
from .options import add_options
from .record import Draft
from .tiers import fresh_units

if TYPE_CHECKING:
    from .world import World

LINES = 12
MODULI = (11, 13, 17, 19, 23)  # not 7, by which sums are held out
SLIPS = (1, 2, 10, 11, 100)  # how far a wrong answer is off

units = fresh_units


def write(world: "World", unit: str, dice: Dice, name: str) -> Draft:
    """A dozen sums, a line each: `347 + 85 = 432`, or `(347 + 85) mod 11 = 3`."""
    draft = Draft()
    for _ in range(LINES):
        draft.add("\n" if draft.length else "")
        a, b = _addends(dice, held_out=unit == "valid")
        if dice.below(4):
            _add_sum(draft, dice, a, b)
        else:
            _add_remainder(draft, dice, a, b)
    return draft


def is_held_out(a: int, b: int) -> bool:
    """Whether valid alone adds these two."""
    return (a + 3 * b) % 7 == 0


def carries(a: int, b: int) -> list[bool]:
    """For each digit of a + b, from the left: whether a carry comes into it."""
    width = len(str(a + b))
    return [a % 10**place + b % 10**place >= 10**place for place in reversed(range(width))]


def _addends(dice: Dice, held_out: bool) -> tuple[int, int]:
    """Two numbers of up to four digits; without any carry in one case of three."""
    while True:
        a, b, carry = 0, 0, dice.below(3) > 0
        for _ in range(2 + dice.below(3)):
            digit = dice.below(10)
            a, b = 10 * a + digit, 10 * b + dice.below(10 if carry else 10 - digit)
        if is_held_out(a, b) == held_out:
            return a, b


def _add_sum(draft: Draft, dice: Dice, a: int, b: int) -> None:
    digits, carried = str(a + b), carries(a, b)
    draft.add(f"{a} + {b} = ")
    for digit, carry in zip(digits, carried, strict=True):
        draft.mark(digit, "carry" if carry else "digit", "compute")
    options = add_options(
        dice, f" {a + b}", lambda: f" {abs(a + b + dice.pick(SLIPS) * dice.pick((1, -1)))}"
    )
    draft.ask(f"{a} + {b} =", f" {a + b}", options, needs_memory=False, hops=1 + sum(carried))


def _add_remainder(draft: Draft, dice: Dice, a: int, b: int) -> None:
    modulus = dice.pick(MODULI)
    problem, answer = f"({a} + {b}) mod {modulus} =", str((a + b) % modulus)
    draft.add(f"{problem} ")
    draft.mark(answer, "remainder", "compute")
    options = add_options(dice, f" {answer}", lambda: f" {dice.below(modulus)}")
    draft.ask(problem, f" {answer}", options, needs_memory=False, hops=2)
