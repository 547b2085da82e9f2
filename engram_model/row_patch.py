"""Edited rows of memories: put into a model, taken out again, kept as a small safetensors file."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engram_model.errors import CheckpointError, UsageError
from engram_model.memories import memories_of

FORMAT = "engram-rows 1"


@dataclass(frozen=True, eq=False)
class RowPatch:
    """Rows of each memory layer: where, what they were, and what they become.

    Attributes:
        slots: layer -> int64 [n], rows of the layer's table.
        before, after: layer -> float32 [n, width].
    """

    slots: dict[int, np.ndarray]
    before: dict[int, np.ndarray]
    after: dict[int, np.ndarray]

    @property
    def rows(self) -> int:
        return sum(map(len, self.slots.values()))

    def apply(self, model) -> None:
        """Write the new rows.

        Raises:
            UsageError: rows that are not what they were when the patch was made.
        """
        self._write(model, self.before, self.after)

    def undo(self, model) -> None:
        """Write the old rows back. Raises UsageError: the new ones are not there."""
        self._write(model, self.after, self.before)

    @contextmanager
    def applied(self, model) -> Iterator[None]:
        """The new rows for a while."""
        self.apply(model)
        try:
            yield
        finally:
            self.undo(model)

    def _write(self, model, expected: dict, given: dict) -> None:
        memories = memories_of(model)
        for layer, slots in self.slots.items():
            if layer not in memories:
                raise UsageError(f"the model has no memory in layer {layer}, which the patch edits")
            table = memories[layer].embed.weight
            if slots.max(initial=-1) >= len(table) or table.shape[1] != given[layer].shape[1]:
                raise UsageError(f"the patch does not fit the table of layer {layer}")
            now = table[torch.from_numpy(slots)].detach().float().cpu().numpy()
            if not np.array_equal(now, self._rounded(expected[layer], table)):
                raise UsageError(
                    f"rows of layer {layer} are not those that the patch replaces: it was made for "
                    "another model, or is (or is not) applied already"
                )
        with torch.no_grad():
            for layer, slots in self.slots.items():
                table = memories[layer].embed.weight
                rows = torch.from_numpy(given[layer]).to(table.device, table.dtype)
                table[torch.from_numpy(slots).to(table.device)] = rows

    @staticmethod
    def _rounded(rows: np.ndarray, table: torch.Tensor) -> np.ndarray:
        return torch.from_numpy(rows).to(table.dtype).float().numpy()

    def save(self, file: str | Path) -> Path:
        """Write a .safetensors file."""
        from safetensors.numpy import save

        from engram_model.files import write_whole

        tensors = {
            f"{layer}.{name}": np.ascontiguousarray(part[layer])
            for name, part in vars(self).items()
            for layer in self.slots
        }
        write_whole(Path(file), save(tensors, {"format": FORMAT}))
        return Path(file)

    @classmethod
    def load(cls, file: str | Path) -> "RowPatch":
        """Raises CheckpointError: no patch there, or a damaged one."""
        from safetensors import SafetensorError, safe_open

        parts: dict[str, dict[int, np.ndarray]] = {"slots": {}, "before": {}, "after": {}}
        try:
            with safe_open(file, framework="numpy") as opened:
                if (opened.metadata() or {}).get("format") != FORMAT:
                    raise CheckpointError(f"{file} is no patch of rows")
                keys = opened.keys()  # the file itself is no iterable
                for key in keys:
                    layer, name = key.split(".")
                    parts[name][int(layer)] = opened.get_tensor(key)
            patch = cls(**parts)
            patch._check()
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read as a patch of rows: {error}") from None
        return patch

    def _check(self) -> None:
        for layer, slots in self.slots.items():
            before, after = self.before[layer], self.after[layer]
            fits = before.shape == after.shape == (len(slots), before.shape[-1])
            whole = slots.dtype == np.int64 and (slots >= 0).all()
            if not (fits and whole and np.isfinite(after).all() and np.isfinite(before).all()):
                raise CheckpointError(f"rows of layer {layer} are damaged")
