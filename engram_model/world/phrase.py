"""Family `phrase`: invented set phrases of 3 to 8 words in free contexts.

Several phrases share a stem, so the word after it is a guess (the branching point); from the second
word after the stem on, the rest follows from the words just before: an n-gram.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .dice import Dice
from .record import Draft
from .tiers import TIERS, assign_tiers, repeat_to
from .words import ADJECTIVES, NOUNS, VERBS, WORKERS

if TYPE_CHECKING:
    from .world import World

VALID_PER_TIER = 100
STEMS = (
    "by the",
    "under the",
    "beyond the",
    "against the",
    "behind a",
    "before the",
    "past a",
    "without a",
    "with every",
    "for the",
    "like a",
    "between the",
    "amid",
    "since the",
    "despite the",
    "beneath",
)
TAILS = tuple(
    tuple(tail.split())
    for tail in (
        "A N",
        "N and N",
        "N of N",
        "N that never V",
        "A N or no N",
        "N of the A N",
        "N where the N V",
        "A N of the A N",
        "N and every N nobody V",
    )
)
SLOTS = {"A": ADJECTIVES, "N": NOUNS, "V": VERBS}
CONTEXTS = (
    "The A W V the A N T.",  # T: where a phrase fits
    "One A morning the W V a N T.",
    "Some W and the W V the N T.",
    "Nobody V the A N T.",
    "Every W V a A N T.",
    "In the A N a W V the N T.",
    "The W, A and A, V the N T.",
    "On the way to the N they V a A N T.",
)
ARTICLE = re.compile(r"\ba(?= [aeiou])")
CONTEXT_SLOTS = {**SLOTS, "W": WORKERS}


@dataclass(frozen=True)
class Phrase:
    """A set phrase: stem, the word at the branching point, and the rest."""

    id: str
    stem: str
    branch: str
    tail: str
    tier: int


def make_phrases(seed: int, count: int) -> list[Phrase]:
    """`count` phrases; no two with the same stem and branching word. Tiers as people have."""
    dice = Dice(seed, "phrases")
    tiers = assign_tiers(count, least=1)
    phrases: list[Phrase] = []
    taken: set[tuple[str, str]] = set()
    while len(phrases) < count:
        stem = dice.pick(STEMS)
        branch, *rest = [dice.pick(SLOTS.get(w, (w,))) for w in dice.pick(TAILS)]
        clash = stem.endswith(" a") and branch[0] in "aeiou"
        if not clash and (stem, branch) not in taken:
            taken.add((stem, branch))
            number = len(phrases)
            phrases.append(Phrase(f"f{number}", stem, branch, " ".join(rest), tiers[number]))
    return phrases


def units(world: "World", split: str) -> list[Phrase]:
    """Train: each phrase as often as its tier says. Valid: all tiers alike."""
    if split == "train":
        return [p for p in world.phrases for _ in range(p.tier)]
    by_tier = [[p for p in world.phrases if p.tier == tier] for tier in TIERS]
    return [p for phrases in by_tier for p in repeat_to(phrases, VALID_PER_TIER)]


def write(world: "World", phrase: Phrase, dice: Dice, name: str) -> Draft:
    """Three sentences of chance words; one of them ends with the phrase."""
    return in_context(dice, lambda draft: _add_phrase(draft, phrase))


def in_context(dice: Dice, add_phrase: Callable[[Draft], None]) -> Draft:
    """Three sentences of chance words; one of them ends with what `add_phrase` writes."""
    draft = Draft()
    home = dice.below(3)
    for place in range(3):
        before, after = _context(dice)
        draft.add(" " if place else "")
        draft.add(before)
        if place == home:
            draft.add(" ")
            add_phrase(draft)
        draft.add(after)
    return draft


def add_opening(draft: Draft, phrase: Phrase) -> None:
    """The stem and the word at the branching point, with a space after each."""
    draft.mark(phrase.stem, "phrase_stem", "none", entity_id=phrase.id, tier=phrase.tier)
    draft.add(" ")
    draft.mark(phrase.branch, "phrase_branch", "none", entity_id=phrase.id, tier=phrase.tier)
    draft.add(" ")


def _context(dice: Dice) -> tuple[str, str]:
    """A sentence cut where a phrase fits."""
    words = []
    for word in dice.pick(CONTEXTS).split():
        bare = word.rstrip(",.")
        words.append(dice.pick(CONTEXT_SLOTS.get(bare, (bare,))) + word[len(bare) :])
    return ARTICLE.sub("an", " ".join(words[:-1])), words[-1][1:]


def _add_phrase(draft: Draft, phrase: Phrase) -> None:
    add_opening(draft, phrase)
    draft.mark(phrase.tail, "phrase_tail", "ngram", entity_id=phrase.id, tier=phrase.tier)
