"""transformers' Trainer with our optimiser, expert balancing and log."""

import math

import torch
from torch import nn
from transformers import PrinterCallback, Trainer

from engram_model.errors import EngramError
from engram_model.memory import EngramMemory
from engram_model.training.callbacks import BalanceExperts, Progress, WatchGates
from engram_model.training.optimizer import MuonAdamW


class EngramTrainer(Trainer):
    """Trainer whose log also holds the experts' load and the memories' gates."""

    def __init__(
        self, *, weight_decay: float, balance: float, tokens_per_step: int, **kwargs
    ) -> None:
        super().__init__(**kwargs)
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
        for callback in self.watchers:
            self.add_callback(callback)
        if self.is_world_process_zero():
            self.add_callback(Progress(tokens_per_step))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if getattr(self, "optimizer", None) is None:
            self.optimizer: torch.optim.Optimizer = MuonAdamW(
                self.model, self.args.learning_rate, weight_decay=self.weight_decay
            )
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module):
        """Trainer's own sees no gradient of the tables."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return optimizer.clip_grad_norm_(self.args.max_grad_norm)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if not math.isfinite(logs.get("loss", 0.0)):
            raise EngramError(
                f"the loss is {logs['loss']} at step {self.state.global_step}: lower the learning "
                "rate; the last checkpoint is kept"
            )
        if "loss" in logs:
            for watcher in self.watchers:
                logs.update(watcher.statistics())
        super().log(logs, start_time)
