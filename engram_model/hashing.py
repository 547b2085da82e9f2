"""Exact n-gram hashing: which rows of the memory each position reads.

Multipliers come from NumPy's PCG64 seeded with `seed + 10007 * layer`; primes are the smallest ones
above each order's base that no earlier order, head or layer has taken. Both are therefore a
function of the whole layer list, not of one layer. Source: the public code of arXiv 2601.07372;
bit-equal to it and to DeepSeek-V4.1-Flash (tests/data). `QwenHasher` is the rule of `qwen4_exp`.
"""

from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from engram_model.errors import UsageError

Ids = TypeVar("Ids")  # np.ndarray or torch.Tensor
INT64_MAX = 2**63 - 1
LAYER_STRIDE = 10_007
GOLDEN, MASK64 = 0x9E3779B97F4A7C15, 2**64 - 1  # of splitmix64


@lru_cache(maxsize=32)
def _primes(bases: tuple[int, ...], heads: int, layers: int) -> np.ndarray:
    """Distinct primes [layers, orders, heads], searched upward from each base; of base 1 all 1."""
    from sympy import nextprime

    taken: set[int] = set()
    found = np.ones((layers, len(bases), heads), dtype=np.int64)
    for layer in range(layers):
        for order, base in enumerate(bases):
            if base == 1:
                continue
            prime = base - 1
            for head in range(heads):
                prime = nextprime(prime)
                while prime in taken:
                    prime = nextprime(prime)
                taken.add(prime)
                found[layer, order, head] = prime
    found.setflags(write=False)
    return found


