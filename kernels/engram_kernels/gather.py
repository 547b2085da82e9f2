"""Slots -> rows of the memory table."""

import torch.nn.functional as F
from torch import Tensor


def lookup(table: Tensor, slots: Tensor) -> Tensor:
    """Read rows: table [rows, width], slots [...] int64 -> [..., width] in the table's dtype."""
    return F.embedding(slots, table)
