"""Named model configurations: the paper's large ones and the small ones trained here.

The paper (arXiv 2601.07372, table 5) states layers, width, heads, experts and memory. It does not
state the ranks and head sizes of attention nor the widths of experts and dense layers: those below
are derived so that total, active and memory parameters come out as published.

In a family trained here (nano, mini) all models have equal active parameters, and those with idle
experts or a memory equal totals: a memory's rows replace routed experts, and the width of the
dense layers (`intermediate_size`) makes up for its projections.
"""

from typing import Any

from engram_model.config import EngramConfig
from engram_model.errors import UsageError

_PAPER: dict[str, Any] = dict(
    vocab_size=129_280,
    hidden_size=2560,
    num_hidden_layers=30,
    num_attention_heads=32,
    num_key_value_heads=32,
    q_lora_rank=512,  # derived, as the next four
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    intermediate_size=12_288,  # derived
    moe_intermediate_size=1536,  # derived from the experts given up for the memory
    n_routed_experts=72,
    num_experts_per_tok=6,
    n_shared_experts=2,
    first_k_dense_replace=1,
    max_position_embeddings=4096,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    hc_mult=4,
)
_PAPER_MEMORY: dict[str, Any] = dict(
    n_routed_experts=55,
    engram_layer_ids=[1, 14],  # the paper counts layers from 1: its 2 and 15
    engram_max_ngram_size=3,
    engram_n_heads=8,
    engram_head_dim=80,
    engram_compressed_vocab_size=99_092,
)
_NANO: dict[str, Any] = dict(
    vocab_size=4096,
    hidden_size=128,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=4,
    q_lora_rank=None,
    kv_lora_rank=48,
    qk_nope_head_dim=16,
    qk_rope_head_dim=16,
    v_head_dim=32,
    intermediate_size=256,
    moe_intermediate_size=56,
    n_routed_experts=16,
    num_experts_per_tok=4,
    n_shared_experts=1,
    first_k_dense_replace=1,
    max_position_embeddings=1024,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    tie_word_embeddings=True,
    pad_token_id=2,
    hc_mult=4,
)
_NANO_MEMORY: dict[str, Any] = dict(
    intermediate_size=144,
    n_routed_experts=13,
    engram_layer_ids=[1],
    engram_max_ngram_size=3,
    engram_n_heads=4,
    engram_head_dim=8,
    engram_vocab_size=7040,
)
_MINI: dict[str, Any] = {
    **_NANO,
    **dict(
        vocab_size=8192,
        hidden_size=192,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        v_head_dim=48,
        intermediate_size=768,
        moe_intermediate_size=96,
        n_routed_experts=21,
    ),
}
_MINI_MEMORY: dict[str, Any] = {
    **_NANO_MEMORY,
    **dict(
        intermediate_size=552,
        n_routed_experts=17,
        engram_head_dim=16,
        engram_vocab_size=12_060,
    ),
}
_TINY: dict[str, Any] = dict(
    vocab_size=512,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=2,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    intermediate_size=64,
    moe_intermediate_size=16,
    n_routed_experts=4,
    num_experts_per_tok=2,
    max_position_embeddings=128,
    hc_mult=2,
)
_TINY_MEMORY: dict[str, Any] = dict(engram_layer_ids=[1], engram_n_heads=2, engram_vocab_size=499)

PRESETS: dict[str, dict[str, Any]] = {
    "dense-4b": {**_PAPER, "first_k_dense_replace": 30},
    "moe-27b": _PAPER,
    "engram-27b": {**_PAPER, **_PAPER_MEMORY, "engram_vocab_size": 2_262_400},
    "engram-40b": {**_PAPER, **_PAPER_MEMORY, "engram_vocab_size": 7_239_680},
    "moe-nano": _NANO,
    "engram-nano": {**_NANO, **_NANO_MEMORY},
    "dense-mini": {**_MINI, "first_k_dense_replace": 8, "intermediate_size": 520},
    "moe-mini": _MINI,
    "engram-mini": {**_MINI, **_MINI_MEMORY},
    "engram-mini-single": {**_MINI, **_MINI_MEMORY, "hc_mult": 1, "intermediate_size": 1208},
    "moe-tiny": {**_NANO, **_TINY},
    "engram-tiny": {**_NANO, **_NANO_MEMORY, **_TINY, **_TINY_MEMORY},
}


def preset_config(name: str, **overrides: Any) -> EngramConfig:
    """The configuration of a preset, with some fields replaced.

    Raises:
        UsageError: no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return EngramConfig(**{**PRESETS[name], **overrides})
