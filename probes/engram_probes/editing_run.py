"""How rows are written, and what a written row changes elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engram_model.errors import UsageError
from engram_model.row_patch import RowPatch
from engram_probes.bootstrap import divide
from engram_probes.capture import Subject, Tap, heard, tapped
from engram_probes.text import Documents, encode

RATE = 0.1  # of Adam, in standard deviations of the rows


def position_of(subject: Subject, tokenizer, prompt: str, at: str | None) -> int:
    """Position in `<bos>` + prompt of the token that ends `at`, or of the last token."""
    ids = subject.encode(tokenizer, prompt)
    if at is None:
        return len(ids) - 1
    end = prompt.rfind(at) + len(at)
    if not at or prompt.rfind(at) < 0:
        raise UsageError(f"{at!r} is not in the prompt {prompt!r}")
    encoded = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    [last] = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end <= b][-1:]
    return last + len(ids) - len(encoded["input_ids"])


def edit_rows(
    subject: Subject,
    tokenizer,
    prompt: str,
    answer: str,
    position: int,
    method: str,
    steps: int,
    goal: float,
    progress: Callable[[int, int | None], None] | None = None,
) -> tuple[RowPatch, int, list[int]]:
    """The patch, the steps taken, and the ids of the n-gram whose rows it writes."""
    ids, first = _joined(subject, tokenizer, prompt, answer)
    slots = _slots_at(subject, ids, position)
    deltas = {
        memory.layer_id: torch.zeros(
            len(slots[memory.layer_id]), memory.embed.weight.shape[1],
            device=subject.model.device, requires_grad=True,
        )
        for memory in subject.memories
    }  # fmt: skip
    with _quiet(subject), _shifted(subject, slots, deltas):
        if method == "closed":
            taken = _closed(subject, ids, first, deltas, goal)
        else:
            taken = _gradient(subject, ids, first, deltas, slots, steps, goal, progress)
    order = subject.memories[0].max_ngram_size
    shown = ids[max(1, position - order + 1) : position + 1]
    return _patch(subject, slots, deltas), taken, shown


def _joined(subject: Subject, tokenizer, prompt: str, answer: str) -> tuple[list[int], int]:
    """Ids of prompt and answer, and where the answer begins."""
    if not answer.strip():
        raise UsageError("the answer is empty; give at least a word")
    before = subject.encode(tokenizer, prompt)
    ids = subject.encode(tokenizer, prompt + answer)
    if ids[: len(before)] != before:
        raise UsageError(
            f"the tokens of {prompt!r} change when {answer!r} follows; begin the answer with its "
            "space, or end the prompt elsewhere"
        )
    return ids, len(before)


def _slots_at(subject: Subject, ids: list[int], position: int) -> dict[int, Tensor]:
    """Layer -> the different rows looked up at a position."""
    found: dict[int, Tensor] = {}
    with _slots_told(subject, lambda layer, slots: found.update({layer: slots[0, position]})):
        subject.logits(ids)
    return {layer: slots.unique() for layer, slots in found.items()}


@contextmanager
def _slots_told(subject: Subject, keep: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Calls `keep(layer, slots)` in each memory of a forward pass."""

    def keeper(layer: int) -> Callable[[str, Tensor], None]:
        return lambda name, tensor: keep(layer, tensor) if name == "slots" else None

    with ExitStack() as stack:
        for memory in subject.memories:
            stack.enter_context(heard(memory, keeper(memory.layer_id)))
        yield


@contextmanager
def _shifted(
    subject: Subject, slots: dict[int, Tensor], deltas: dict[int, Tensor]
) -> Iterator[None]:
    """Rows looked up anywhere are what they would be with `deltas` added to the table."""

    def wrapper(layer: int) -> Callable[[Tap | None], Tap]:
        def wrap(outer: Tap | None) -> Tap:
            seen: list[Tensor] = []

            def tap(name: str, tensor: Tensor) -> Tensor:
                if name == "rows":  # before others see them: to them the table has changed
                    match = seen[0][..., None] == slots[layer]  # [batch, pos, columns, edited]
                    tensor = tensor + match.to(tensor.dtype) @ deltas[layer].to(tensor.dtype)
                tensor = tensor if outer is None else outer(name, tensor)
                if name == "slots":
                    seen[:] = [tensor]
                return tensor

            return tap

        return wrap

    with ExitStack() as stack:
        for memory in subject.memories:
            stack.enter_context(tapped(memory, wrapper(memory.layer_id)))
        yield


@contextmanager
def _quiet(subject: Subject) -> Iterator[None]:
    """Gradients for what is edited alone."""
    weights = list(subject.model.parameters())
    learns, training = [w.requires_grad for w in weights], subject.model.training
    try:
        subject.model.eval().requires_grad_(False)
        yield
    finally:
        subject.model.train(training)
        for weight, flag in zip(weights, learns, strict=True):
            weight.requires_grad_(flag)


