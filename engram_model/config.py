"""Configuration of an Engram transformer: DeepSeek-V3's fields, streams and the memory."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import DeepseekV3Config

from engram_model.errors import UsageError
from engram_model.hashing import NgramHasher


@strict
class EngramConfig(DeepseekV3Config):
    """DeepSeek-V3 with `hc_mult` residual streams and hashed n-gram memories.

    Memory fields are named as in the released DeepSeek-V4.1 config where it has them.

    Args:
        hc_mult: residual streams M (1: a plain residual).
        hc_sinkhorn_iters, hc_eps: of the mixing matrix between streams.
        engram_layer_ids: 0-based layers that have a memory; empty: a model without one.
        engram_max_ngram_size: N; orders 2..N are looked up.
        engram_n_heads: hash heads per order.
        engram_head_dim: width of a row.
        engram_vocab_size: base from which primes are searched: one for all orders, or one each;
            1: one row a head, which all n-grams read.
        engram_compressed_vocab_size: ids after compression (None: `vocab_size`, no compression).
        engram_pad_token_id: raw id that stands for a token before the start.
        engram_hash: what the model gives its memories to hash: "ngram" the text's n-grams,
            "position" those of the position ids, so that rows know nothing of the text.
        engram_seed: of the hash multipliers.
        engram_multi_branch: a key and gate for each stream; False: one, of the streams collapsed as
            attention reads them, and its result added to every stream.
        engram_kernel_size: taps of the short convolution; 0 leaves it out.
        engram_dilation: distance between taps (None: `engram_max_ngram_size`).
        engram_gate: "sqrt" as released, "linear" as printed in the paper, "none" always 1 (the keys
            stay, unused).
        engram_gate_zero: gate of a score of exactly zero, "sign" 0.5 or "copysign" (V4.1).
        engram_bias: biases on the key and value projection (only the public demo has them).
        engram_norm_eps: of the norms of hidden and key.
        engram_conv_norm_eps: of the norm before the convolution.
        engram_table: where the tables are: "device" with the other weights, "host" in pinned
            memory, "file" in the checkpoint's mapped file; the latter two are only read.
        engram_compression_sha256: checksum of the compression map the weights were trained with.
        tokenizer_sha256: checksum of the vocabulary the weights were trained with.
    """

    model_type = "engram"

    hc_mult: int = 4
    hc_sinkhorn_iters: int = 20
    hc_eps: float = 1e-6
    engram_layer_ids: list[int] | tuple[int, ...] = ()
    engram_max_ngram_size: int = 3
    engram_n_heads: int = 8
    engram_head_dim: int = 80
    engram_vocab_size: int | list[int] = 646_400
    engram_compressed_vocab_size: int | None = None
    engram_pad_token_id: int = 2
    engram_hash: Literal["ngram", "position"] = "ngram"
    engram_seed: int = 0
    engram_multi_branch: bool = True
    engram_kernel_size: int = 4
    engram_dilation: int | None = None
    engram_gate: Literal["sqrt", "linear", "none"] = "sqrt"
    engram_gate_zero: Literal["sign", "copysign"] = "sign"
    engram_bias: bool = False
    engram_norm_eps: float = 1e-20
    engram_conv_norm_eps: float = 1e-5
    engram_table: Literal["device", "host", "file"] = "device"
    engram_compression_sha256: str | None = None
    tokenizer_sha256: str | None = None
    num_mtp_layers: int = 0
    n_group: int | None = 1
    topk_group: int | None = 1
    routed_scaling_factor: float = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        self.engram_layer_ids = [int(layer) for layer in self.engram_layer_ids]
        if not self.engram_dilation:
            self.engram_dilation = self.engram_max_ngram_size
        if self.engram_compressed_vocab_size is None:
            self.engram_compressed_vocab_size = self.vocab_size
        # Memory layers keep a short history beside keys and values; transformers' caches give
        # that to layers of the type "hybrid": state 0 holds ids, state 1 the convolution's window.
        kwargs.pop("layer_types", None)
        self.layer_types = [
            "hybrid" if layer in self.engram_layer_ids else "full_attention"
            for layer in range(self.num_hidden_layers)
        ]
        self.number_of_conv_states = 2 if self.engram_conv_window else 1
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        if self.hc_mult < 1:
            raise UsageError(f"hc_mult {self.hc_mult}: at least one residual stream is needed")
        if len(set(self.engram_layer_ids)) != len(self.engram_layer_ids):
            raise UsageError(f"engram_layer_ids {self.engram_layer_ids} repeats a layer")
        beyond = [i for i in self.engram_layer_ids if not 0 <= i < self.num_hidden_layers]
        if beyond:
            raise UsageError(
                f"engram_layer_ids {beyond}: the model has layers 0..{self.num_hidden_layers - 1}"
            )
        if not 1 <= (self.engram_compressed_vocab_size or 0) <= self.vocab_size:
            raise UsageError(
                f"engram_compressed_vocab_size {self.engram_compressed_vocab_size} does not fit a "
                f"vocabulary of {self.vocab_size}"
            )

    @property
    def engram_vocab_sizes(self) -> list[int]:
        """One base for each order 2..N."""
        if isinstance(self.engram_vocab_size, int):
            return [self.engram_vocab_size] * (self.engram_max_ngram_size - 1)
        return list(self.engram_vocab_size)

    @property
    def engram_columns(self) -> int:
        """Rows read by one position of one layer: (N-1) * heads."""
        return (self.engram_max_ngram_size - 1) * self.engram_n_heads

    @property
    def engram_branches(self) -> int:
        """Keys, gates and results of one position of one layer."""
        return self.hc_mult if self.engram_multi_branch else 1

    @property
    def engram_conv_window(self) -> int:
        """Positions before the current one that the short convolution reaches."""
        return max(0, self.engram_kernel_size - 1) * (self.engram_dilation or 1)

    def hasher(self, pad_id: int) -> NgramHasher:
        """The hash of this model's memories; only slots depend on `pad_id`, a compressed id."""
        return NgramHasher(
            layer_ids=list(self.engram_layer_ids),
            max_ngram_size=self.engram_max_ngram_size,
            n_heads=self.engram_n_heads,
            vocab_sizes=self.engram_vocab_sizes,
            compressed_vocab_size=self.engram_compressed_vocab_size or self.vocab_size,
            pad_id=pad_id,
            seed=self.engram_seed,
        )
