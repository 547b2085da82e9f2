"""One optimiser for the whole model: Muon for matrices, Adam for everything else.

- 2-D matrices of the blocks (attention, MLPs, the memory's projection), and each expert's slice of
  the stacked experts [experts, out, in]: Muon.
- the memory's tables: Adam at `TABLE_LR` times the learning rate, no decay (paper, table 5), of the
  rows that were looked up: `TableAdam`.
- embedding, head, router, norms, convolution and stream mixing: AdamW, decay on none of them.

Muon's step is scaled to AdamW's root mean square (`match_rms_adamw`), so one rate serves all.
"""

import torch
from torch import Tensor, nn

from engram_model.errors import CheckpointError
from engram_model.training.table import TableAdam

TABLE_LR = 5.0
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalise(stack: Tensor, steps: int = NEWTON_SCHULZ_STEPS) -> Tensor:
    """Newton-Schulz iteration on the last two axes, in bfloat16, as `torch.optim.Muon` does.

    Args:
        stack: [..., rows, columns].

    Returns:
        Same shape, bfloat16, each slice with singular values near one.
    """
    a, b, c = NEWTON_SCHULZ
    tall = stack.shape[-2] > stack.shape[-1]
    x = stack.bfloat16().mT if tall else stack.bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class StackedMuon(torch.optim.Optimizer):
    """Muon that orthogonalises many matrices at once: a few large products instead of many small.

    Parameters [out, in], and [experts, out, in], where every expert's matrix is its own. The same
    update as `torch.optim.Muon`, which takes one matrix at a time: Nesterov momentum,
    Newton-Schulz, decoupled decay, step scaled by 0.2 * sqrt(max(out, in)).
    """

    def __init__(
        self, params, lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95
    ) -> None:
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for parameters in shapes.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict) -> None:
        """Parameters of one shape."""
        grads = [parameter.grad for parameter in parameters]
        momenta = [self._momentum(parameter) for parameter in parameters]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(grads, momenta, group["momentum"])
        updates = orthogonalise(torch.stack(nesterov)).to(parameters[0].dtype)
        scale = 0.2 * max(parameters[0].shape[-2:]) ** 0.5
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, updates.unbind(), alpha=-group["lr"] * scale)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        return state["momentum_buffer"]


class MuonAdamW(torch.optim.Optimizer):
    """Several optimisers that a scheduler, a clipper and a checkpoint see as one."""

    def __init__(self, model: nn.Module, lr: float, weight_decay: float = 0.1) -> None:
        groups = parameter_groups(model)
        betas, eps = (0.9, 0.95), 1e-10
        self.parts: list[torch.optim.Optimizer] = [
            StackedMuon(groups["matrix"] + groups["experts"], lr=lr, weight_decay=weight_decay),
            torch.optim.AdamW(groups["other"], lr, betas, eps, weight_decay=0.0),
        ]
        if groups["table"]:
            self.parts.append(TableAdam(groups["table"], lr * TABLE_LR, betas, eps))
        super().__init__([p for part in groups.values() for p in part], {"lr": lr})
        self._share_groups()

    def _share_groups(self) -> None:
        """A scheduler that writes `lr` here writes it in the part."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        for part in self.parts:
            part.step()

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scale all gradients, those of table rows too, to a common norm of at most `max_norm`.

        Returns:
            [] float32, the norm before.
        """
        weights = [weight for group in self.param_groups for weight in group["params"]]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        squares = [torch.nn.utils.get_total_norm(gradients).square()]
        tables = [part for part in self.parts if isinstance(part, TableAdam)]
        for part in tables:
            square = part.grad_norm_squared()
            squares += [] if square is None else [square]
        norm = torch.stack(squares).sum().sqrt()
        torch.nn.utils.clip_grads_with_norm_(weights, max_norm, norm)
        for part in tables:
            part.scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch's
        return norm

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        try:
            for part, state in zip(self.parts, state_dict["parts"], strict=True):
                part.load_state_dict(state)
        except ValueError as error:
            raise CheckpointError(
                f"the optimiser's state is not this model's, or another version's: {error}; "
                "train anew"
            ) from error
        self._share_groups()


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by how they are updated: matrix, experts, table, other."""
    groups: dict[str, list[nn.Parameter]] = dict(matrix=[], experts=[], table=[], other=[])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_kind(name, parameter)].append(parameter)
    return groups


def _kind(name: str, parameter: nn.Parameter) -> str:
    if name.endswith("engram.embed.weight"):
        return "table"
    if ".experts." in name:
        return "experts"
    is_block_matrix = parameter.ndim == 2 and ".layers." in name
    mixes = name.endswith(("_hc.fn", "mlp.gate.weight", "q_weight", "k_weight", "norm.weight"))
    return "matrix" if is_block_matrix and not mixes else "other"
