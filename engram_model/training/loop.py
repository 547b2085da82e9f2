"""transformers' Trainer with our optimiser, expert balancing and log."""

import logging
import math

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from engram_model.errors import EngramError, UsageError
from engram_model.memory import EngramMemory
from engram_model.training.callbacks import BalanceExperts, LogBeforeSaving, Progress, WatchGates
from engram_model.training.experts import autocast_experts
from engram_model.training.graphed import NO_MASK, CaptureError, GraphedStep, Inputs
from engram_model.training.optimizer import MuonAdamW

logger = logging.getLogger(__name__)
DIVERGED = {"loss": "loss", "grad_norm": "gradient", "train_loss": "mean loss"}


class EngramTrainer(Trainer):
    """Trainer whose log also holds the experts' load and the memories' gates.

    Args:
        graph: replay forward and backward pass as a CUDA graph (None: if that is possible).

    Raises:
        UsageError: a graph is asked for and cannot be, see `why_no_graph`.
    """

    def __init__(
        self,
        *,
        weight_decay: float,
        balance: float,
        tokens_per_step: int,
        graph: bool | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        autocast_experts(self.model)
        why_not = why_no_graph(self.model, self.args)
        if graph and why_not:
            raise UsageError(f"a training step cannot be a CUDA graph: {why_not}")
        self.must_graph = bool(graph)
        self.graphed: GraphedStep | None = None
        if graph is not False and not why_not:
            self.graphed = GraphedStep(self.model, self._backward)
        self.weight_decay = weight_decay
        # The tables' gradients go to their optimiser by rows, which exchanges them itself.
        tables = [
            f"{name}.embed.weight"
            for name, module in self.model.named_modules()
            if isinstance(module, EngramMemory)
        ]
        self.model._ddp_params_and_buffers_to_ignore = tables
        self.tokens_per_step = tokens_per_step
        self.remove_callback(PrinterCallback)
        balancing, gates = BalanceExperts(self.model, balance), WatchGates(self.model)
        self.watchers: tuple[BalanceExperts, WatchGates] = (balancing, gates)
        for callback in (*self.watchers, LogBeforeSaving()):
            self.add_callback(callback)
        if self.is_world_process_zero():
            self.add_callback(Progress(tokens_per_step))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if getattr(self, "optimizer", None) is None:
            self.optimizer: torch.optim.Optimizer = MuonAdamW(
                self.model, self.args.learning_rate, weight_decay=self.weight_decay
            )
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch=None) -> Tensor:
        """As Trainer's, which is what a graph captures."""
        if self.graphed is None:
            return super().training_step(model, inputs, num_items_in_batch)
        inputs = self._prepare_inputs(inputs)
        if num_items_in_batch is None:
            given = inputs
        else:
            items = torch.as_tensor(num_items_in_batch, device=self.args.device)
            given = {**inputs, "num_items_in_batch": items}
        try:
            return self.graphed(given)
        except CaptureError as error:
            if self.must_graph:
                raise
            logger.warning("%s; training goes on without", error)
            self.graphed = None
            return super().training_step(model, inputs, num_items_in_batch)

    def _backward(self, inputs: Inputs) -> Tensor:
        given: dict = {**inputs, "attention_mask": NO_MASK}
        items = given.pop("num_items_in_batch", None)
        return super().training_step(self.model_wrapped, given, items)

    def _clip_grad_norm(self, model: nn.Module):
        """Trainer's own sees no gradient of the tables."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return optimizer.clip_grad_norm_(self.args.max_grad_norm)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for name, what in DIVERGED.items():
            if not math.isfinite(logs.get(name, 0.0)):
                raise EngramError(
                    f"the {what} is {logs[name]} at step {self.state.global_step}: lower the "
                    "learning rate; the last checkpoint is kept"
                )
        if "loss" in logs:
            for watcher in self.watchers:
                logs.update(watcher.statistics())
        super().log(logs, start_time)


def why_no_graph(model: nn.Module, args: TrainingArguments) -> str | None:
    """Why the forward and backward pass of a step cannot be one CUDA graph, if so."""
    config = model.config
    reasons = {
        "there is no CUDA device": args.device.type != "cuda",
        "several devices train": args.world_size > 1 or args.n_gpu > 1,
        "gradients of several batches accumulate": args.gradient_accumulation_steps > 1,
        "the memory's table is not on the device": config.engram_table != "device",
        "attention has dropout": config.attention_dropout > 0,
        "attention needs a mask": config._attn_implementation != "sdpa",
        "weights are trained without autocast": not args.bf16,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
