"""What a memory is to those who look into it, whichever model it is of."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

from torch import Tensor, nn

from engram_model.hashing import NgramHasher

Tap = Callable[[str, Tensor], Tensor]


class Memory(Protocol):
    """A torch module with these members; M residual streams of width d, C columns (order, head).

    Called with hidden states (of all streams) and raw ids [batch, positions] first.

    Attributes:
        layer_id: 0-based layer before whose attention it writes.
        tap: see `engram_model.memory.EngramMemory`: is told every intermediate, and may replace it.
        max_ngram_size, n_heads: N and heads an order: column c is order 2 + c // heads.
        embed: slots [..] -> rows [.., width]; `embed.weight` [rows at least, width] is the table.
        primes, offsets: rows of each column [N-1, heads], and the first of them [C], int64.
        compression: raw id -> id that is hashed, int [vocabulary].
        value_weight: [d, C, width]: the value is the sum over columns of this times the row.
        value_bias: [d] that is added to it, or None.
        gated: whether there is a gate.
    """

    layer_id: int
    tap: Tap | None
    embed: nn.Module
    offsets: Tensor
    compression: Tensor
    register_forward_pre_hook: Callable[..., Any]
    register_forward_hook: Callable[..., Any]

    @property
    def max_ngram_size(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def primes(self) -> Tensor: ...
    @property
    def value_weight(self) -> Tensor: ...
    @property
    def value_bias(self) -> Tensor | None: ...

    @property
    def gated(self) -> bool: ...

    @classmethod
    def hasher_of(cls, memories: Sequence[Self]) -> NgramHasher:
        """The hash of all memories of one model.

        Raises:
            UsageError: their slots do not tell of a text.
        """
        ...


def memories_of(model) -> dict[int, Any]:
    """Memories by layer, in the order of layers, of a model or a bridge of one."""
    from engram_model.memory import EngramMemory

    model = getattr(model, "original_model", model)
    if text_config(model).model_type == "qwen4_exp_text":
        from engram_model.qwen import adopt

        found = adopt(model)
    else:
        found = [module for module in model.modules() if isinstance(module, EngramMemory)]
    return {memory.layer_id: memory for memory in sorted(found, key=lambda one: one.layer_id)}


def text_config(model) -> Any:
    """The config of the language model, which one of several modalities keeps apart."""
    return model.config.get_text_config(decoder=True)
