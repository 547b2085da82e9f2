"""Gradients of looked-up rows -> rows of the table updated in place; the rest is not touched.

With `G` the sum of all gradients that were recorded for a row in a step, and `t` the step, a row
that was looked up moves by

    first  = beta1^(t - last) first  + (1 - beta1) G           last: the step of its last move
    second = beta2^(t - last) second + (1 - beta2) G^2         or mean(G^2), one number a row
    row   -= lr first / (1 - beta1^t) / (sqrt(second / (1 - beta2^t)) + eps)

and with momentum by `first = beta1^(t - last) first + G`, `row -= lr first`. So moments decay in
every step and a row moves only in those in which it was looked up: `dense_update` says the same for
a whole table, and both agree on every row, touched or not. A row that was looked up with a gradient
of zero counts as touched.

On a GPU: sort the slots, sum each run of equal ones, move its row. Nothing has a size that depends
on the data, nothing is added in an order that could change: two runs agree bit for bit, and a CUDA
graph can hold all of it. (Summing each n-gram once for all heads that share it sorts an eighth as
many keys, but n-grams that collide in one head must then be merged again: measured on an H200, that
took twice as long as sorting all slots.)
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from engram_kernels.backend import INTERPRETED, choose_backend, operator, power_of_two

State = dict[str, Tensor]
LARGEST = 2**31 - 1  # slots and places in the sorted order are 32-bit
CHUNK = 4096  # rows that stay in a CPU cache with their moments
BLOCK = 16  # places of the sorted order whose sum a longer run uses at once


@dataclass
class TableGradient:
    """Gradients of looked-up rows, as the backward pass leaves them.

    Attributes:
        slots: [...] integer, the rows that were looked up; kept as [lookups].
        rows: [..., width], the gradient of each; kept as [lookups, width].
    """

    slots: Tensor
    rows: Tensor
    _kept: dict = field(default_factory=dict, repr=False)  # what norm and update both need

    def __post_init__(self) -> None:
        if self.rows.shape[:-1] != self.slots.shape:
            raise ValueError(
                f"slots {tuple(self.slots.shape)} do not fit gradients {tuple(self.rows.shape)}"
            )
        self.slots, self.rows = self.slots.flatten(), self.rows.flatten(0, -2)


def keeps_row_gradients(table: Tensor) -> bool:
    """Whether an optimiser takes this table's gradients by rows; any other wants them dense."""
    return hasattr(table, "row_grads")


def record(table: Tensor, slots: Tensor, grad_rows: Tensor) -> None:
    """Keep the gradient of looked-up rows for the optimiser, in the list `table.row_grads`.

    Args:
        table: [rows, width], for which `keeps_row_gradients`.
        slots, grad_rows: as in `TableGradient`.
    """
    table.row_grads.append(TableGradient(slots, grad_rows))


def merge(gradients: list[TableGradient]) -> TableGradient:
    """One gradient of several lookups: those of one backward pass, or of accumulated ones."""
    if len(gradients) == 1:
        return gradients[0]
    return TableGradient(
        torch.cat([gradient.slots for gradient in gradients]),
        torch.cat([gradient.rows for gradient in gradients]),
    )


@dataclass(frozen=True)
class Rule:
    """How a row moves.

    Attributes:
        beta1: decay of the first moment.
        beta2: decay of the second (None: SGD with momentum `beta1`).
        eps: added to the root of the second moment.
        rowwise: one second moment a row, of its mean square, instead of one a number.
    """

    beta1: float = 0.9
    beta2: float | None = 0.95
    eps: float = 1e-10
    rowwise: bool = True

    @property
    def name(self) -> str:
        return "momentum" if self.beta2 is None else "adam"


def new_state(table: Tensor, rule: Rule, moment_dtype: torch.dtype = torch.float32) -> State:
    """The state before the first step, all zero.

    Returns:
        `step` [] float32; `first` [rows, width] of `moment_dtype`; `row` [rows, 1 or 2] float32,
        each row's last step (exact to 2^24) and its second moment if that is one number; `second`
        [rows, width] float32 if it is not.
    """
    rows = table.shape[0]
    adam = rule.beta2 is not None
    state = {
        "step": torch.zeros((), device=table.device),
        "first": torch.zeros_like(table, dtype=moment_dtype, requires_grad=False),
        "row": torch.zeros(rows, 2 if adam and rule.rowwise else 1, device=table.device),
    }
    if adam and not rule.rowwise:
        state["second"] = torch.zeros_like(table, dtype=torch.float32, requires_grad=False)
    return state


