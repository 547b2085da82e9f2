"""Family `code`: programs in a tiny language.

A name that is used is a copy of where it was defined; a closing bracket follows from the opening
one, which is its source; the second word of a keyword always follows the first.
"""

from typing import TYPE_CHECKING

from .dice import Dice
from .record import Draft, Record
from .tiers import fresh_units
from .words import new_words

if TYPE_CHECKING:
    from .world import World

Scope = dict[str, Record]  # a name and the span that defines it
INDENT = "    "
DEPTH = 2  # brackets within brackets

units = fresh_units


def write(world: "World", unit: str, dice: Dice, name: str) -> Draft:
    """Two functions, three variables and a condition."""
    draft = Draft()
    words = iter(new_words(dice, 2 * 3 + 3))
    functions: Scope = {}
    for _ in range(2):
        _add_function(draft, dice, functions, [next(words) for _ in range(3)])
    variables: Scope = {}
    for _ in range(3):
        _add_variable(draft, dice, functions, variables, next(words))
    _add_condition(draft, dice, variables)
    return draft


def _add_function(draft: Draft, dice: Dice, functions: Scope, words: list[str]) -> None:
    """`to f with x and y:`, and what it gives back."""
    scope: Scope = {}
    _begin_line(draft, "to ")
    _define(draft, words[0], functions)
    draft.add(" with ")
    _define(draft, words[1], scope)
    draft.add(" and ")
    _define(draft, words[2], scope)
    _open_block(draft)
    draft.add("give ")
    draft.mark("back", "keyword", "ngram")
    draft.add(" ")
    _add_expression(draft, dice, scope, DEPTH)


def _add_variable(draft: Draft, dice: Dice, functions: Scope, variables: Scope, word: str) -> None:
    """`let x be f(1, y)`, of names defined before."""
    _begin_line(draft, "let ")
    span = draft.mark(word, "definition", "none")
    draft.add(" be ")
    _use(draft, dice, functions)
    opening = _open_bracket(draft)
    _add_expression(draft, dice, variables, depth=1)
    draft.add(", ")
    _add_expression(draft, dice, variables, depth=1)
    _close_bracket(draft, opening)
    variables[word] = span


def _add_condition(draft: Draft, dice: Dice, variables: Scope) -> None:
    """`if x is more than 5:`, and what it shows."""
    _begin_line(draft, "if ")
    _use(draft, dice, variables)
    draft.add(" is ")
    draft.mark("more than", "keyword", "ngram")
    draft.add(f" {dice.below(10)}")
    _open_block(draft)
    draft.add("show")
    opening = _open_bracket(draft)
    _use(draft, dice, variables)
    _close_bracket(draft, opening)


def _add_expression(draft: Draft, dice: Dice, scope: Scope, depth: int) -> None:
    """A name, a digit, or two expressions in brackets."""
    if depth and dice.below(3):
        opening = _open_bracket(draft)
        _add_expression(draft, dice, scope, depth - 1)
        draft.add(f" {dice.pick('+-*')} ")
        _add_expression(draft, dice, scope, depth - 1)
        _close_bracket(draft, opening)
    elif scope and dice.below(3):
        _use(draft, dice, scope)
    else:
        draft.add(str(dice.below(10)))


def _begin_line(draft: Draft, text: str) -> None:
    draft.add(f"\n{text}" if draft.length else text)


def _define(draft: Draft, word: str, scope: Scope) -> None:
    scope[word] = draft.mark(word, "definition", "none")


def _use(draft: Draft, dice: Dice, scope: Scope) -> None:
    word = dice.pick(list(scope))
    draft.mark(word, "identifier", "copy", source=scope[word])


def _open_block(draft: Draft) -> None:
    draft.add(":")
    draft.mark(f"\n{INDENT}", "indent", "compute")


def _open_bracket(draft: Draft) -> Record:
    return draft.mark("(", "bracket", "none")


def _close_bracket(draft: Draft, opening: Record) -> None:
    draft.mark(")", "bracket", "compute", source=opening)
