"""Family `chain`: several steps from one line of a passage to another.

Either a gift is handed on, one person a sentence, in any order; or each variable is set from the
one before. After the answer stand the steps that lead to it.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from .dice import Dice
from .options import add_options
from .record import Draft, Record
from .tiers import fresh_units
from .words import new_words

if TYPE_CHECKING:
    from .world import World

LENGTH = 7  # people, or variables
MOST_HOPS = 4
QUESTIONS = 2

units = fresh_units


@dataclass(frozen=True)
class Chain:
    """What a passage says. nodes: names in order. values: what each step arrives at."""

    nodes: list[str]
    values: list[str]
    seen: dict[str, Record]  # where a name or value stands first

    def mention(self, draft: Draft, text: str) -> None:
        """Write a name or number of the passage: a copy where it has been written before."""
        source = self.seen.get(text)
        span = draft.mark(text, "node", "copy" if source else "none", source=source)
        self.seen.setdefault(text, span)


def write(world: "World", unit: str, dice: Dice, name: str) -> Draft:
    """A passage and two questions of 1 to 4 steps."""
    draft = Draft()
    make, ask = dice.pick(((_gifts, _ask_gift), (_variables, _ask_variable)))
    chain = make(draft, dice)
    passage = draft.text
    for hops in dice.sample(range(1, MOST_HOPS + 1), QUESTIONS):
        ask(draft, dice, chain, passage, hops)
    return draft


def _gifts(draft: Draft, dice: Dice) -> Chain:
    nodes = [word.capitalize() for word in new_words(dice, LENGTH)]
    chain = Chain(nodes, nodes, {})
    for place, i in enumerate(dice.sample(range(LENGTH - 1), LENGTH - 1)):
        draft.add(" " if place else "")
        chain.mention(draft, nodes[i])
        draft.add(" gives to ")
        chain.mention(draft, nodes[i + 1])
        draft.add(".")
    return chain


def _variables(draft: Draft, dice: Dice) -> Chain:
    nodes, value = new_words(dice, LENGTH), 60 + dice.below(40)
    chain = Chain(nodes, [str(value)], {})
    chain.mention(draft, nodes[0])
    draft.add(" = ")
    chain.mention(draft, str(value))
    for before, node in pairwise(nodes):
        step = (1 + dice.below(9)) * dice.pick((1, -1))
        value += step
        chain.values.append(str(value))
        draft.add("\n")
        chain.mention(draft, node)
        draft.add(" = ")
        chain.mention(draft, before)
        draft.add(f" {'+' if step > 0 else '-'} {abs(step)}")
    return chain


def _ask_gift(draft: Draft, dice: Dice, chain: Chain, passage: str, hops: int) -> None:
    start = dice.below(LENGTH - hops)
    steps = chain.values[start + 1 : start + hops + 1]
    question = f"Who is {hops} step{'s' if hops > 1 else ''} after "
    prompt = _question(draft, chain, question, chain.nodes[start])
    options = add_options(dice, f" {steps[-1]}", lambda: f" {dice.pick(chain.nodes)}")
    _answer(draft, chain, steps)
    draft.ask(passage + prompt, f" {steps[-1]}", options, needs_memory=False, hops=hops)


def _ask_variable(draft: Draft, dice: Dice, chain: Chain, passage: str, hops: int) -> None:
    steps = chain.values[: hops + 1]
    prompt = _question(draft, chain, "What is ", chain.nodes[hops])
    options = add_options(dice, f" {steps[-1]}", lambda: f" {int(steps[-1]) + dice.below(21) - 10}")
    _answer(draft, chain, steps)
    draft.ask(passage + prompt, f" {steps[-1]}", options, needs_memory=False, hops=hops)


def _question(draft: Draft, chain: Chain, question: str, node: str) -> str:
    place = len(draft.parts)
    draft.add(f"\n\nQuestion: {question}")
    chain.mention(draft, node)
    draft.add("?\nAnswer:")
    return "".join(draft.parts[place:])


def _answer(draft: Draft, chain: Chain, steps: list[str]) -> None:
    """The answer, then the steps that end in it; each knows where it stands in the passage."""
    draft.add(" ")
    draft.mark(steps[-1], "answer", "compute", source=chain.seen.get(steps[-1]))
    draft.add("\nSteps:")
    for step in steps:
        draft.add(" ")
        draft.mark(step, "step", "compute", source=chain.seen.get(step))
