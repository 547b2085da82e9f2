"""How well a model foretells each token of given rows, in batches of similar length."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

Progress = Callable[[int], None]
ROWS_AT_ONCE = 2048  # rows sorted by length before batching: less padding, bounded memory
PADDING = -100


@dataclass(frozen=True)
class TokenScores:
    """Of every token of a row but its first.

    Attributes:
        log_probs: float64 [length - 1], nats.
        top: bool [length - 1], whether no other token is likelier.
    """

    log_probs: np.ndarray
    top: np.ndarray

    def __len__(self) -> int:
        return len(self.log_probs)

    @classmethod
    def join(cls, parts: list["TokenScores"]) -> "TokenScores":
        """The windows of one text as one."""
        return cls(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("log_probs", "top")))


def score_rows(
    model, rows: Iterable[list[int]], batch: int = 8192, progress: Progress | None = None
) -> Iterator[TokenScores]:
    """The scores of each row, in the order of the rows.

    Args:
        model: a causal model in evaluation mode: ids [rows, length] -> `.logits`.
        rows: token ids, two or more each; the first is context only.
        batch: tokens at a time, padding included (one row at least).
        progress: called with the number of tokens done.
    """
    rows, done = iter(rows), 0
    while group := list(islice(rows, ROWS_AT_ONCE)):
        found: dict[int, TokenScores] = {}
        for part in _batches(group, batch):
            found.update(zip(part, _score(model, [group[i] for i in part]), strict=True))
            done += sum(len(group[i]) - 1 for i in part)
            if progress:
                progress(done)
        yield from (found[i] for i in range(len(group)))


def _batches(rows: list[list[int]], batch: int) -> Iterator[list[int]]:
    """Indices of rows, the shortest first, as many as fit in `batch` tokens."""
    part: list[int] = []
    for index in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if part and (len(part) + 1) * len(rows[index]) > batch:
            yield part
            part = []
        part.append(index)
    yield part


def _score(model, rows: list[list[int]]) -> list[TokenScores]:
    import torch
    import torch.nn.functional as F

    ids = torch.full((len(rows), max(map(len, rows))), PADDING)
    for place, row in zip(ids, rows, strict=True):
        place[: len(row)] = torch.tensor(row)
    ids = ids.to(model.device)
    with torch.inference_mode():  # padding is to the right, where nothing before it can see it
        logits = model(ids[:, :-1].clamp(min=0), use_cache=False).logits.float()
        losses = F.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PADDING, reduction="none"
        ).view(len(rows), -1)
        answers = logits.gather(-1, ids[:, 1:, None].clamp(min=0)).squeeze(-1)
        top = answers >= logits.amax(-1)
    log_probs, top = -losses.double().cpu().numpy(), top.cpu().numpy()
    return [
        TokenScores(log_probs[i, : len(row) - 1], top[i, : len(row) - 1])
        for i, row in enumerate(rows)
    ]


def opening_id(tokenizer) -> int:
    """What a text begins with: `<bos>`, or `<eos>` for tokenizers that have no other."""
    first = tokenizer.bos_token_id
    return tokenizer.eos_token_id if first is None else first
