"""Accuracy of answers, by suite and by what their items count under."""

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from engram_model.intervals import mean_interval

from .answer import Answer


@dataclass(frozen=True)
class Accuracy:
    """A group of answers.

    Attributes:
        accuracy: share of items whose answer was chosen; ties count in part.
        low, high: 95% interval of it, by bootstrap over people, phrases or documents.
        chance: accuracy of a blind choice.
        chance_corrected: (accuracy - chance) / (1 - chance): 0 is blind, 1 is perfect.
        corrected_low, corrected_high: its interval.
        accuracy_per_byte: of the choice by log-likelihood a byte.
        generated: share of answers that greedy decoding would write.
        memory_choice: share of items where what training says was chosen against the prompt; None
            where it says nothing else.
        median_rank, candidates: of the answer among all that were scored, and how many (mean).
        items, entities, truncated: how many items, of how many people, phrases or documents, and
            how many prompts were cut.
    """

    accuracy: float
    low: float
    high: float
    chance: float
    chance_corrected: float
    corrected_low: float
    corrected_high: float
    accuracy_per_byte: float
    generated: float
    memory_choice: float | None
    median_rank: float
    candidates: float
    items: int
    entities: int
    truncated: int

    def to_dict(self) -> dict:
        return asdict(self)


Groups = dict[str, dict[str, Accuracy]]


def by_suite(answers: list[Answer], seed: int = 0) -> dict[str, Groups]:
    """Suite -> label (`all`, tier, hops, asked, relation, split) -> value -> accuracy."""
    suites = _grouped(answers, [answer.item.suite for answer in answers])
    return {name: _by_label(found, seed) for name, found in suites.items()}


def _by_label(answers: list[Answer], seed: int) -> Groups:
    labels = dict.fromkeys(label for answer in answers for label in answer.item.labels)
    groups: Groups = {"all": {"all": accuracy(answers, seed)}}
    for label in labels:
        found = _grouped(answers, [answer.item.labels.get(label) for answer in answers])
        known = sorted(value for value in found if value is not None)
        if len(known) > 1:
            groups[label] = {str(value): accuracy(found[value], seed) for value in known}
    return groups


def _grouped(answers: list[Answer], keys: list) -> dict[Any, list[Answer]]:
    groups: dict[Any, list[Answer]] = defaultdict(list)
    for answer, key in zip(answers, keys, strict=True):
        groups[key].append(answer)
    return groups


def accuracy(answers: list[Answer], seed: int = 0) -> Accuracy:
    """Of answers, one at least; seed: of the bootstrap."""
    credit = np.array([answer.credit for answer in answers])
    entities = [answer.item.entity for answer in answers]
    chance = _mean([1 / len(answer.item.options) for answer in answers])
    low, high = mean_interval(credit, entities, seed)
    told = [a for a in answers if a.item.memory_answer in a.item.options]
    return Accuracy(
        accuracy=_mean(credit),
        low=low,
        high=high,
        chance=chance,
        chance_corrected=(_mean(credit) - chance) / (1 - chance),
        corrected_low=(low - chance) / (1 - chance),
        corrected_high=(high - chance) / (1 - chance),
        accuracy_per_byte=_mean([answer.credit_per_byte for answer in answers]),
        generated=_mean([answer.generated for answer in answers]),
        memory_choice=_mean([a.choice == a.item.memory_answer for a in told]) if told else None,
        median_rank=float(np.median([answer.rank for answer in answers])),
        candidates=_mean([len(a.item.options) + len(a.item.others) for a in answers]),
        items=len(answers),
        entities=len(set(entities)),
        truncated=sum(answer.truncated for answer in answers),
    )


def _mean(values: list | np.ndarray) -> float:
    return float(np.mean(values))
