"""A training step's forward and backward pass as one CUDA graph, replayed.

Small models launch thousands of short kernels a step, which takes the CPU longer than the GPU needs
to run them. A graph is launched at once. It is a recording: of fixed shapes, at fixed addresses,
without the CPU ever looking at a result. So what a step would look at must be settled before:

- the causal mask: transformers looks into position ids for packed sequences; give `NO_MASK`;
- sizes of the experts' products: `training.experts`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engram_kernels.table_update import TableGradient, keeps_row_gradients
from engram_model.errors import EngramError
from engram_model.memory import EngramMemory

Inputs = dict[str, Tensor]
WARM = 3  # passes before the capture: kernels are compiled in them, workspaces allocated
NO_MASK: dict[str, Any] = {"full_attention": None}  # as attention_mask: causal by SDPA's own flag


class CaptureError(EngramError):
    """A CUDA graph cannot hold this step."""


class CudaGraph:
    """Captures a function's launches and replays them; `run` is how it must have run before."""

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()
        self.stream = torch.cuda.Stream()

    def run(self, function: Callable) -> Any:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = function()
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def capture(self, function: Callable) -> Any:
        with torch.cuda.graph(self.graph, stream=self.stream):
            return function()

    def replay(self) -> None:
        self.graph.replay()


@dataclass
class Left:
    """What a pass leaves behind; a replay writes the same tensors anew."""

    loss: Tensor
    grads: dict[nn.Parameter, Tensor]
    row_grads: dict[nn.Parameter, list[tuple[Tensor, Tensor]]]  # slots and rows of each lookup
    gates: dict[EngramMemory, Tensor | None]

    @classmethod
    def by(cls, model: nn.Module, loss: Tensor) -> "Left":
        weights = list(model.parameters())
        tables = [weight for weight in weights if keeps_row_gradients(weight)]
        memories = [module for module in model.modules() if isinstance(module, EngramMemory)]
        return cls(
            loss,
            {weight: weight.grad for weight in weights if weight.grad is not None},
            {table: [(g.slots, g.rows) for g in table.row_grads] for table in tables},
            {memory: memory.gates for memory in memories},
        )

    def put(self) -> None:
        """Where the optimiser and the log look for it."""
        for weight, grad in self.grads.items():
            weight.grad = grad
        for table, lookups in self.row_grads.items():
            table.row_grads[:] = [TableGradient(slots, rows) for slots, rows in lookups]
        for memory, gates in self.gates.items():
            memory.gates = gates


class GraphedStep:
    """Calls `backward`, and from the fourth time on replays it.

    The first `WARM` calls run as they are and are steps like any other, and a capture runs nothing:
    so whatever else a pass changes on the device, such as counted loads, changes once a call.
    Gradients do not accumulate: a replay replaces those that are there. Inputs of other names,
    shapes or types than the first call's run as they are, always. No dropout is redrawn.

    Args:
        model: whose parameters get gradients.
        backward: inputs -> loss; a forward and a backward pass on one CUDA device.
        graph: captures and replays (None: a CUDA graph).
    """

    def __init__(
        self, model: nn.Module, backward: Callable[[Inputs], Tensor], graph: Any = None
    ) -> None:
        self.model, self.backward = model, backward
        self.graph = graph or CudaGraph()
        self.calls = 0
        self.inputs: Inputs = {}
        self.left: Left | None = None

    def __call__(self, inputs: Inputs) -> Tensor:
        """The loss, without gradient.

        Raises:
            CaptureError: in the capture; no gradients are left, and `backward` can be called.
        """
        if not self.inputs:
            self.inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        if _shapes(inputs) != _shapes(self.inputs):
            return self.backward(inputs)
        self.calls += 1
        if self.calls <= WARM:
            return self.graph.run(lambda: self.backward(inputs))
        for name, tensor in inputs.items():
            self.inputs[name].copy_(tensor)
        if self.left is None:
            self.left = self._capture()
        self.graph.replay()
        self.left.put()
        return self.left.loss.clone()

    def _capture(self) -> Left:
        self.model.zero_grad()  # so that the graph allocates the gradients
        try:
            return self.graph.capture(lambda: Left.by(self.model, self.backward(self.inputs)))
        except Exception as error:
            self.model.zero_grad()
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CaptureError(f"a CUDA graph cannot hold this training step: {reason}") from error


def _shapes(inputs: Inputs) -> dict[str, tuple]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in inputs.items()}