class NgramHasher:
    """Compressed ids -> slots, for every memory layer of one model.

    Args:
        layer_ids: 0-based layers that have a memory, in the model's order; no repeats.
        max_ngram_size: N; orders 2..N are hashed.
        n_heads: hash heads per order.
        vocab_sizes: one base per order; primes are searched upward from it. A base of 1 is one row
            a head, which all n-grams read.
        compressed_vocab_size: ids lie in [0, compressed_vocab_size).
        pad_id: compressed id that stands for a token before the start.
        seed: of the multipliers.

    Raises:
        UsageError: sizes that do not fit together, or repeated layers.
    """

    def __init__(
        self,
        layer_ids: list[int],
        max_ngram_size: int,
        n_heads: int,
        vocab_sizes: list[int],
        compressed_vocab_size: int,
        pad_id: int,
        seed: int = 0,
    ) -> None:
        self.layer_ids = [int(layer) for layer in layer_ids]
        self.max_ngram_size = max_ngram_size
        self.n_heads = n_heads
        self.vocab_sizes = [int(size) for size in np.atleast_1d(vocab_sizes)]
        self.compressed_vocab_size = compressed_vocab_size
        self.pad_id = pad_id
        self.seed = seed
        self._check()
        self._all_primes = _primes(tuple(self.vocab_sizes), n_heads, len(self.layer_ids))

    def _check(self) -> None:
        if len(set(self.layer_ids)) != len(self.layer_ids) or min(self.layer_ids, default=0) < 0:
            raise UsageError(f"memory layers {self.layer_ids}: each layer once, none negative")
        if self.max_ngram_size < 2 or self.n_heads < 1:
            raise UsageError(
                f"max_ngram_size {self.max_ngram_size}, n_heads {self.n_heads}: "
                "give at least 2-grams and one head"
            )
        if len(self.vocab_sizes) != self.max_ngram_size - 1 or min(self.vocab_sizes) < 1:
            raise UsageError(
                f"vocab_sizes {self.vocab_sizes}: give one base of at least 1 for each of the "
                f"orders 2..{self.max_ngram_size}"
            )
        if not 0 <= self.pad_id < self.compressed_vocab_size:
            raise UsageError(
                f"pad_id {self.pad_id} is outside the compressed vocabulary of "
                f"{self.compressed_vocab_size}"
            )

    def arguments(self) -> dict[str, Any]:
        """What `hasher_from` makes this hasher of; plain enough for JSON."""
        names = ("layer_ids", "max_ngram_size", "n_heads", "vocab_sizes", "compressed_vocab_size")
        return {name: getattr(self, name) for name in (*names, "pad_id", "seed")}

    def compression(self, tokenizer) -> np.ndarray:
        """Raw id -> id that is hashed, int64 [vocabulary], if nothing else is known."""
        from engram_model.compression import compression_map

        return compression_map(tokenizer)

    def segments(self, compressed_ids: np.ndarray) -> list[np.ndarray]:
        """The parts of a text, [positions], that are hashed as texts of their own: here one."""
        return [compressed_ids]

    def _index(self, layer_id: int) -> int:
        if layer_id not in self.layer_ids:
            raise UsageError(f"layer {layer_id} has no memory; layers with one: {self.layer_ids}")
        return self.layer_ids.index(layer_id)

    def multipliers(self, layer_id: int) -> np.ndarray:
        """Odd int64 [N]; bounded so that no product with an id reaches 2^63."""
        self._index(layer_id)
        half = max(1, INT64_MAX // self.compressed_vocab_size // 2)
        rng = np.random.default_rng(self.seed + LAYER_STRIDE * layer_id)
        return 2 * rng.integers(0, half, size=self.max_ngram_size, dtype=np.int64) + 1

    def primes(self, layer_id: int) -> np.ndarray:
        """Rows of each order and head, int64 [N-1, heads]."""
        return self._all_primes[self._index(layer_id)]

    def offsets(self, layer_id: int) -> np.ndarray:
        """First row of each order and head in the flat table, int64 [(N-1)*heads]."""
        flat = self.primes(layer_id).reshape(-1)
        return np.concatenate([[0], np.cumsum(flat)[:-1]]).astype(np.int64)

    def rows(self, layer_id: int) -> int:
        """Rows of the layer's whole table."""
        return int(self.primes(layer_id).sum())

    def slots(self, compressed_ids: Ids, layer_id: int, history: Ids | None = None) -> Ids:
        """Rows read at every position.

        Args:
            compressed_ids: [..., positions] ids; -1 marks a position without text.
            layer_id: a memory layer.
            history: [..., any] ids before, newest last; default none (the start of a text).

        Returns:
            [..., positions, (N-1)*heads] int64, offsets included; NumPy in, NumPy out, torch in,
            torch out.

        Raises:
            UsageError: an id outside [-1, compressed_vocab_size).
        """
        import torch

        ids = _integers(compressed_ids)
        past = _integers([] if history is None else history).to(ids.device)
        window = self._window(ids, past)
        self._check_range(window)
        slots = self._slots(window, layer_id)
        return slots if isinstance(compressed_ids, torch.Tensor) else slots.numpy()

    def _slots(self, window, layer_id: int):
        """[..., N-1 + positions] -> [..., positions, (N-1)*heads]."""
        import torch

        from engram_kernels import ngram_slots

        constants = (self.multipliers(layer_id), self.primes(layer_id).copy())
        return ngram_slots(
            window,
            *(torch.as_tensor(each, device=window.device) for each in constants),
            torch.as_tensor(self.offsets(layer_id), device=window.device),
            self.pad_id,
        )

    def _window(self, ids, past):
        """[..., N-1 + positions]: the history, cut or filled up with -1, then the ids."""
        import torch
        import torch.nn.functional as F

        need = self.max_ngram_size - 1
        past = past.expand(*ids.shape[:-1], past.shape[-1])[..., max(0, past.shape[-1] - need) :]
        past = F.pad(past, (need - past.shape[-1], 0), value=-1)
        return torch.cat([past, ids], -1)

    def _check_range(self, ids) -> None:
        if ids.numel() == 0:
            return
        low, high = int(ids.min()), int(ids.max())
        if low < -1 or high >= self.compressed_vocab_size:
            raise UsageError(
                f"compressed ids from {low} to {high} are outside the compressed vocabulary of "
                f"{self.compressed_vocab_size}; -1 marks a position without text"
            )


class QwenHasher(NgramHasher):
    """The hash of `qwen4_exp`: as `NgramHasher`, of raw ids, with two other rules.

    Multipliers come from splitmix64, seeded with the memory's place in the layer list. A token of
    id `pad_id`, the end of a text, cuts what comes after it from what came before; it is itself
    hashed with its predecessors. Source: `Qwen4ExpTextNGramEmbedding` of transformers 5.23.
    """

    RULE = "qwen4_exp"

    def arguments(self) -> dict[str, Any]:
        return {"rule": self.RULE, **super().arguments()}

    def multipliers(self, layer_id: int) -> np.ndarray:
        half = max(1, INT64_MAX // self.compressed_vocab_size // 2)
        seed = self.seed + LAYER_STRIDE * self._index(layer_id)
        drawn = [_splitmix64(seed + GOLDEN * (n + 1)) for n in range(self.max_ngram_size)]
        return np.array([2 * (value % half) + 1 for value in drawn], dtype=np.int64)

    def compression(self, tokenizer) -> np.ndarray:
        return np.arange(self.compressed_vocab_size)

    def segments(self, compressed_ids: np.ndarray) -> list[np.ndarray]:
        ends = np.flatnonzero(np.asarray(compressed_ids) == self.pad_id) + 1
        parts = np.split(np.asarray(compressed_ids), ends)
        return [part for part in parts if len(part)]

    def _slots(self, window, layer_id: int):
        import torch

        ngrams = window.unfold(-1, self.max_ngram_size, 1)  # [..., positions, N], newest last
        before, current = ngrams[..., :-1], ngrams[..., -1:]
        ends = (before == self.pad_id).flip(-1).cummax(-1).values.flip(-1)
        ngrams = torch.cat([before.masked_fill(ends, -1), current], -1)
        return super()._slots(ngrams, layer_id).squeeze(-2)


def hasher_from(arguments: dict[str, Any]) -> NgramHasher:
    """The hasher whose `arguments` these are."""
    given = dict(arguments)
    return (NgramHasher if given.pop("rule", None) is None else QwenHasher)(**given)


def _splitmix64(value: int) -> int:
    value = (value + GOLDEN) & MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK64
    return value ^ (value >> 31)


def _integers(ids):
    """Any array of integers as an int64 tensor of its own.

    Raises:
        UsageError: numbers that are not integers.
    """
    import torch

    tensor = ids if isinstance(ids, torch.Tensor) else torch.from_numpy(np.array(ids))
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex()):
        raise UsageError(f"ids of type {tensor.dtype}: give integers")
    return tensor.long()
