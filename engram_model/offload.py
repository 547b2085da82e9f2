"""A memory's table that stays in host memory while the model is on a GPU.

`engram_table` in the config says where the tables are: "device" with the other weights, "host" in
pinned memory, "file" in the checkpoint's mapped file. Results are the same; only reading is
possible: a table that is trained belongs on the device.
"""

import torch
from torch import Tensor, nn

from engram_kernels.offload import HostTable, OffloadedTable, Pending, Traffic, most_frequent
from engram_model.errors import UsageError


class HostEmbedding(nn.Embedding):
    """An embedding whose weight stays where it is: `.to(device)` and `.to(dtype)` leave it alone.

    It is saved and loaded as any weight, and does not ask for gradients.

    Args:
        rows, width: of the table.
        mapped: the weight will be a file's pages, which are not to be copied into memory.
    """

    def __init__(self, rows: int, width: int, mapped: bool = False) -> None:
        meta = torch.get_default_device().type == "meta"
        super().__init__(rows, width, device="meta" if meta else "cpu")
        self.weight.requires_grad_(False)
        self.mapped = mapped
        self._host: HostTable | None = None
        self._offloaded: OffloadedTable | None = None
        self._built_for: tuple | None = None

    @classmethod
    def over(cls, table: HostTable) -> "HostEmbedding":
        """An embedding of a table that is in memory already; nothing is copied."""
        with torch.device("meta"):
            embedding = cls(table.rows.shape[0], table.rows.shape[1], table.mapped)
        embedding.weight = nn.Parameter(table.rows, requires_grad=False)
        embedding._host = table
        return embedding

    def prefetch(self, slots: Tensor) -> Pending:
        """Start to fetch the rows of slots [...]; `wait()` gives [..., width] on their device.

        Raises:
            UsageError: in training.
        """
        if self.training and torch.is_grad_enabled():
            raise UsageError(
                'a table in host memory cannot be trained: set engram_table="device", or call '
                "model.eval() to use the model"
            )
        return self.offloaded(slots.device).prefetch(slots)

    def forward(self, slots: Tensor) -> Tensor:
        """Rows of slots [...] -> [..., width], fetched now."""
        return self.prefetch(slots).wait()

    def keep(self, slots: Tensor, rows: int) -> None:
        """Hold the `rows` most frequent of these slots on their device: a sample of the text to
        come. Until the weight changes."""
        self.offloaded(slots.device).keep(most_frequent(slots, rows))

    def statistics(self, reset: bool = False) -> Traffic | None:
        """What was asked of the table so far; None before the first lookup."""
        return None if self._offloaded is None else self._offloaded.statistics(reset)

    def offloaded(self, device: torch.device) -> OffloadedTable:
        """The table as `device` reads it, set up at the first call and when the weight changed."""
        if self._offloaded is None or self._built_for != self._state(device):
            with torch.inference_mode(False):
                self._offloaded = OffloadedTable(self._table(device), device)
            self._built_for = self._state(device)
        return self._offloaded

    def _state(self, device: torch.device) -> tuple:
        return device, self.weight.data_ptr(), self.weight._version

    def _table(self, device: torch.device) -> HostTable:
        """The weight itself; for a GPU moved once, to huge pages that can be pinned."""
        if self._host is None or self._host.rows.data_ptr() != self.weight.data_ptr():
            if self.mapped or device.type == "cpu":
                return HostTable(self.weight, self.mapped)
            self._host = HostTable.copy_of(self.weight)
            self.weight.data = self._host.rows
        return self._host

    def _apply(self, fn, recurse: bool = True) -> "HostEmbedding":
        return self

    def __getstate__(self) -> dict:
        """A copy of the model has streams and buffers of its own."""
        return {**self.__dict__, "_offloaded": None, "_built_for": None}
