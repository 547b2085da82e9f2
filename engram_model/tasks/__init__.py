"""Closed questions: which of the options a model holds likeliest, and whether it would write the
answer.

Item             a question, its options, and what it counts under
world_items      the suites of a world
fact_items       a file of facts
question_items   a file of questions
answer_items     a model's choices, from the log-likelihood of each option
by_suite         their accuracy, chance-corrected, with intervals
Pair             two texts that differ in who is asked about, and how each goes on
world_pairs      the world's, and read_pairs those of a file
"""

from .answer import Answer, answer_items
from .facts import fact_items
from .items import Item, suite_names, world_items
from .pairs import Pair, pair_of, read_pairs, world_pairs
from .questions import question_items
from .summary import by_suite

__all__ = [
    "Answer",
    "Item",
    "Pair",
    "answer_items",
    "by_suite",
    "fact_items",
    "pair_of",
    "question_items",
    "read_pairs",
    "suite_names",
    "world_items",
    "world_pairs",
]