def dense_update(
    table: Tensor,
    slots: Tensor,
    grad_rows: Tensor,
    moments: State,
    step: int,
    lr: float,
    rule: Rule,
) -> None:
    """The same step on a whole table, in place: what `update_table` must equal.

    Args:
        table: [rows, width].
        slots: [n] int64; grad_rows: [n, width].
        moments: `first` [rows, width] and `second` [rows, 1 or width], zero before step 1.
        step: counts from 1.
    """
    gradient = torch.zeros_like(table).index_add_(0, slots, grad_rows.to(table.dtype))
    touched = torch.zeros_like(table[:, :1]).index_fill_(0, slots, 1.0)
    first, second = moments["first"], moments.get("second")
    if rule.beta2 is None or second is None:
        first.mul_(rule.beta1).add_(gradient)
        table.sub_(lr * first * touched)
        return
    square = gradient.square().mean(-1, keepdim=True) if rule.rowwise else gradient.square()
    first.mul_(rule.beta1).add_(gradient, alpha=1 - rule.beta1)
    second.mul_(rule.beta2).add_(square, alpha=1 - rule.beta2)
    root = (second / (1 - rule.beta2**step)).sqrt() + rule.eps
    table.sub_(lr / (1 - rule.beta1**step) * first / root * touched)


def grad_norm_squared(table: Tensor, gradient: TableGradient, backend: str = "auto") -> Tensor:
    """Square of the norm that the dense gradient of the table would have, [] float32."""
    if choose_backend(backend, table, gradient.slots, gradient.rows) == "torch":
        return _summed(gradient)[1].square().sum()
    return _table_norm(*_runs(gradient))


