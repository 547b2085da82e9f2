"""The memory module: look up hashed n-grams, gate them by the hidden state, smooth, add.

One position of one memory layer:

    slots = hash of the suffix n-grams of the compressed ids
    rows  = table[slots]                                   concatenated: e
    key_1..key_M, value = W e                              one matrix product
    gate_m = sigmoid(root(<norm hidden_m, norm key_m> / sqrt(d)))
    out_m  = gate_m value + SiLU(conv(norm(gate_m value)))

Table, rows and value are shared by the M residual streams; key, norms and gate are one per stream.
Source: arXiv 2601.07372 sections 2.2-2.4 and its public code.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram_kernels import gate, gate_score, lookup, ngram_slots, rms_norm, short_conv
from engram_model.compression import compression_sha256
from engram_model.config import EngramConfig
from engram_model.errors import UsageError

Tap = Callable[[str, Tensor], Tensor]
HOOKS = ("slots", "rows", "key", "value", "score", "gate", "conv", "out")
IDS_STATE, CONV_STATE = 0, 1  # indices of the two histories in a layer's cache


class StreamNorm(nn.Module):
    """RMSNorm with one weight per stream: [.., M, d] -> [.., M, d] float32."""

    def __init__(self, streams: int, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(streams, width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class DepthwiseConv(nn.Module):
    """Weights of the short convolution, [M*d, 1, k]; the arithmetic is `short_conv`."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, kernel_size))


