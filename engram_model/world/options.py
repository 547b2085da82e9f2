"""Closed questions: the answer among others of its kind."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from .dice import Dice

if TYPE_CHECKING:
    from .world import World

OPTIONS = 4


def add_options(dice: Dice, answer: str, draw: Callable[[], str], *given: str) -> list[str]:
    """`answer`, those `given`, and values that `draw` finds, four in all, in random order."""
    options = [answer, *given]
    while len(options) < OPTIONS:
        other = draw()
        if other not in options:
            options.append(other)
    return dice.sample(options, OPTIONS)


def add_values(world: "World", dice: Dice, relation: str, answer: str, *given: str) -> list[str]:
    """`add_options` with other values of a relation."""
    return add_options(dice, answer, lambda: f" {world.pools.draw(dice, relation)}", *given)