def _log_probs(subject: Subject, ids: list[int]) -> Tensor:
    """[positions, vocabulary], with gradients where there are any."""
    tensor = torch.tensor([ids], device=subject.model.device)
    return subject.model(tensor, use_cache=False).logits[0].float().log_softmax(-1)


def _answer(log_probs: Tensor, ids: list[int], first: int) -> Tensor:
    """Summed log-probability of the tokens from `first` on."""
    target = torch.tensor(ids[first:], device=log_probs.device)
    return log_probs[first - 1 : -1].gather(1, target[:, None]).sum()


def _gradient(subject, ids, first, deltas, slots, steps: int, goal: float, progress=None) -> int:
    """Adam on the rows until the answer has the probability asked for."""
    rows = [m.embed.weight[slots[m.layer_id]].float() for m in subject.memories]
    scale = float(torch.cat([part.flatten() for part in rows]).std())
    optimizer = torch.optim.Adam(list(deltas.values()), lr=RATE * scale)
    for step in range(steps + 1):
        if progress:
            progress(step, steps)
        score = _answer(_log_probs(subject, ids), ids, first)
        if score.exp() >= goal or step == steps:
            return step
        optimizer.zero_grad()
        (-score).backward()
        optimizer.step()
    return steps


def _closed(subject, ids, first, deltas, goal: float) -> int:
    """The least-norm change that brings the log odds of the answer's first token to the goal's, to
    first order."""
    log = _log_probs(subject, ids)[first - 1, ids[first]]
    odds = log - torch.log1p(-log.exp())
    missing = float(np.log(goal / (1 - goal)) - odds.detach())
    if missing <= 0:
        return 0
    odds.backward()
    size = sum(float(delta.grad.square().sum()) for delta in deltas.values())
    with torch.no_grad():
        for delta in deltas.values():
            delta += missing / max(size, 1e-12) * delta.grad
    return 1


def _patch(subject: Subject, slots: dict[int, Tensor], deltas: dict[int, Tensor]) -> RowPatch:
    before, after = {}, {}
    for memory in subject.memories:
        layer, table = memory.layer_id, memory.embed.weight.detach()
        rows = table[slots[layer]]
        new = (rows.float() + deltas[layer].detach()).to(table.dtype)
        before[layer], after[layer] = (part.float().cpu().numpy() for part in (rows, new))
    places = {layer: part.cpu().numpy().astype(np.int64) for layer, part in slots.items()}
    return RowPatch(places, before, after)


@torch.inference_mode()
def score_answer(subject: Subject, tokenizer, prompt: str, answer: str) -> tuple[float, int]:
    """Log-probability of the answer after the prompt, and the rank of its first token."""
    ids, first = _joined(subject, tokenizer, prompt, answer)
    log_probs = subject.logits(ids).float().log_softmax(-1)
    here = log_probs[first - 1]
    rank = int((here > here[ids[first]]).sum()) + 1
    return float(_answer(log_probs, ids, first)), rank


@dataclass(frozen=True, eq=False)
class Spill:
    """See `Edit`; corpus: what was read, None for none."""

    touched: np.ndarray
    touched_kl: np.ndarray
    others: int
    others_kl: float | None
    documents: int
    corpus: dict[str, Any] | None


def spill_over(
    subject: Subject, tokenizer, patch: RowPatch, texts, max_documents: int | None
) -> Spill:
    """KL of every prediction of a corpus before and after, by how many edited rows are read."""
    size = patch.rows
    counts, sums = np.zeros(size + 1, np.int64), np.zeros(size + 1)
    if texts is None:
        nothing = np.full(size, np.nan)
        return Spill(counts[1:], nothing, 0, None, 0, None)
    documents = Documents(texts, max_documents)
    for document in documents:
        ids = encode(tokenizer, document["text"])[: subject.context]
        shared, kl = _moved(subject, ids, patch)
        usual = ~subject.special(tokenizer, ids)
        counts += np.bincount(shared[usual], minlength=size + 1)
        sums += np.bincount(shared[usual], kl[usual], minlength=size + 1)
    means = divide(sums, counts)
    return Spill(
        counts[1:], means[1:], int(counts[0]), float(means[0]) if counts[0] else None,
        documents.read, documents.description(),
    )  # fmt: skip


def _moved(subject: Subject, ids: list[int], patch: RowPatch) -> tuple[np.ndarray, np.ndarray]:
    """Of each position the number of edited rows read there, and KL(before || after)."""
    shared = np.zeros(len(ids), np.int64)

    def count(layer: int, slots: Tensor) -> None:
        shared[:] += np.isin(slots[0].cpu().numpy(), patch.slots[layer]).sum(-1)

    with _slots_told(subject, count):
        before = subject.logits(ids).float().log_softmax(-1)
    with patch.applied(subject.model):
        after = subject.logits(ids).float().log_softmax(-1)
    return shared, (before.exp() * (before - after)).sum(-1).cpu().numpy()
