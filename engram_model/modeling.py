"""A DeepSeek-V3 transformer with hyper-connected residual streams and an n-gram memory.

What is unusual, everything else is `transformers`' DeepSeek-V3 (MLA, DeepSeekMoE, YaRN):
- `hc_mult` residual streams; every attention and MLP site reads a weighted collapse of them and
  mixes its output back (hyper-connections of `transformers`' DeepSeek-V4). 1 stream: x + f(x).
- a memory on some layers writes to the streams before that layer's attention.
- a memory's history (last N-1 ids, window of its convolution) lives in the KV cache.
"""

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3DecoderLayer,
    DeepseekV3ForCausalLM,
    DeepseekV3PreTrainedModel,
    DeepseekV3RMSNorm,
    DeepseekV3RotaryEmbedding,
    DeepseekV3TopkRouter,
)
from transformers.models.deepseek_v4.modeling_deepseek_v4 import (
    DeepseekV4HyperConnection,
    DeepseekV4HyperHead,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from engram_kernels import collapse_head, mix_in, mix_out
from engram_kernels.mixing import unsupported
from engram_kernels.table_update import keeps_row_gradients
from engram_model.backend import DEFAULT, choose_backend, set_backend
from engram_model.config import EngramConfig
from engram_model.errors import CheckpointError, UsageError
from engram_model.memory import Ahead, EngramMemory


class StreamMixing(DeepseekV4HyperConnection):
    """How a block reads several streams: DeepSeek-V4's parameters, computed by `mix_in`.

    Attributes:
        backend, used: what is asked for and what the last call ran, see `engram_model.backend`.
    """

    def __init__(self, config: EngramConfig) -> None:
        super().__init__(config)
        self.backend: str = DEFAULT
        self.used: str | None = None

    def forward(self, hidden_streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[batch, positions, M, d] -> post [.., M], comb [.., M, M], float32; collapse [.., d]."""
        why_plain = unsupported(hidden_streams)
        self.used = choose_backend(self.backend, why_plain, hidden_streams, self.fn)
        settings = self.hc_sinkhorn_iters, self.hc_eps, self.input_norm.eps
        return mix_in(hidden_streams, self.fn, self.base, self.scale, *settings, backend=self.used)


class StreamHead(DeepseekV4HyperHead):
    """How the model's end reads several streams; attributes as `StreamMixing`'s."""

    def __init__(self, config: EngramConfig) -> None:
        super().__init__(config)
        self.backend: str = DEFAULT
        self.used: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[batch, positions, M, d] -> [batch, positions, d]."""
        self.used = choose_backend(self.backend, unsupported(x), x, self.hc_fn)
        weights = self.hc_fn, self.hc_base, self.hc_scale
        return collapse_head(x, *weights, self.eps, self.input_norm.eps, backend=self.used)


class EngramDecoderLayer(DeepseekV3DecoderLayer):
    """Memory (on some layers), attention, MLP or experts, on one or several residual streams."""

    def __init__(self, config: EngramConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        has_memory = layer_idx in config.engram_layer_ids
        self.engram = EngramMemory(config, layer_idx) if has_memory else None
        self.multi_branch = config.engram_multi_branch
        streams = config.hc_mult > 1
        self.attn_hc = StreamMixing(config) if streams else None
        self.ffn_hc = StreamMixing(config) if streams else None

    def forward(
        self,
        hidden_states: Tensor,
        memory_ids: Tensor | None = None,
        memory_ahead: dict[int, Ahead | None] | None = None,
        **kwargs,
    ) -> Tensor:
        """hidden_states: [batch, positions, M, d], or [batch, positions, d] for one stream."""
        if self.engram is not None:
            ahead = (memory_ahead or {}).get(self.engram.layer_id)
            hidden_states = self._recall(hidden_states, memory_ids, ahead, kwargs)
        hidden_states = _site(
            hidden_states,
            self.attn_hc,
            lambda x: self.self_attn(self.input_layernorm(x), **kwargs)[0],
        )
        return _site(
            hidden_states, self.ffn_hc, lambda x: self.mlp(self.post_attention_layernorm(x))
        )

    def _recall(
        self, hidden: Tensor, ids: Tensor | None, ahead: Ahead | None, kwargs: dict
    ) -> Tensor:
        """The streams with what the memory adds."""
        assert self.engram is not None
        given = (ids, kwargs.get("past_key_values"), ahead)
        if self.attn_hc is None:
            return self.engram(hidden.unsqueeze(2), *given, True).squeeze(2)
        if self.multi_branch:
            return self.engram(hidden, *given, True)
        _, _, collapsed = self.attn_hc(hidden)
        return hidden + self.engram(collapsed.unsqueeze(2), *given)


def _site(streams: Tensor, mixing: nn.Module | None, block) -> Tensor:
    """Residual connection: plain, or collapse -> block -> expand beside the mixed streams."""
    if mixing is None:
        return streams + block(streams)
    post, comb, collapsed = mixing(streams)
    return mix_out(streams, block(collapsed), post, comb, backend=mixing.used)


class EngramPreTrainedModel(DeepseekV3PreTrainedModel):
    config: EngramConfig
    config_class = EngramConfig
    _no_split_modules = ["EngramDecoderLayer"]  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": EngramDecoderLayer,
        "attentions": DeepseekV3Attention,
        "router_logits": OutputRecorder(DeepseekV3TopkRouter, index=0),
    }
    _keep_in_fp32_modules_strict = [  # noqa: RUF012
        "e_score_correction_bias",
        "attn_hc",
        "ffn_hc",
        "hc_head",
    ]

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers looks for a decorator in this module's source; the experts are its own.
        return True

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's; the gradients that tables keep by rows are dropped too."""
        super().zero_grad(set_to_none)
        for weight in self.parameters():
            if keeps_row_gradients(weight):
                weight.row_grads.clear()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, DeepseekV4HyperConnection):
            init.normal_(module.fn, mean=0.0, std=std)
            init.zeros_(module.base)
            init.ones_(module.scale)
        elif isinstance(module, DeepseekV4HyperHead):
            init.normal_(module.hc_fn, mean=0.0, std=std)
            init.zeros_(module.hc_base)
            init.ones_(module.hc_scale)
        elif isinstance(module, EngramMemory):
            self._init_memory(module)

    def _init_memory(self, memory: EngramMemory) -> None:
        """Norms one, convolution zero (the paper's table 5); table and projection as any matrix."""
        init.ones_(memory.q_weight)
        init.ones_(memory.k_weight)
        if self.config.engram_kernel_size:
            init.zeros_(memory.conv.weight)
            init.ones_(memory.conv_norm.weight)
        for name, constant in memory.hash_constants().items():
            init.copy_(getattr(memory, name), constant)
        init.copy_(memory.compression, torch.arange(self.config.vocab_size, dtype=torch.int32))


class EngramModel(EngramPreTrainedModel):
    def __init__(self, config: EngramConfig) -> None:
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            EngramDecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.hc_head = StreamHead(config) if config.hc_mult > 1 else None
        self.norm = DeepseekV3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = DeepseekV3RotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def memories(self) -> list[EngramMemory]:
        """The memories in the order of their layers."""
        return [module for module in self.modules() if isinstance(module, EngramMemory)]

    def expand(self, embeddings: Tensor) -> Tensor:
        """[batch, positions, d] -> what the first layer reads: a copy a stream."""
        if self.hc_head is None:
            return embeddings
        return embeddings.unsqueeze(2).expand(-1, -1, self.config.hc_mult, -1).contiguous()

    def collapse(self, streams: Tensor) -> Tensor:
        """Residual of any layer -> [batch, positions, d], as the model's own head does it."""
        return streams if self.hc_head is None else self.hc_head(streams)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        past_key_values=None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        engram_input_ids: Tensor | None = None,
        **kwargs,
    ) -> MoeModelOutputWithPast:
        """As DeepSeek-V3's; `engram_input_ids` [batch, positions] go with `inputs_embeds`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids or inputs_embeds")
        ids = input_ids if engram_input_ids is None else engram_input_ids
        if ids is None and self.config.engram_layer_ids:
            raise ValueError("the memory hashes token ids: give engram_input_ids beside embeddings")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        learning = self.training and torch.is_grad_enabled()  # it reads no cache that it made
        if use_cache and past_key_values is None and not learning:
            past_key_values = DynamicCache(config=self.config)
        self._check_cache(past_key_values)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            positions = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
            position_ids = (positions + seen).unsqueeze(0)
        causal_mask, text_mask = self._masks(
            attention_mask, inputs_embeds, past_key_values, position_ids
        )
        memory_ids = _text_only(self._hashed(ids, position_ids), text_mask)
        memory_ahead = self._look_ahead(memory_ids, past_key_values)
        position_embeddings = self.rotary_emb(inputs_embeds, position_ids)
        hidden_states = self.expand(inputs_embeds)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                memory_ids=memory_ids,
                memory_ahead=memory_ahead,
                position_embeddings=position_embeddings,
                attention_mask=causal_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        hidden_states = self.norm(self.collapse(hidden_states))
        return MoeModelOutputWithPast(
            last_hidden_state=hidden_states, past_key_values=past_key_values
        )

    def _hashed(self, ids: Tensor | None, position_ids: Tensor) -> Tensor | None:
        """What the memories hash: the text's ids, or as a control its positions in their place."""
        if ids is None or self.config.engram_hash == "ngram":
            return ids
        return torch.where(ids < 0, ids, position_ids % self.config.vocab_size)

    def _look_ahead(self, ids: Tensor | None, cache) -> dict[int, Ahead | None]:
        """Start to fetch the rows of all memories whose tables are not on the device."""
        if self.config.engram_table == "device":
            return {}
        return {memory.layer_id: memory.look_ahead(ids, cache) for memory in self.memories}

    def _masks(self, mask, embeddings, cache, position_ids):
        """4-D causal mask, and the 2-D mask of real tokens; generate may have made both."""
        if isinstance(mask, dict):
            return mask["full_attention"], mask.get("linear_attention")
        causal = create_causal_mask(
            config=self.config,
            inputs_embeds=embeddings,
            attention_mask=mask,
            past_key_values=cache,
            position_ids=position_ids,
        )
        return causal, mask if mask is not None and mask.ndim == 2 else None

    def _check_cache(self, cache) -> None:
        layers = getattr(cache, "layers", None)
        for layer_id in self.config.engram_layer_ids if cache is not None else ():
            if not layers or not hasattr(layers[layer_id], "update_conv_state"):
                raise UsageError(
                    "this cache has no room for the memory's history: make it with "
                    "DynamicCache(config=model.config)"
                )


