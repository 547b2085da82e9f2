"""A model's choice among the options of an item.

The choice is the option whose tokens have the largest summed log-likelihood after the prompt: the
options are of one kind, so that this is the model's own belief, renormalised over them. A division
by the length in bytes is given beside it. Options equally likely share the credit.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engram_model.scoring import Progress, TokenScores, opening_id, score_rows

from .items import Item


@dataclass(frozen=True)
class Answer:
    """What a model makes of an item.

    Attributes:
        scores: summed log-likelihood of each option after the prompt, nats.
        credit: 1 where the answer alone is chosen, 1/k where it ties with k - 1 others, else 0.
        credit_per_byte: the same, for scores divided by the options' bytes.
        generated: whether each token of the answer is the likeliest one, those before it given.
        rank: of the answer among options and others, from 1; ties share the middle.
        truncated: whether the prompt lost its beginning to the context.
    """

    item: Item
    scores: tuple[float, ...]
    credit: float
    credit_per_byte: float
    generated: bool
    rank: float
    truncated: bool

    @property
    def choice(self) -> str:
        """The likeliest option; the first of equals."""
        return self.item.options[int(np.argmax(self.scores))]


@dataclass(frozen=True)
class _Rows:
    """Token ids of prompt + option, and how many tokens of each row the prompt holds."""

    ids: list[list[int]]
    prompt: int
    truncated: bool


def answer_items(
    model,
    tokenizer,
    items: list[Item],
    *,
    batch: int = 8,
    context: int | None = None,
    progress: Progress | None = None,
) -> list[Answer]:
    """The answers to all items, in their order.

    Args:
        batch: rows of `context` tokens at a time; more where they are short.
        context: tokens at most (None: the model's); of a longer prompt the end is kept.
        progress: called with the number of tokens done.
    """
    context = context or model.config.get_text_config().max_position_embeddings
    prepared = [_rows(item, tokenizer, context) for item in items]
    rows = (ids for one in prepared for ids in one.ids)
    scores = score_rows(model, rows, batch * context, progress)
    return [_answer(item, one, scores) for item, one in zip(items, prepared, strict=True)]


def _rows(item: Item, tokenizer, context: int) -> _Rows:
    """The options begin where the ids of any of them part from those of the prompt alone."""
    texts = [item.prompt, *(item.prompt + text for text in (*item.options, *item.others))]
    prompt, *rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    shared = min(_shared(prompt, row) for row in rows)
    cut = max(0, max(map(len, rows)) - context)  # with what opens the text, context + 1 ids
    first = [opening_id(tokenizer)] if cut == 0 else [rows[0][cut - 1]]
    return _Rows([[*first, *row[cut:]] for row in rows], max(shared - cut, 0), cut > 0)


def _shared(left: list[int], right: list[int]) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


def _answer(item: Item, rows: _Rows, scores: Iterator[TokenScores]) -> Answer:
    found = [next(scores) for _ in rows.ids]
    sums = np.array([one.log_probs[rows.prompt :].sum() for one in found])
    options, place = sums[: len(item.options)], item.options.index(item.answer)
    size = np.array([len(option.encode()) for option in item.options])
    better, equal = (sums > sums[place]).sum(), (sums == sums[place]).sum()
    return Answer(
        item=item,
        scores=tuple(options.tolist()),
        credit=_credit(options, place),
        credit_per_byte=_credit(options / size, place),
        generated=bool(found[place].top[rows.prompt :].all()),
        rank=float(better + (equal + 1) / 2),
        truncated=rows.truncated,
    )


def _credit(scores: np.ndarray, place: int) -> float:
    best = scores == scores.max()
    return float(best[place] / best.sum())
