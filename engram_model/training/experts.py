"""Experts' grouped products in autocast's type.

torch's autocast passes `grouped_mm` by. Float32 weights then run as one product an expert, for
whose sizes the CPU waits, which no CUDA graph can hold; in bfloat16 all experts are one kernel (on
GPUs of compute capability 9 and 10).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

NAME = "autocast_grouped_mm"
ALIGNED = 8  # numbers: grouped products of 16-bit types want rows of a multiple of 16 bytes


def autocast_experts(model: PreTrainedModel) -> None:
    """Have the model's grouped products follow autocast; without autocast nothing changes."""
    if model.config._experts_implementation == "grouped_mm":
        model.config._experts_implementation = NAME


class _Cast:
    """Experts as they are, but for the type and padding of their weights."""

    def __init__(self, experts: nn.Module, dtype: torch.dtype, chosen: Tensor) -> None:
        self._experts = experts
        used = torch.zeros(experts.num_experts, 1, 1, dtype=torch.bool, device=chosen.device)
        used.index_fill_(0, chosen.flatten(), True)
        extra = -experts.intermediate_dim % ALIGNED
        gate_up = experts.gate_up_proj.to(dtype).unflatten(1, (2, -1))
        gate_up = F.pad(gate_up, (0, 0, 0, extra)).flatten(1, 2)
        down = F.pad(experts.down_proj.to(dtype), (0, extra))
        # a product over no tokens may leave its gradient unwritten
        self.gate_up_proj, self.down_proj = (torch.where(used, w, 0) for w in (gate_up, down))

    def __getattr__(self, name: str):
        return getattr(self._experts, name)


def _forward(experts, hidden_states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """transformers' forward; chosen: [tokens, k] experts, weights: of the same shape."""
    kind = hidden_states.device.type
    if torch.is_autocast_enabled(kind):
        experts = _Cast(experts, torch.get_autocast_dtype(kind), chosen)
    return grouped_mm_experts_forward(experts, hidden_states, chosen, weights)


ALL_EXPERTS_FUNCTIONS.register(NAME, _forward)
