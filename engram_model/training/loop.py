"""transformers' Trainer with our optimiser, expert balancing and log."""

import math
from collections.abc import Callable
from types import MethodType

import torch
from torch import nn
from transformers import PrinterCallback, Trainer
from transformers.models.deepseek_v4.modeling_deepseek_v4 import (
    DeepseekV4HyperConnection,
    DeepseekV4HyperHead,
)

from engram_model.errors import EngramError
from engram_model.training.callbacks import BalanceExperts, Progress, WatchGates
from engram_model.training.optimizer import MuonAdamW


class EngramTrainer(Trainer):
    """Trainer whose log also holds the experts' load and the memories' gates."""

    def __init__(
        self, *, weight_decay: float, balance: float, tokens_per_step: int, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.weight_decay = weight_decay
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


def compile_mixing(model: nn.Module) -> None:
    """Compile the coefficients of the stream mixing: some 80 tiny operations a site become one."""
    for module in model.modules():
        if isinstance(module, (DeepseekV4HyperConnection, DeepseekV4HyperHead)):
            module.forward = MethodType(_compiled(type(module)), module)


_COMPILED: dict[type[nn.Module], Callable] = {}


def _compiled(kind: type[nn.Module]):
    if kind not in _COMPILED:
        _COMPILED[kind] = torch.compile(kind.forward, dynamic=False)
    return _COMPILED[kind]