def update_table(
    table: Tensor,
    gradient: TableGradient,
    state: State,
    lr: float | Tensor,
    rule: Rule,
    scale: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Move the rows that were looked up, in place, and count the step.

    Sums and moments are float32; a bfloat16 table (or first moment) is rounded to the nearest.

    Args:
        table: [rows, width] float32 or bfloat16.
        state: of `new_state`; changed in place.
        lr: a [] tensor on the table's device can change between replays of a CUDA graph.
        scale: [] float32, multiplies the gradient: clipping, or the mean over processes.

    Raises:
        ValueError: gradients of another width than the table's, or a table of 2^31 rows or more.
    """
    _check(table, gradient)
    if choose_backend(backend, table, gradient.slots, gradient.rows) == "torch":
        _update_in_torch(table, gradient, state, lr, rule, scale)
        return
    if not isinstance(lr, Tensor):
        lr = torch.full((), lr, device=table.device)
    _table_update(
        *(table, state["first"], state["row"], state.get("second"), state["step"]),
        *(*_runs(gradient), lr, scale),
        *(rule.beta1, rule.beta2, rule.eps),
    )


def _check(table: Tensor, gradient: TableGradient) -> None:
    if gradient.rows.shape[-1] != table.shape[-1]:
        raise ValueError(
            f"gradients of width {gradient.rows.shape[-1]} for a table of width {table.shape[-1]}"
        )
    if max(len(table), gradient.slots.numel()) > LARGEST:
        raise ValueError(f"{len(table)} rows or {gradient.slots.numel()} lookups: 2^31 - 1 at most")


def _runs(gradient: TableGradient) -> tuple[Tensor, ...]:
    """Slots and gradients, and the sorted runs: what the kernels need."""
    if "runs" not in gradient._kept:
        slots, grads = gradient.slots.contiguous(), gradient.rows.contiguous()
        gradient._kept["runs"] = slots, grads, *_sort_rows(slots, grads)
    return gradient._kept["runs"]


def _summed(gradient: TableGradient) -> tuple[Tensor, Tensor]:
    """Distinct rows in ascending order, and the float32 sum of each one's gradients."""
    if "summed" not in gradient._kept:
        slots, order = gradient.slots.sort(stable=True)
        rows, counts = slots.unique_consecutive(return_counts=True)
        each = gradient.rows.float()
        begins = counts.cumsum(0) - counts
        gradient._kept["summed"] = rows, F.embedding_bag(order, each, begins, mode="sum")
    return gradient._kept["summed"]


@torch.no_grad()
def _update_in_torch(table, gradient, state, lr, rule: Rule, scale) -> None:
    """A few thousand rows at a time, which stay in the cache throughout."""
    rows, sums = _summed(gradient)
    state["step"] += 1
    for begin in range(0, len(rows), CHUNK):
        part, summed = rows[begin : begin + CHUNK], sums[begin : begin + CHUNK]
        if scale is not None:
            summed = summed * scale
        _move_rows(table, part, summed, state, float(lr), rule)


def _move_rows(table, rows: Tensor, sums: Tensor, state: State, lr: float, rule: Rule) -> None:
    step = float(state["step"])
    row = state["row"][rows]
    elapsed = step - row[:, :1]
    first = state["first"].index_select(0, rows).float().mul_(rule.beta1**elapsed)
    if rule.beta2 is None:
        first.add_(sums)
        size = torch.full_like(elapsed, -lr)
    else:
        first.add_(sums, alpha=1 - rule.beta1)
        second = _second_moment(rows, row, sums, elapsed, state, rule)
        root = (second / (1 - rule.beta2**step)).sqrt_().add_(rule.eps)
        size = root.reciprocal_().mul_(-lr / (1 - rule.beta1**step))
    row[:, 0] = step
    state["row"].index_copy_(0, rows, row)
    state["first"].index_copy_(0, rows, first.to(state["first"].dtype))
    moved = table.index_select(0, rows).float().add_(first.mul_(size))
    table.index_copy_(0, rows, moved.to(table.dtype))


def _second_moment(rows, row: Tensor, sums: Tensor, elapsed: Tensor, state: State, rule: Rule):
    """The decayed second moments with this step's squares; written to `row` or to the state."""
    assert rule.beta2 is not None
    decay = rule.beta2**elapsed
    if rule.rowwise:
        mean = sums.square().mean(-1, keepdim=True)
        row[:, 1:] = row[:, 1:] * decay + (1 - rule.beta2) * mean
        return row[:, 1:]
    second = state["second"].index_select(0, rows).mul_(decay)
    second.addcmul_(sums, sums, value=1 - rule.beta2)
    state["second"].index_copy_(0, rows, second)
    return second


# A program of the table kernel moves the rows of the runs that end in its tile of the sorted order.
# It sums a run from its end: entry by entry through the tile, at once through the block that the
# tile is part of, then block by block through `carry`. That holds, for each block whose last run
# goes on in the next, the sum of that run's entries in the block; no other row of it is used.


@triton.jit
def _rows(base, index, active, column, WIDTH: tl.constexpr):
    """[n, columns] float32: rows `index` of a [.., WIDTH] array, zero where not active."""
    mask = active[:, None] & (column < WIDTH)[None, :]
    offset = index.to(tl.int64)[:, None] * WIDTH + column[None, :]
    return tl.load(base + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _sum_in_block(
    grads, order, sorted_slots, slot, block, end, column, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """[columns]: sum of the entries of `slot` in a block, before the place `end`."""
    place = block * BLOCK + tl.arange(0, BLOCK)
    here = tl.load(sorted_slots + place, mask=place < end, other=-1) == slot
    entry = tl.load(order + place, mask=place < end, other=0)
    return tl.sum(_rows(grads, entry, here, column, WIDTH), 0)


@triton.jit(do_not_specialize=["entries"])
def _carry_kernel(
    carry, grads, order, sorted_slots, entries,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of a block's last run, if the next block goes on with it."""
    block, column = tl.program_id(0), tl.arange(0, COLUMNS)
    end = (block + 1) * BLOCK
    if end < entries:
        slot = tl.load(sorted_slots + end - 1)
        if slot == tl.load(sorted_slots + end):
            part = _sum_in_block(grads, order, sorted_slots, slot, block, end, column, WIDTH, BLOCK)
            tl.store(carry + block.to(tl.int64) * WIDTH + column, part, mask=column < WIDTH)


@triton.jit
def _sum_before(
    grads, order, sorted_slots, carry, slot, end, column, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """[columns]: sum of all entries of `slot` before the place `end`."""
    block = end // BLOCK
    total = _sum_in_block(grads, order, sorted_slots, slot, block, end, column, WIDTH, BLOCK)
    while block > 0:
        earlier = block - BLOCK + tl.arange(0, BLOCK)
        newest = sorted_slots + (earlier + 1) * BLOCK - 1
        here = tl.load(newest, mask=earlier >= 0, other=-1) == slot
        total += tl.sum(_rows(carry, earlier, here, column, WIDTH), 0)
        block = tl.where(tl.min(here.to(tl.int32), 0) > 0, block - BLOCK, 0)
    return total


@triton.jit
def _store_rows(base, index, values, active, column, WIDTH: tl.constexpr, BY_BITS: tl.constexpr):
    """Float32 rows into an array of any type; the interpreter would cut off bfloat16."""
    mask = active[:, None] & (column < WIDTH)[None, :]
    pointer = base + index[:, None] * WIDTH + column[None, :]
    kind: tl.constexpr = base.dtype.element_ty
    if BY_BITS and kind == tl.bfloat16:
        bits = values.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        tl.store(pointer, (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=mask)
    else:
        tl.store(pointer, values.to(kind), mask=mask)


@triton.jit
def _settings_kernel(settings, step, lr, scale, log_beta1, log_beta2, ADAM: tl.constexpr):
    """Counts the step; settings: step, lr / (1 - beta1^t), 1 / (1 - beta2^t), gradient's scale."""
    now = tl.load(step) + 1
    tl.store(step, now)
    rate, correction = tl.load(lr).to(tl.float32), now * 0 + 1
    if ADAM:  # in float64: 1 - 0.999 in float32 has three good digits fewer
        time = now.to(tl.float64)
        rate = (rate / (1 - tl.exp(time * log_beta1))).to(tl.float32)
        correction = (1 / (1 - tl.exp(time * log_beta2))).to(tl.float32)
    tl.store(settings, now)
    tl.store(settings + 1, rate)
    tl.store(settings + 2, correction)
    tl.store(settings + 3, 1.0 if scale is None else tl.load(scale))


@triton.jit(do_not_specialize=["entries"])
def _table_kernel(
    table, first, row, second, squares, settings, grads, order, sorted_slots, carry,
    entries, log2_beta1, log2_beta2, blend1, blend2, eps,
    RULE: tl.constexpr, ROWWISE: tl.constexpr, BY_BITS: tl.constexpr, WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of the runs that end in one tile: move them, or sum their squares."""
    STRIDE: tl.constexpr = 2 if RULE == "adam" and ROWWISE else 1  # numbers in `row`
    begin = tl.program_id(0) * TILE
    lane, column = tl.arange(0, TILE), tl.arange(0, COLUMNS)
    place = begin + lane
    inside = place < entries
    slot = tl.load(sorted_slots + place, mask=inside, other=-1)
    newer = tl.load(sorted_slots + place + 1, mask=place + 1 < entries, other=-1)
    older = tl.load(sorted_slots + place - 1, mask=inside & (lane > 0), other=-1)
    before = tl.load(sorted_slots + begin - 1, mask=begin > 0, other=-1)
    entry = tl.load(order + place, mask=inside, other=0)
    if RULE != "norm":
        now, rate = tl.load(settings), tl.load(settings + 1)
        correction, scale = tl.load(settings + 2), tl.load(settings + 3)
    live = slot != newer  # a run ends here
    total = 0.0
    if tl.max(live.to(tl.int32), 0) > 0:
        carried = tl.zeros([COLUMNS], tl.float32)
        entered = live & (slot == before)
        if tl.max(entered.to(tl.int32), 0) > 0:
            carried = _sum_before(
                grads, order, sorted_slots, carry, before, begin, column, WIDTH, BLOCK
            )
        # All loads of the common case, runs of one entry, fly together; those of gradients before
        # the end of a run are for the cache.
        sums = _rows(grads, entry, inside, column, WIDTH)
        index = slot.to(tl.int64)
        if RULE != "norm":
            weight = _rows(table, index, live, column, WIDTH)
            moment = _rows(first, index, live, column, WIDTH)
            elapsed = now - tl.load(row + index * STRIDE, mask=live, other=0.0)
            if STRIDE == 2:
                power = tl.load(row + index * 2 + 1, mask=live, other=0.0)
            elif RULE == "adam":
                power = _rows(second, index, live, column, WIDTH)
        back = 1
        more = live & (older == slot)
        while tl.max(more.to(tl.int32), 0) > 0:
            entry = tl.load(order + place - back, mask=more, other=0)
            sums += _rows(grads, entry, more, column, WIDTH)
            back += 1
            more = more & (lane >= back)
            more = more & (tl.load(sorted_slots + place - back, mask=more, other=-1) == slot)
        sums += tl.where(entered[:, None], carried[None, :], 0.0)
        if RULE == "norm":
            total = tl.sum(tl.where(live[:, None], sums * sums, 0.0))
        else:
            tl.debug_barrier()  # warps that hold the same row have all read it before one writes
            sums *= scale
            moment = moment * tl.exp2(elapsed * log2_beta1)[:, None] + sums * blend1
            if RULE == "momentum":
                weight -= rate * moment
            elif STRIDE == 2:
                mean = tl.sum(sums * sums, 1) / WIDTH
                power = power * tl.exp2(elapsed * log2_beta2) + mean * blend2
                root = tl.sqrt(power * correction) + eps
                weight -= (rate / root)[:, None] * moment
                tl.store(row + index * 2 + 1, power, mask=live)
            else:
                power = power * tl.exp2(elapsed * log2_beta2)[:, None] + sums * sums * blend2
                weight -= rate * moment / (tl.sqrt(power * correction) + eps)
                _store_rows(second, index, power, live, column, WIDTH, BY_BITS)
            tl.store(row + index * STRIDE, elapsed * 0 + now, mask=live)
            _store_rows(first, index, moment, live, column, WIDTH, BY_BITS)
            _store_rows(table, index, weight, live, column, WIDTH, BY_BITS)
    if RULE == "norm":
        tl.store(squares + tl.program_id(0), total)


def _tile(width: int) -> dict[str, int]:
    """Launch options: 16 numbers a thread, and one warp if it can be: that waits for no other."""
    columns = power_of_two(width)
    tile = max(4, min(BLOCK, 512 // columns))
    warps = max(1, min(8, tile * columns // 512))
    return dict(WIDTH=width, COLUMNS=columns, TILE=tile, num_warps=warps)


def _launch_sort(slots: Tensor, grads: Tensor) -> tuple[Tensor, ...]:
    """Sort the slots and sum what crosses blocks."""
    entries, width = grads.shape
    _, _, carry = results = _fake_sort(slots, grads)
    if not entries:
        return results
    sorted_slots, order = slots.int().sort(stable=True)
    tile = _tile(width)
    _carry_kernel[(len(carry),)](
        *(carry, grads, order, sorted_slots, entries),
        *(width, tile["COLUMNS"], BLOCK),
        num_warps=tile["num_warps"],
    )
    return order, sorted_slots, carry


def _fake_sort(slots: Tensor, grads: Tensor) -> tuple[Tensor, ...]:
    """Order, sorted slots, sums of runs that cross blocks: all sizes are known beforehand."""
    entries, width = grads.shape
    return (
        slots.new_empty(entries, dtype=torch.int64),
        slots.new_empty(entries, dtype=torch.int32),
        slots.new_empty((triton.cdiv(entries, BLOCK), width), dtype=torch.float32),
    )


def _launch_rows(rule: str, state: tuple, settings, squares, slots, grads, runs, numbers) -> None:
    """The table kernel over all tiles."""
    tile = _tile(grads.shape[-1])
    _table_kernel[(triton.cdiv(len(slots), tile["TILE"]),)](
        *(*state, squares, settings, grads, *runs),
        *(len(slots), *numbers),
        RULE=rule,
        ROWWISE=state[3] is None,
        BY_BITS=INTERPRETED,
        BLOCK=BLOCK,
        **tile,
    )


def _launch_norm(slots: Tensor, grads: Tensor, *runs: Tensor) -> Tensor:
    tiles = triton.cdiv(len(slots), _tile(grads.shape[-1])["TILE"])
    squares = grads.new_empty(tiles, dtype=torch.float32)
    if len(slots):
        _launch_rows("norm", (None,) * 4, None, squares, slots, grads, runs, (0.0,) * 5)
    return squares.sum()


def _launch_update(table, first, row, second, step, slots, grads, *rest) -> None:
    *runs, lr, scale, beta1, beta2, eps = rest
    rule = "momentum" if beta2 is None else "adam"
    settings = torch.empty(4, device=table.device)
    logs = [math.log(beta) if beta else -math.inf for beta in (beta1, beta2)]
    _settings_kernel[(1,)](settings, step, lr, scale, *logs, ADAM=rule == "adam", num_warps=1)
    if not len(slots):
        return
    blends = (1.0, 0.0) if beta2 is None else (1 - beta1, 1 - beta2)
    numbers = (*(log / math.log(2) for log in logs), *blends, eps)
    state = (table, first, row, second)
    _launch_rows(rule, state, settings, None, slots, grads, runs, numbers)


_RUNS = "Tensor order, Tensor sorted_slots, Tensor carry"
_sort_rows = operator(
    "sort_rows(Tensor slots, Tensor grads) -> (Tensor, Tensor, Tensor)",
    _launch_sort,
    _fake_sort,
)
_table_norm = operator(
    f"table_norm(Tensor slots, Tensor grads, {_RUNS}) -> Tensor",
    _launch_norm,
    lambda slots, grads, *runs: grads.new_empty((), dtype=torch.float32),
)
_table_update = operator(
    "table_update(Tensor(a!) table, Tensor(b!) first, Tensor(c!) row, Tensor(d!)? second, "
    f"Tensor(e!) step, Tensor slots, Tensor grads, {_RUNS}, Tensor lr, Tensor? scale, "
    "float beta1, float? beta2, float eps) -> ()",
    _launch_update,
    lambda *arguments: None,
)