def _text_only(ids: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Ids with -1 where the mask says there is no text."""
    if ids is None or mask is None:
        return ids
    return ids.masked_fill(mask[:, -ids.shape[1] :] == 0, -1)


class EngramForCausalLM(EngramPreTrainedModel, DeepseekV3ForCausalLM):
    """The language model: `transformers`' causal LM on `EngramModel`."""

    def __init__(self, config: EngramConfig) -> None:
        DeepseekV3PreTrainedModel.__init__(self, config)  # V3's own would build a second model
        self.model = EngramModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        if torch.get_default_dtype().itemsize == 2 and config.moe_intermediate_size % 8:
            # grouped products of 16-bit weights need rows of a multiple of 16 bytes
            self.set_experts_implementation("eager")

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As transformers', and refuses weights whose hash is not the one the config describes."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.check_hash()
        return loaded

    def set_backend(self, backend: str) -> None:
        """Run memories and streams with "auto", "torch" or "triton", see `engram_model.backend`."""
        set_backend(self, backend)

    def set_compression(self, compression) -> None:
        """Give every memory this map [vocab] from raw to compressed ids."""
        for memory in self.model.memories:
            memory.set_compression(compression)
            self.config.engram_compression_sha256 = memory.compression_sha256()

    def check_hash(self) -> None:
        """Compare stored multipliers, primes and compression with the config.

        Raises:
            CheckpointError: they differ, so every lookup would read other rows than in training.
        """
        for memory in self.model.memories:
            for name, expected in memory.hash_constants().items():
                if not torch.equal(getattr(memory, name).cpu(), expected):
                    raise CheckpointError(
                        f"hash {name} of layer {memory.layer_id} differ from what the config "
                        "describes: the weights belong to another config"
                    )
            expected = self.config.engram_compression_sha256
            if expected is not None and memory.compression_sha256() != expected:
                raise CheckpointError(
                    f"compression map of layer {memory.layer_id} does not match its checksum: "
                    "the checkpoint is damaged or was edited"
                )


AutoConfig.register("engram", EngramConfig)
AutoModel.register(EngramConfig, EngramModel)
AutoModelForCausalLM.register(EngramConfig, EngramForCausalLM)
