"""Optimiser of the memory's tables: it moves the rows that were looked up and reads no others.

A table has no `.grad`: its lookup records the gradients of rows (`table_update.record`), and this
optimiser takes them from there, over all processes. What it computes is `table_update`'s formula,
the same as a dense Adam whose moments decay in every step and which moves only the rows that were
looked up in it.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from engram_kernels.table_update import (
    Rule,
    TableGradient,
    grad_norm_squared,
    merge,
    new_state,
    update_table,
)


class TableAdam(torch.optim.Optimizer):
    """Lazy Adam on rows, or SGD with lazy momentum.

    `step` uses the recorded gradients up. With `torch.distributed` every process must take the same
    steps: they exchange gradients, and each applies their mean in the same order, so that tables
    stay equal bit for bit.

    Args:
        params: tables [rows, width], float32 or bfloat16.
        momentum: use SGD with this momentum; `betas`, `eps` and `rowwise` are then not used.
        rowwise: one second moment a row instead of one a number.
        moment_dtype: of the first moment, float32 or bfloat16.
        backend: as in `choose_backend`.

    Attributes:
        scale: [] float32, multiplies the gradients of the next step; `clip_grad_norm_` sets it.
    """

    def __init__(
        self,
        params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-10,
        *,
        momentum: float | None = None,
        rowwise: bool = True,
        moment_dtype: torch.dtype = torch.float32,
        backend: str = "auto",
    ) -> None:
        decays = betas if momentum is None else (momentum,)
        if not all(0 <= decay < 1 for decay in decays):
            raise ValueError(f"betas and momentum must be in [0, 1), not {decays}")
        super().__init__(
            params, dict(lr=lr, betas=betas, eps=eps, momentum=momentum, rowwise=rowwise)
        )
        self.moment_dtype, self.backend = moment_dtype, backend
        self.scale: Tensor | None = None
        self._collected: dict[Tensor, TableGradient] = {}

    def add_param_group(self, param_group: dict) -> None:
        """As torch's; from now on lookups record the gradients of these tables by rows."""
        super().add_param_group(param_group)
        for table in self.param_groups[-1]["params"]:
            table.row_grads = []

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for table in group["params"]:
                gradient = self._collect(table)
                if gradient is not None:
                    self._move(table, gradient, group)
        self.scale = None
        self._collected.clear()
        return loss

    def _move(self, table: Tensor, gradient: TableGradient, group: dict) -> None:
        (beta1, beta2), momentum = group["betas"], group["momentum"]
        adam = Rule(beta1, beta2, group["eps"], group["rowwise"])
        rule = adam if momentum is None else Rule(momentum, None)
        state = self.state[table]
        if not state:
            state.update(new_state(table, rule, self.moment_dtype))
        scale = self.scale
        if _processes() > 1:
            scale = (torch.ones((), device=table.device) if scale is None else scale) / _processes()
        update_table(table, gradient, state, group["lr"], rule, scale, self.backend)

    @torch.no_grad()
    def grad_norm_squared(self) -> Tensor | None:
        """Square of the norm of all recorded gradients, each row's summed first (None: no rows)."""
        squares = []
        for group in self.param_groups:
            for table in group["params"]:
                gradient = self._collect(table)
                if gradient is not None:
                    squares.append(grad_norm_squared(table, gradient, self.backend))
        return torch.stack(squares).sum() / _processes() ** 2 if squares else None

    def _collect(self, table: Tensor) -> TableGradient | None:
        """What all processes recorded since the last step; kept, as norm and step both ask."""
        if table.grad is not None:
            raise RuntimeError(
                "a table has a dense gradient: read its rows with a lookup that records theirs"
            )
        recorded = table.row_grads
        if recorded or (_processes() > 1 and table not in self._collected):
            known = [self._collected[table]] if table in self._collected else []
            gradient = _of_all_processes(table, merge(recorded) if recorded else None)
            self._collected[table] = merge([*known, gradient])
            recorded.clear()
        collected = self._collected.get(table)
        return collected if collected is not None and collected.slots.numel() else None

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._collected.clear()
        for group in self.param_groups:
            for table in group["params"]:
                table.row_grads.clear()

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, which would round the state to the table's type."""
        super().load_state_dict(state_dict)
        tables = [table for group in self.param_groups for table in group["params"]]
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        for index, table in zip(saved, tables, strict=True):
            if index in state_dict["state"]:
                self.state[table] = {
                    name: tensor.to(table.device, copy=True)
                    for name, tensor in state_dict["state"][index].items()
                }


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _of_all_processes(table: Tensor, own: TableGradient | None) -> TableGradient:
    """Every process's slots and gradients, in the order of their ranks: the same on all."""
    if own is None:
        own = TableGradient(
            torch.zeros(0, dtype=torch.int64, device=table.device),
            torch.zeros(0, table.shape[1], dtype=table.dtype, device=table.device),
        )
    if _processes() == 1:
        return own
    size = torch.tensor([len(own.slots)], device=table.device)
    counts = torch.cat(_all_gather(size)).tolist()
    slots, rows = own.slots.long(), own.rows.to(table.dtype)
    short = max(counts) - len(slots)
    all_slots = _all_gather(torch.cat([slots, slots.new_zeros(short)]))
    all_rows = _all_gather(torch.cat([rows, rows.new_zeros(short, rows.shape[1])]))
    slots, rows = (
        torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
        for parts in (all_slots, all_rows)
    )
    return TableGradient(slots, rows)


def _all_gather(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(_processes())]
    dist.all_gather(parts, tensor)
    return parts