class EngramMemory(nn.Module):
    """One layer's memory.

    Parameters: `embed.weight` [rows, width]; `wkv.weight` [(M+1)*d, (N-1)*heads*width], M keys and
    then the value, `wkv.bias` with `engram_bias`; `q_weight`, `k_weight` [M, d];
    `conv.weight` [M*d, 1, k] and `conv_norm.weight` [M, d] unless `engram_kernel_size` is 0.

    Attributes:
        tap: called with each intermediate's name (see `HOOKS`) and tensor; what it returns is used
            instead. None: not called.

    Args:
        config: the model's.
        layer_id: 0-based; must be one of `config.engram_layer_ids`.
        compression: int [vocab], raw id -> compressed id; None: identity.
    """

    def __init__(
        self, config: EngramConfig, layer_id: int, compression: np.ndarray | Tensor | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.layer_id = layer_id
        self.tap: Tap | None = None
        hasher = config.hasher(pad_id=0)
        streams, width = config.hc_mult, config.hidden_size
        looked_up = config.engram_columns * config.engram_head_dim
        self.embed = nn.Embedding(hasher.rows(layer_id), config.engram_head_dim)
        self.wkv = nn.Linear(looked_up, (streams + 1) * width, bias=config.engram_bias)
        self.q_weight = nn.Parameter(torch.ones(streams, width))
        self.k_weight = nn.Parameter(torch.ones(streams, width))
        if config.engram_kernel_size:
            self.conv = DepthwiseConv(streams * width, config.engram_kernel_size)
            self.conv_norm = StreamNorm(streams, width, config.engram_conv_norm_eps)
        for name, constant in self.hash_constants().items():
            self.register_buffer(name, constant)
        self.compression = nn.Buffer(torch.arange(config.vocab_size, dtype=torch.int32))
        if compression is not None:
            self.set_compression(compression)

    def set_compression(self, compression: np.ndarray | Tensor) -> None:
        """Use this map from raw to compressed ids.

        Raises:
            UsageError: a map of another vocabulary or compressed size than the config's.
        """
        table = np.asarray(compression)
        size = int(table.max()) + 1
        vocab, expected = self.config.vocab_size, self.config.engram_compressed_vocab_size
        if table.shape != (vocab,) or size != expected or table.min() < 0:
            raise UsageError(
                f"compression map of {table.size} ids to {size} does not fit a config with "
                f"vocab_size {vocab} and engram_compressed_vocab_size {expected}"
            )
        self.compression.copy_(torch.from_numpy(table.astype(np.int32)))

    def hash_constants(self) -> dict[str, Tensor]:
        """Multipliers, primes and offsets as the config describes them."""
        hasher = self.config.hasher(pad_id=0)
        return {
            "multipliers": torch.from_numpy(hasher.multipliers(self.layer_id)),
            "primes": torch.from_numpy(hasher.primes(self.layer_id).copy()),
            "offsets": torch.from_numpy(hasher.offsets(self.layer_id)),
        }

    def compression_sha256(self) -> str:
        return compression_sha256(self.compression.cpu().numpy())

    def forward(self, hidden: Tensor, input_ids: Tensor, past_key_values=None) -> Tensor:
        """What the memory adds to the residual streams.

        Args:
            hidden: [batch, positions, M, d].
            input_ids: [batch, positions] raw ids; -1 marks a position without text, which adds
                nothing and cuts every n-gram that reaches back over it.
            past_key_values: a transformers cache that holds this layer's history, updated here.

        Returns:
            [batch, positions, M, d] in the dtype of `hidden`.
        """
        config = self.config
        slots = self._tap("slots", self._slots(input_ids, past_key_values))
        rows = self._tap("rows", lookup(self.embed.weight, slots))
        key, value = self._project(rows, hidden.shape)
        key, value = self._tap("key", key), self._tap("value", value)
        text = (input_ids >= 0)[..., None]
        score = gate_score(hidden, key, self.q_weight, self.k_weight, config.engram_norm_eps)
        gates = gate(self._tap("score", score), config.engram_gate, config.engram_gate_zero)
        gates = self._tap("gate", gates * text) * text  # a hook must not open what has no text
        gated = gates.unsqueeze(-1) * value.unsqueeze(-2).float()
        out = gated
        if config.engram_kernel_size:
            conv = self._conv(gated, past_key_values) * text.unsqueeze(-1)
            out = gated + self._tap("conv", conv)
        out = out.to(hidden.dtype)
        if config.hc_mult == 1:  # one stream is a plain residual to whoever listens
            return self._tap("out", out.squeeze(-2)).unsqueeze(-2)
        return self._tap("out", out)

    def _tap(self, name: str, tensor: Tensor) -> Tensor:
        return tensor if self.tap is None else self.tap(name, tensor)

    def _slots(self, input_ids: Tensor, cache) -> Tensor:
        config = self.config
        text = input_ids >= 0
        self._check_range("token ids", input_ids, config.vocab_size)
        ids = self.compression[input_ids.clamp(min=0)].long().masked_fill(~text, -1)
        self._check_range("compressed ids", ids, config.engram_compressed_vocab_size)
        history = config.engram_max_ngram_size - 1
        window = _with_past(ids + 1, history, cache, self.layer_id, IDS_STATE) - 1
        pad_id = self.compression[config.engram_pad_token_id].long()
        return ngram_slots(window, self.multipliers, self.primes, self.offsets, pad_id)

    def _check_range(self, what: str, ids: Tensor, size: int | None) -> None:
        """Ids beyond the vocabulary would wrap; on a GPU looking would cost a synchronisation."""
        if ids.device.type != "cpu" or not ids.numel():
            return
        low, high = int(ids.min()), int(ids.max())
        if low < -1 or high >= (size or 0):
            raise UsageError(f"{what} from {low} to {high} are outside the vocabulary of {size}")

    def _project(self, rows: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        keys_value = self.wkv(rows.flatten(-2)).unflatten(-1, (shape[-2] + 1, shape[-1]))
        return keys_value[..., :-1, :], keys_value[..., -1, :]

    def _conv(self, gated: Tensor, cache) -> Tensor:
        config = self.config
        channels = self.conv_norm(gated).flatten(-2).transpose(1, 2)
        window = _with_past(channels, config.engram_conv_window, cache, self.layer_id, CONV_STATE)
        conv = short_conv(window, self.conv.weight, config.engram_dilation)
        return conv.transpose(1, 2).unflatten(-1, gated.shape[-2:])


def _with_past(new: Tensor, length: int, cache, layer_id: int, state: int) -> Tensor:
    """`new` [.., positions] behind its `length` predecessors: zeros, or what the cache kept."""
    positions = new.shape[-1]
    if cache is not None and length:
        new = cache.update_conv_state(new, layer_id, state_idx=state, conv_kernel_size=length)
    return F.pad(new, (length, 0))[..., new.shape[-1] - positions :]
