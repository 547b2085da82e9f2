"""Presets build without memory and count as published; families are matched."""

import pytest
import torch

from engram_model import EngramForCausalLM
from engram_model.accounting import count_parameters
from engram_model.errors import UsageError
from engram_model.presets import PRESETS, preset_config

# total, active and memory parameters in 1e9: arXiv 2601.07372, table 5
PUBLISHED = {
    "dense-4b": (4.1, 3.8, None),
    "moe-27b": (26.7, 3.8, None),
    "engram-27b": (26.7, 3.8, 5.7),
    "engram-40b": (39.5, 3.8, 18.5),
}


def counted(name):
    with torch.device("meta"):
        return count_parameters(EngramForCausalLM(preset_config(name)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_large_presets_count_as_published(name):
    total, active, memory = PUBLISHED[name]
    counts = counted(name)
    assert counts.total / 1e9 == pytest.approx(total, rel=0.015)
    assert counts.active / 1e9 == pytest.approx(active, rel=0.015)
    assert counts.active_paper / 1e9 == pytest.approx(active, rel=0.015)
    # the paper rounds 5.79 down; 18.5 and the row counts agree exactly
    assert memory is None or counts.table / 1e9 == pytest.approx(memory, rel=0.017)


FAMILIES = {  # models with a memory or idle experts, and the most bytes in bfloat16
    "nano": (["moe-nano", "engram-nano"], 8e6),
    "mini": (["moe-mini", "engram-mini", "engram-mini-single"], 24e6),  # and 1 MB in float32
}


@pytest.mark.parametrize("family", FAMILIES)
def test_family_is_matched(family):
    names, most = FAMILIES[family]
    moe, *others = [counted(name) for name in names]
    assert 2 * moe.total < most
    for engram in others:
        assert engram.total == pytest.approx(moe.total, rel=0.005)
        assert engram.active == pytest.approx(moe.active, rel=0.005)
        assert engram.sparse == pytest.approx(moe.sparse, rel=0.005)
        assert 0.2 < engram.table / engram.sparse < 0.255


def test_dense_mini_is_all_active():
    dense, moe = counted("dense-mini"), counted("moe-mini")
    assert dense.total == dense.active == pytest.approx(moe.active, rel=0.005)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith(("nano", "mini"))])
def test_widths_suit_grouped_products_and_rows_the_kernels(name):
    """16-bit rows of a multiple of 16 bytes, which is what one thread reads."""
    config = preset_config(name)
    assert config.moe_intermediate_size % 8 == config.intermediate_size % 8 == 0
    assert config.engram_head_dim % 8 == 0


def test_counts_of_a_model_small_enough_to_count_by_hand(make_model):
    model = make_model(1, memory_layers=(1,), layers=2, num_experts_per_tok=2)
    counts = count_parameters(model)
    moe = model.model.layers[1].mlp.experts
    routed = moe.gate_up_proj.numel() + moe.down_proj.numel()
    table = model.model.layers[1].engram.embed.weight.numel()
    assert counts.total == sum(p.numel() for p in model.parameters())
    assert counts.sparse == routed // 2 + table  # 2 of 4 experts
    assert counts.active == counts.total - counts.sparse


def test_unknown_preset_lists_those_there_are():
    with pytest.raises(UsageError, match=f"no preset 'x'; there are {', '.join(PRESETS)}"):
        preset_config("x")
