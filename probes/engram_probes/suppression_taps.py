"""What stands in for a memory, or a part of it, while it is suppressed; how often rows are read.

A replacement is made at the memory's tap, so that weights are never touched, and before any other
tap, so that whoever else listens sees what is left.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from engram_model.memories import Memory
from engram_probes.capture import Subject, Tap, heard, tapped
from engram_probes.suppression_parts import Part

CHANGED = {"zero": "out", "gate_zero": "out", "gate_one": "gate"}  # else the rows


@contextmanager
def suppressing(
    parts: Iterable[Part], how: str, used: Mapping[int, np.ndarray] | None = None, seed: int = 0
) -> Iterator[None]:
    """While open, these parts are suppressed. used: by layer, the rows whose statistics `mean` and
    `random` take (None: the whole table)."""
    with ExitStack() as stack:
        for part in parts:
            rows = None if used is None else used[part.memory.layer_id]
            stack.enter_context(tapped(part.memory, Replacement(part, how, rows, seed).wrap))
        yield


class Replacement:
    """What a memory with a suppressed part computes instead."""

    def __init__(self, part: Part, how: str, used: np.ndarray | None, seed: int) -> None:
        self._part, self._how, self._used = part, how, used
        self._memory = part.memory
        self._device = part.memory.offsets.device
        self._generator = torch.Generator().manual_seed(10_007 * seed + part.memory.layer_id)
        self._columns = torch.from_numpy(part.columns).to(self._device)
        self._slots = None if part.slots is None else torch.from_numpy(part.slots).to(self._device)

    def wrap(self, outer: Tap | None) -> Tap:
        """A tap that replaces, and then asks the tap `outer`."""
        kept: dict[str, Tensor] = {}
        changed = CHANGED.get(self._how, "rows")

        def tap(name: str, tensor: Tensor) -> Tensor:
            if name == changed:
                tensor = self._replaced(tensor, kept)
            tensor = tensor if outer is None else outer(name, tensor)
            if name in ("slots", "conv"):
                kept[name] = tensor
            return tensor

        return tap

    def _replaced(self, tensor: Tensor, kept: dict[str, Tensor]) -> Tensor:
        if self._how == "gate_one":
            return torch.ones_like(tensor)
        if self._how == "gate_zero" and "conv" in kept:
            return kept["conv"].reshape(tensor.shape).to(tensor.dtype)
        if CHANGED.get(self._how) == "out":
            return torch.zeros_like(tensor)
        slots = kept["slots"]
        belongs = self._columns.expand(slots.shape)
        if self._slots is not None:
            belongs = belongs & torch.isin(slots, self._slots)
        return torch.where(belongs.unsqueeze(-1), self._rows(tensor, slots), tensor)

    def _rows(self, rows: Tensor, slots: Tensor) -> Tensor:
        """Other rows for all lookups, [.., C, width] as `rows` or broadcast to it."""
        if self._how == "rows_zero":
            return torch.zeros_like(rows)
        if self._how == "mean":
            return self._statistics[0].to(rows)
        if self._how == "shuffle":
            return self._memory.embed(self._permutation[slots]).to(rows)
        return self._redrawn[slots].to(rows)

    def _heads(self) -> list[np.ndarray]:
        """Of each column the rows of the table that are its."""
        table = np.arange(int(self._memory.primes.sum()))
        return np.split(table, self._memory.offsets.cpu().numpy()[1:])

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the used rows of each column, two of [C, width]."""
        weight = self._memory.embed.weight.detach()
        moments = []
        for head in self._heads():
            used = head if self._used is None else np.intersect1d(head, self._used)
            rows = weight[torch.from_numpy(used if len(used) else head).to(weight.device)].float()
            moments.append((rows.mean(0), rows.std(0, correction=0)))
        mean, deviation = (
            torch.stack(found).to(self._device) for found in zip(*moments, strict=True)
        )
        return mean, deviation

    @cached_property
    def _permutation(self) -> Tensor:
        """Row -> another row of its head, int64 [rows]."""
        shuffled = [
            torch.from_numpy(head)[torch.randperm(len(head), generator=self._generator)]
            for head in self._heads()
        ]
        return torch.cat(shuffled).to(self._device)

    @cached_property
    def _redrawn(self) -> Tensor:
        """A table of normal numbers with the mean and deviation of each head, [rows, width]."""
        width = self._memory.embed.weight.shape[1]
        mean, deviation = self._statistics
        drawn = [
            torch.randn(len(head), width, generator=self._generator).to(self._device)
            * deviation[column]
            + mean[column]
            for column, head in enumerate(self._heads())
        ]
        return torch.cat(drawn)


@contextmanager
def counting(subject: Subject, tokenizer) -> Iterator[dict[int, np.ndarray]]:
    """While open, counts how often each row is read: layer -> int64 [rows].

    Lookups at special tokens, padding (which has the id 0) and position 0 are left out.
    """
    counts = {m.layer_id: np.zeros(int(m.primes.sum()), np.int64) for m in subject.memories}
    special = torch.tensor(sorted({0, *tokenizer.all_special_ids}))
    with ExitStack() as stack:
        for memory in subject.memories:
            _count(stack, memory, special, counts[memory.layer_id])
        yield counts


def _count(stack: ExitStack, memory: Memory, special: Tensor, counts: np.ndarray) -> None:
    seen: dict[str, Tensor] = {}

    def before(_module, args, kwargs) -> None:
        ids = args[1] if len(args) > 1 else kwargs["input_ids"]
        usual = ~torch.isin(ids, special.to(ids.device)) & (ids >= 0)
        usual[:, 0] = False
        seen["usual"] = usual

    def count(name: str, tensor: Tensor) -> None:
        if name == "slots":
            read = tensor[seen["usual"]].flatten().cpu().numpy()
            np.add(counts, np.bincount(read, minlength=len(counts)), out=counts)

    stack.callback(memory.register_forward_pre_hook(before, with_kwargs=True).remove)
    stack.enter_context(heard(memory, count))
