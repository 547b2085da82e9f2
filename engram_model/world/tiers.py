"""Exposure tiers: how often training tells of a person or a phrase."""

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from .world import World

Item = TypeVar("Item")

TIERS = (1, 4, 16, 64, 256)  # training documents an epoch
PERCENT = (50, 25, 15, 7, 3)  # people, and phrases, in each tier
NEVER = 0  # the tier of people that no training document names


def assign_tiers(count: int, least: int) -> list[int]:
    """The tier of each of `count` things, most told first; at least `least` in every tier."""
    shares = [max(least, count * percent // 100) for percent in PERCENT]
    shares[0] = count - sum(shares[1:])
    return [tier for tier, n in zip(TIERS[::-1], shares[::-1], strict=True) for _ in range(n)]


def repeat_to(items: list[Item], n: int) -> list[Item]:
    """`n` items: the given ones in turn, as often as it takes."""
    return [items[i % len(items)] for i in range(n)]


def fresh_units(world: "World", split: str) -> list[str]:
    """`units` of a family that makes all it tells anew: places in the plan, named by their split.

    Three a pair of people in train, 300 in valid.
    """
    return [split] * (300 if split == "valid" else 3 * world.size // 2)
