"""TransformerLens on `qwen4_exp`, for which it has no adapter of its own.

Its M residual streams run side by side in one vector of M*d numbers; hooks see [batch, pos, M, d].
An attention or MLP reads a mix of all streams and adds its output to each with a weight; the end
mixes them channel by channel and has no norm behind that.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformer_lens.conversion_utils.conversion_steps.base_tensor_conversion import (
    BaseTensorConversion,
)
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components import (
    EmbeddingBridge,
    LinearBridge,
    RotaryEmbeddingBridge,
    UnembeddingBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.deepseek_v4 import DeepseekV4BlockBridge
from transformer_lens.model_bridge.supported_architectures.qwen3_next import (
    Qwen3NextArchitectureAdapter,
)

from engram_model.bridge import EngramBridge, EngramCache, MemoryBridge
from engram_model.memories import memories_of


class SideBySide(BaseTensorConversion):
    """[.., M*d], as the model has its streams, is [.., M, d] to hooks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width

    def handle_conversion(self, input_value: Tensor, *full_context) -> Tensor:
        return input_value.unflatten(-1, (-1, self._width))

    def revert(self, input_value: Tensor, *full_context) -> Tensor:
        return input_value.flatten(-2)


class QwenMemoryBridge(MemoryBridge):
    """A `QwenMemory` with the hooks of `MemoryBridge`."""

    def __init__(self, name: str, config: Any = None) -> None:
        super().__init__(name, config)
        self.hook_in.hook_conversion = SideBySide(config.d_model)

    def forward(self, hidden: Tensor, *given, **named) -> Tensor:
        with self._hooked() as memory:
            return memory(self.hook_in(hidden), *given, **named)


class QwenMixingBridge(GeneralizedComponent):
    """How a site reads and writes the streams.

    hook_in [batch, pos, M, d], hook_out [batch, pos, d] what the site reads, hook_post
    [batch, pos, M] the weights with which each stream is given its output.
    """

    def __init__(self, name: str, config: Any = None) -> None:
        super().__init__(name, config)
        self.hook_post = HookPoint()
        self.hook_in.hook_conversion = SideBySide(config.d_model)

    def forward(self, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mixed, streams, post = self.original_component(self.hook_in(streams))
        return self.hook_out(mixed), streams, self.hook_post(post)


class QwenEndBridge(GeneralizedComponent):
    """How the end reads the streams: hook_in [batch, pos, M, d], hook_out [batch, pos, d]."""

    def __init__(self, name: str, config: Any = None) -> None:
        super().__init__(name, config)
        self.hook_in.hook_conversion = SideBySide(config.d_model)


class QwenBlockBridge(DeepseekV4BlockBridge):
    """A block; its input and output are [batch, pos, M, d] to hooks."""

    hook_aliases: dict[str, str | list[str]] = {  # noqa: RUF012
        "hook_attn_out": ["attn.hook_out", "linear_attn.hook_out"],
        "hook_mlp_out": "mlp.hook_out",
    }

    def __init__(self, name: str, config: Any = None, submodules: Any = None, **named) -> None:
        super().__init__(name, config, submodules=submodules, **named)
        for hook in (self.hook_in, self.hook_out):
            hook.hook_conversion = SideBySide(config.d_model)


class QwenCache(EngramCache):
    """A cache whose end reads the streams channel by channel, normed as they are read."""

    def _head_weights(self, streams: Tensor) -> Tensor:
        """[batch, pos, M, d]: weights, times streams and summed over M, are the mixer's output."""
        mixer = self.model.hc_head.original_component
        norm, count = mixer.hc_norm, mixer.hc_count
        streams = streams.float()
        scale = torch.rsqrt(streams.square().mean(-1, keepdim=True) + norm.eps)
        gain = scale * (1 + norm.weight.float()).unflatten(0, (count, -1))
        down = F.linear((streams * gain).flatten(-2), mixer.input_mix_weight_down.weight.float())
        up = F.linear(F.silu(down / count), mixer.input_mix_weight_up.weight.float())
        return torch.sigmoid(up).unflatten(-1, (count, -1)) * gain / count

    def _final_norm(self, stack: Tensor) -> Tensor:
        return stack

    def _normalise(self, stack, labelled, layer, mlp_input, position_slice) -> Tensor:
        return stack


class QwenBridge(EngramBridge):
    """TransformerBridge whose cache is a `QwenCache`."""

    cache_class = QwenCache

    def tokens_to_residual_directions(self, tokens) -> Tensor:
        """Directions in what the end has read: `logit = <reading, direction>`."""
        return super(EngramBridge, self).tokens_to_residual_directions(tokens)


class QwenAdapter(Qwen3NextArchitectureAdapter):
    """TransformerLens's Qwen3-Next with memory, streams, and the model's own indexed attention."""

    bridge_class = QwenBridge

    def _build_component_mapping(self, *, hybrid: bool = False, lm_prefix: str = "model") -> dict:
        attention = {name: LinearBridge(name=f"{name}_proj") for name in "qkvo"}
        blocks = {
            "engram": QwenMemoryBridge(name="ple", config=self.cfg),
            "attn_hc": QwenMixingBridge("attn_hyper_connection", self.cfg),
            "attn": GeneralizedComponent("self_attn", submodules=attention, optional=True),
            "linear_attn": self._build_linear_attn_bridge(optional=True),
            "mlp_hc": QwenMixingBridge("mlp_hyper_connection", self.cfg),
            "mlp": self._build_mlp_bridge(),
        }
        return {
            "embed": EmbeddingBridge(name=f"{lm_prefix}.embed_tokens"),
            "rotary_emb": RotaryEmbeddingBridge(name=f"{lm_prefix}.rotary_emb", config=self.cfg),
            "blocks": QwenBlockBridge(f"{lm_prefix}.layers", self.cfg, submodules=blocks),
            "hc_head": QwenEndBridge(f"{lm_prefix}.hyper_connection_mixer", self.cfg),
            "unembed": UnembeddingBridge(name="lm_head"),
        }

    def prepare_model(self, hf_model: Any) -> None:
        super().prepare_model(hf_model)
        self.cfg.hc_mult = hf_model.config.hc_count
        memories_of(hf_model)  # makes them tell of themselves
