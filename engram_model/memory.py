"""The memory module: look up hashed n-grams, gate them by the hidden state, smooth, add.

One position of one memory layer:

    slots = hash of the suffix n-grams of the compressed ids
    rows  = table[slots]                                   concatenated: e
    key_1..key_M, value = W e                              one matrix product
    gate_m = sigmoid(root(<norm hidden_m, norm key_m> / sqrt(d)))
    out_m  = gate_m value + SiLU(conv(norm(gate_m value)))

Table, rows and value are shared by the M residual streams; key, norms and gate are one per stream.
Without `engram_multi_branch` all is as for one stream: the caller collapses them (M below is 1).
Source: arXiv 2601.07372 sections 2.2-2.4 and its public code.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram_kernels import gate, gate_score, lookup, lookup_ngrams, ngram_slots
from engram_kernels.injection import conv_of_window, conv_scale, inject, inject_after
from engram_kernels.table_update import keeps_row_gradients, record
from engram_model.backend import DEFAULT, choose_backend
from engram_model.compression import compression_sha256
from engram_model.config import EngramConfig
from engram_model.errors import UsageError
from engram_model.hashing import NgramHasher
from engram_model.memories import Tap
from engram_model.offload import HostEmbedding, Pending

Ahead = tuple[Tensor, Pending]  # slots, and their rows
HOOKS = ("slots", "rows", "key", "value", "score", "gate", "conv", "out")
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
IDS_STATE, CONV_STATE = 0, 1  # indices of the two histories in a layer's cache


class StreamNorm(nn.Module):
    """Weights of the norm before the convolution, [M, d]; the arithmetic is `conv_scale`."""

    def __init__(self, streams: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(streams, width))


class DepthwiseConv(nn.Module):
    """Weights of the short convolution, [M*d, 1, k]; the arithmetic is `conv_of_window`."""

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
            instead. None: not called. Only the plain operations have all intermediates.
        backend: "auto" (Triton kernels on a GPU unless something listens), "torch" or "triton".
        used: the backend of the last call, "torch" or "triton".
        gates: [batch, positions, M] of the last call if `keep_gates`, without gradient.

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
        self.backend: str = DEFAULT
        self.used: str | None = None
        self.keep_gates = False
        self.gates: Tensor | None = None
        hasher = config.hasher(pad_id=0)
        streams, width = config.engram_branches, config.hidden_size
        looked_up = config.engram_columns * config.engram_head_dim
        self.embed = _new_table(config, hasher.rows(layer_id))
        self.wkv = nn.Linear(looked_up, (streams + 1) * width, bias=config.engram_bias)
        self.q_weight = nn.Parameter(torch.ones(streams, width))
        self.k_weight = nn.Parameter(torch.ones(streams, width))
        if config.engram_kernel_size:
            self.conv = DepthwiseConv(streams * width, config.engram_kernel_size)
            self.conv_norm = StreamNorm(streams, width)
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

    def look_ahead(self, input_ids: Tensor, past_key_values=None) -> Ahead | None:
        """Slots of these ids and their rows under way, for `forward`; None: nothing to fetch."""
        if not isinstance(self.embed, HostEmbedding):
            return None
        why_plain = self._why_plain(self.q_weight, past_key_values)
        self.used = choose_backend(self.backend, why_plain, input_ids, self.wkv.weight)
        slots = self._slots(input_ids, past_key_values)
        return slots, self.embed.prefetch(slots)

    def forward(
        self,
        hidden: Tensor,
        input_ids: Tensor,
        past_key_values=None,
        ahead: Ahead | None = None,
        residual: bool = False,
    ) -> Tensor:
        """What the memory adds to the residual streams, or with `residual` the streams after it.

        Args:
            hidden: [batch, positions, M, d].
            input_ids: [batch, positions] raw ids; -1 marks a position without text, which adds
                nothing and cuts every n-gram that reaches back over it.
            past_key_values: a transformers cache that holds this layer's history, updated here.
            ahead: what `look_ahead` gave for the same ids; it has updated the history of ids.
            residual: add to `hidden` in the same kernel.

        Returns:
            [batch, positions, M, d] in the dtype of `hidden`.
        """
        why_plain = self._why_plain(hidden, past_key_values)
        self.used = choose_backend(self.backend, why_plain, hidden, self.wkv.weight)
        run = self._fused if self.used == "triton" else self._plain
        out, gates = run(hidden, input_ids, past_key_values, ahead, residual)
        if self.keep_gates:
            self.gates = gates.detach()
        return out

    def _why_plain(self, hidden: Tensor, cache) -> str | None:
        """Why only the plain operations will do, if so."""
        if self.tap is not None:
            return "something listens to the memory's intermediates"
        if hidden.dtype not in KERNEL_DTYPES:
            return f"the kernels compute in float32, the streams are {hidden.dtype}"
        if not self.gated:
            return "the kernels always gate"
        learns = hidden.requires_grad or any(weight.requires_grad for weight in self.parameters())
        if cache is not None and torch.is_grad_enabled() and learns:
            return "the kernels have no gradient through a cache"
        return None

    def _fused(self, hidden, input_ids, cache, ahead, residual) -> tuple[Tensor, Tensor]:
        """Lookup, product, gate and convolution as four kernels, five with a cache."""
        config = self.config
        rows = self._fused_rows(input_ids, cache, ahead)
        keys_value = self.wkv(rows.flatten(-2)).unflatten(-1, (config.engram_branches + 1, -1))
        weights = (hidden, keys_value, self.q_weight, self.k_weight)
        settings = dict(
            dilation=config.engram_dilation,
            eps=config.engram_norm_eps,
            conv_eps=config.engram_conv_norm_eps,
            form=config.engram_gate,
            zero=config.engram_gate_zero,
            residual=residual,
        )
        if not config.engram_kernel_size:
            return inject(*weights, None, None, input_ids, **settings, backend="triton")
        conv = (self.conv.weight, self.conv_norm.weight)
        if cache is None:
            return inject(*weights, *conv, input_ids, **settings, backend="triton")
        return inject_after(*weights, *conv, input_ids, self._remember(cache), **settings)

    def _fused_rows(self, input_ids: Tensor, cache, ahead: Ahead | None) -> Tensor:
        if cache is not None or ahead is not None or isinstance(self.embed, HostEmbedding):
            slots, pending = ahead or (self._slots(input_ids, cache), None)
            return self._rows(slots, slots, pending)
        pad = self.compression[self.config.engram_pad_token_id].reshape(1)
        constants = (self.compression, self.multipliers, self.primes, self.offsets, pad)
        table = self._table()
        rows, slots = lookup_ngrams(table, input_ids, *constants, backend="triton")
        return self._recorded(rows, slots)

    def _plain(self, hidden, input_ids, cache, ahead, residual) -> tuple[Tensor, Tensor]:
        """The same step by step, every intermediate offered to `tap`."""
        config = self.config
        slots, pending = ahead or (self._slots(input_ids, cache), None)
        rows = self._tap("rows", self._rows(self._tap("slots", slots), slots, pending))
        key, value = self._project(rows, hidden.shape)
        key, value = self._tap("key", key), self._tap("value", value)
        text = (input_ids >= 0)[..., None]
        score = gate_score(hidden, key, self.q_weight, self.k_weight, config.engram_norm_eps)
        gates = self._gates(self._tap("score", score))
        gates = self._tap("gate", gates * text) * text  # a hook must not open what has no text
        out = gates.unsqueeze(-1) * value.unsqueeze(-2).float()
        if config.engram_kernel_size:
            conv = self._conv(value, gates, cache) * text.unsqueeze(-1)
            out = out + self._tap("conv", conv)
        out = out.to(hidden.dtype)
        if config.hc_mult == 1:  # one stream is a plain residual to whoever listens
            out = self._tap("out", out.squeeze(-2)).unsqueeze(-2)
        else:
            out = self._tap("out", out)
        return (hidden + out if residual else out), gates

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
        constants = (self.multipliers, self.primes, self.offsets, pad_id)
        return ngram_slots(window, *constants, backend=self.used or "torch")

    def _rows(self, slots: Tensor, ahead: Tensor, pending: Pending | None) -> Tensor:
        """Rows of `slots`: those under way, unless a tap gave other slots than were fetched."""
        if not isinstance(self.embed, HostEmbedding):
            rows = lookup(self._table(), slots, backend=self.used or "auto")
            return self._recorded(rows, slots)
        rows = self.embed(slots) if pending is None or slots is not ahead else pending.wait()
        return rows.to(self.wkv.weight.dtype)

    def _table(self) -> Tensor:
        """The table, out of autograd's sight if an optimiser takes its gradients by rows."""
        weight = self.embed.weight
        return weight.detach() if self._records(weight) else weight

    def _records(self, weight: Tensor) -> bool:
        return weight.requires_grad and keeps_row_gradients(weight)

    def _recorded(self, rows: Tensor, slots: Tensor) -> Tensor:
        """Rows whose gradients go to the table's optimiser, if it takes them by rows."""
        weight = self.embed.weight
        if self._records(weight) and torch.is_grad_enabled():
            rows.requires_grad_().register_hook(lambda grad: record(weight, slots, grad))
        return rows

    def _check_range(self, what: str, ids: Tensor, size: int | None) -> None:
        """Ids beyond the vocabulary would wrap; on a GPU looking would cost a synchronisation."""
        if ids.device.type != "cpu" or not ids.numel():
            return
        low, high = int(ids.min()), int(ids.max())
        if low < -1 or high >= (size or 0):
            raise UsageError(f"{what} from {low} to {high} are outside the vocabulary of {size}")

    @property
    def max_ngram_size(self) -> int:
        return self.config.engram_max_ngram_size

    @property
    def n_heads(self) -> int:
        return self.config.engram_n_heads

    @property
    def gated(self) -> bool:
        return self.config.engram_gate != "none"

    @classmethod
    def hasher_of(cls, memories: Sequence["EngramMemory"]) -> NgramHasher:
        """The hash of all memories of one model; its pad is theirs.

        Raises:
            UsageError: they hash something other than n-grams of the text.
        """
        config = memories[0].config
        if config.engram_hash != "ngram":
            raise UsageError(
                f"the memory hashes the {config.engram_hash}, not n-grams, so its slots say "
                "nothing of a text"
            )
        return config.hasher(int(memories[0].compression[config.engram_pad_token_id]))

    @property
    def value_bias(self) -> Tensor | None:
        """[d] that is added to the value, if anything is."""
        bias = self.wkv.bias
        return None if bias is None else bias[-self.config.hidden_size :]

    @property
    def value_weight(self) -> Tensor:
        """[d, columns, width]: the value is the sum over columns (order, head) of this times the
        row looked up there, and the bias."""
        config = self.config
        weight = self.wkv.weight[-config.hidden_size :]
        return weight.unflatten(1, (config.engram_columns, config.engram_head_dim))

    def _project(self, rows: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        keys_value = self.wkv(rows.flatten(-2)).unflatten(-1, (shape[-2] + 1, shape[-1]))
        return keys_value[..., :-1, :], keys_value[..., -1, :]

    def _gates(self, score: Tensor) -> Tensor:
        if not self.gated:
            return torch.ones_like(score)
        return gate(score, self.config.engram_gate, self.config.engram_gate_zero)

    def _conv(self, value: Tensor, gates: Tensor, cache) -> Tensor:
        config = self.config
        scale = conv_scale(gates, value, config.engram_conv_norm_eps)
        window = self._remember(cache)(torch.cat([value.float(), scale], -1))
        value, scale = window.split([config.hidden_size, config.engram_branches], -1)
        weights = (self.conv.weight, self.conv_norm.weight)
        return conv_of_window(value, scale, *weights, config.engram_dilation or 1)

    def _remember(self, cache) -> Callable[[Tensor], Tensor]:
        """What the convolution reads, [batch, positions, d + M], behind its predecessors'."""
        length = self.config.engram_conv_window

        def remember(read: Tensor) -> Tensor:
            channels = read.transpose(1, 2)
            return _with_past(channels, length, cache, self.layer_id, CONV_STATE).transpose(1, 2)

        return remember


def _new_table(config: EngramConfig, rows: int) -> nn.Embedding:
    if config.engram_table == "device":
        return nn.Embedding(rows, config.engram_head_dim)
    return HostEmbedding(rows, config.engram_head_dim, mapped=config.engram_table == "file")


def _with_past(new: Tensor, length: int, cache, layer_id: int, state: int) -> Tensor:
    """`new` [.., positions] behind its `length` predecessors: zeros, or what the cache kept."""
    positions = new.shape[-1]
    if cache is not None and length:
        new = cache.update_conv_state(new, layer_id, state_idx=state, conv_kernel_size=length)
    return F.pad(new, (length, 0))[..., new.shape[-1] - positions :]
