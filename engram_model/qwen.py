"""The n-gram memory of `qwen4_exp`, with the members that probes and hooks ask of a memory.

`transformers` calls it a per-layer embedding (PLE). It differs from `engram_model.memory`:

    slots = hash of the suffix n-grams of the raw ids, which begin anew behind an end of text
    key_1..key_M = W_key e,  value = W_value e             no bias
    norms scale by 1 + weight; a score of exactly zero has gate 0.5
    out_m = gate_m value + SiLU(conv(norm(gate_m value)))  dilated by N, always

Source: `Qwen4ExpTextPLELayer` of transformers 5.23.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.models.qwen4_exp.modeling_qwen4_exp import (
    Qwen4ExpTextPLELayer,
    apply_mask_to_padding_states,
)

from engram_model.errors import CheckpointError
from engram_model.hashing import QwenHasher
from engram_model.memories import Tap


class QwenMemory(Qwen4ExpTextPLELayer):
    """A PLE layer that is a `Memory`: same weights, same result, and every intermediate tapped.

    Attributes:
        tap: see `engram_model.memory.EngramMemory`; names and shapes are the same.
    """

    tap: Tap | None = None

    @property
    def layer_id(self) -> int:
        return self.layer_idx

    @property
    def max_ngram_size(self) -> int:
        return self.ple_embedding.ngram_size

    @property
    def n_heads(self) -> int:
        return self.ple_embedding.heads_per_ngram

    @property
    def embed(self) -> nn.Embedding:
        return self.ple_embedding.ngram_embedding

    @property
    def primes(self) -> Tensor:
        return self.ple_embedding.ngram_heads_vocab_sizes.unflatten(0, (-1, self.n_heads))

    @property
    def offsets(self) -> Tensor:
        return self.ple_embedding.ngram_heads_offsets

    @property
    def compression(self) -> Tensor:
        """Raw ids are hashed as they are."""
        return torch.arange(self.ple_embedding.unigram_vocab_size, device=self.offsets.device)

    @property
    def value_weight(self) -> Tensor:
        return self.value_proj.weight.unflatten(1, (len(self.offsets), -1))

    @property
    def value_bias(self) -> Tensor | None:
        return self.value_proj.bias

    @property
    def gated(self) -> bool:
        return True

    @classmethod
    def hasher_of(cls, memories: Sequence["QwenMemory"]) -> QwenHasher:
        """Raises CheckpointError: the constants kept with the weights are not those of the rule."""
        first = memories[0].ple_embedding
        hasher = QwenHasher(
            layer_ids=[memory.layer_id for memory in memories],
            max_ngram_size=first.ngram_size,
            n_heads=first.heads_per_ngram,
            vocab_sizes=[first.ngram_vocab_size_base] * (first.ngram_size - 1),
            compressed_vocab_size=first.unigram_vocab_size,
            pad_id=first.eos_token_id,
            seed=first.seed,
        )
        for memory in memories:
            kept = memory.ple_embedding.layer_multipliers, memory.primes
            layer = memory.layer_id
            derived = hasher.multipliers(layer), hasher.primes(layer)
            if any(
                one.tolist() != other.tolist() for one, other in zip(kept, derived, strict=True)
            ):
                raise CheckpointError(
                    f"layer {layer}: the hash constants kept with the weights do not follow from "
                    "the config, so its n-grams cannot be told"
                )
        return hasher

    def forward(
        self,
        hidden_states: Tensor,
        input_ids: Tensor,
        past_key_values,
        conv_mask: Tensor | None = None,
    ) -> Tensor:
        """[batch, positions, M*d] of hidden states -> what is added to them."""
        if self.tap is None:
            return super().forward(hidden_states, input_ids, past_key_values, conv_mask)
        with self._lookup_tapped(self.tap):
            looked_up = self.ple_embedding(input_ids, past_key_values)
        key = self.tap("key", self._streams(self.key_proj(looked_up))).flatten(-2)
        value = self.tap("value", self.value_proj(looked_up))
        score = self.tap("score", self._score(hidden_states, key))
        gates = self.tap("gate", torch.sigmoid(_root(score)))
        gated = (gates.unsqueeze(-1) * value.unsqueeze(-2)).flatten(-2)
        normed = self.norm_conv(gated)
        if conv_mask is not None:
            gated = apply_mask_to_padding_states(gated, conv_mask)
            normed = apply_mask_to_padding_states(normed, conv_mask)
        conv = self.tap("conv", self._streams(self._short_conv(normed, past_key_values)))
        return self.tap("out", self._streams(gated) + conv).flatten(-2)

    def _streams(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (self.hc_count, self.hidden_size))

    def _score(self, hidden: Tensor, key: Tensor) -> Tensor:
        products = self._streams(self.norm_key(key)) * self._streams(self.norm_query(hidden))
        return products.sum(-1) / math.sqrt(self.hidden_size)

    @contextmanager
    def _lookup_tapped(self, tap: Tap) -> Iterator[None]:
        """The tap between the module's own hash, its table and its projections.

        It listens once each: a tap may itself look rows up.
        """

        def slots(_table, args: tuple) -> tuple:
            before.remove()
            return (tap("slots", args[0]),)

        def rows(_table, _args, found: Tensor) -> Tensor:
            after.remove()
            return tap("rows", found)

        before = self.embed.register_forward_pre_hook(slots)
        after = self.embed.register_forward_hook(rows)
        try:
            yield
        finally:
            before.remove()
            after.remove()


def adopt(model: nn.Module) -> list[QwenMemory]:
    """The model's PLE layers, each made a `QwenMemory`: its class changes, no weight does."""
    found = [module for module in model.modules() if isinstance(module, Qwen4ExpTextPLELayer)]
    for layer in found:
        layer.__class__ = QwenMemory
    return found


def _root(score: Tensor) -> Tensor:
    return score.abs().clamp_min(1e-6).sqrt() * score.sign()
