"""What happens beside the gradient: expert balancing, statistics for the log, a progress bar."""

import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from engram_model.memory import EngramMemory


class BalanceExperts(TrainerCallback):
    """Auxiliary-loss-free balancing: after each step every router's bias moves toward balance.

    `bias += speed * sign(mean load - load)`, with the load counted over the step's tokens and all
    processes. Source: DeepSeek-V3 (arXiv 2412.19437) section 2.1.2.
    """

    def __init__(self, model: nn.Module, speed: float = 1e-3) -> None:
        self.speed = speed
        self.routers = [m for m in model.modules() if isinstance(m, DeepseekV3TopkRouter)]
        self.loads: list[Tensor] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.loads = [torch.zeros_like(router.e_score_correction_bias) for router in self.routers]
        self.handles = [
            router.register_forward_hook(self._counter(i)) for i, router in enumerate(self.routers)
        ]

    def _counter(self, index: int):
        def count(router, inputs, output) -> None:
            if router.training:
                chosen = output[2].flatten()
                ones = torch.ones_like(chosen, dtype=torch.float32)
                self.loads[index].scatter_add_(0, chosen, ones)

        return count

    def on_step_end(self, args, state, control, **kwargs):
        if not self.loads:
            return
        load = torch.stack(self.loads)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(load)
        mean = load.mean(-1, keepdim=True)
        for router, move in zip(self.routers, self.speed * (mean - load).sign(), strict=True):
            router.e_score_correction_bias += move
        self.latest = load / mean
        for counter in self.loads:
            counter.zero_()

    def on_train_end(self, args, state, control, **kwargs):
        for handle in self.handles:
            handle.remove()

    def statistics(self) -> dict[str, float]:
        """Load of the busiest expert over the mean, 1 is perfect: mean and worst over layers."""
        if not self.loads or not hasattr(self, "latest"):
            return {}
        busiest = self.latest.max(-1).values
        return {
            "expert_load_max": round(float(busiest.max()), 4),
            "expert_load_mean": round(float(busiest.mean()), 4),
        }


class WatchGates(TrainerCallback):
    """Has each memory keep its last gates, for the log."""

    def __init__(self, model: nn.Module) -> None:
        self.memories = [m for m in model.modules() if isinstance(m, EngramMemory)]

    def on_train_begin(self, args, state, control, **kwargs):
        for memory in self.memories:
            memory.keep_gates = True

    def on_train_end(self, args, state, control, **kwargs):
        for memory in self.memories:
            memory.keep_gates, memory.gates = False, None

    def statistics(self) -> dict[str, float]:
        """Mean and standard deviation of each layer's gates in the last batch."""
        named = {}
        for memory in self.memories:
            if memory.gates is not None:
                named[f"gate_mean_{memory.layer_id}"] = round(float(memory.gates.mean()), 4)
                named[f"gate_std_{memory.layer_id}"] = round(float(memory.gates.std()), 4)
        return named


class LogBeforeSaving(TrainerCallback):
    """The log refuses a loss that is not finite: no checkpoint of a diverged run is kept."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log = control.should_log or control.should_save


class KeepWeights(TrainerCallback):
    """Calls `write` with the number of each of the given steps once it is done."""

    def __init__(self, steps: set[int], write: Callable[[int], None]) -> None:
        self.steps, self.write = steps, write

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            self.write(state.global_step)


class Progress(TrainerCallback):
    """One bar on stderr: steps, loss, tokens a second, time left."""

    def __init__(self, tokens_per_step: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        console = Console(file=sys.stderr)
        self.tokens_per_step = tokens_per_step
        self.bar = RichProgress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first = time.monotonic(), state.global_step
        self.bar.start()
        self.task = self.bar.add_task(
            "train", total=state.max_steps, completed=state.global_step, status=""
        )

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        steps = state.global_step - self.first
        speed = steps * self.tokens_per_step / max(1e-9, time.monotonic() - self.started)
        losses = "  ".join(
            f"{name} {logs[name]:.3f}" for name in ("loss", "eval_loss") if name in (logs or {})
        )
        status = f"{losses}  {speed:,.0f} tokens/s"
        self.bar.update(self.task, status=status)
        if not self.bar.console.is_terminal:
            print(f"step {state.global_step}/{state.max_steps}  {status}", file=sys.stderr)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.stop()
