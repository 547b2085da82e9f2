"""The memory module alone: the public demo's arithmetic, V4.1's gate, masks and histories."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engram_kernels import gate, gate_score
from engram_model import EngramConfig, EngramMemory
from engram_model.errors import UsageError

V41 = json.loads((Path(__file__).parents[1] / "data" / "v41_vectors.json").read_text())


def memory_config(**fields) -> EngramConfig:
    given = dict(
        vocab_size=120,
        hidden_size=24,
        num_hidden_layers=4,
        hc_mult=4,
        engram_layer_ids=[1, 3],
        engram_n_heads=2,
        engram_head_dim=6,
        engram_vocab_size=101,
        engram_kernel_size=4,
        engram_bias=True,
        engram_norm_eps=torch.finfo(torch.float32).eps,
    )
    return EngramConfig(**{**given, **fields})


def randomised(memory: EngramMemory, seed: int = 0) -> EngramMemory:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in memory.parameters():
            weight.normal_(generator=generator)
    return memory


def plain_demo(memory: EngramMemory, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The public demo's arithmetic from its description: one Linear and one norm per stream,
    torch's own RMSNorm, a grouped Conv1d padded on both sides and cut."""
    config, batch, positions = memory.config, *ids.shape
    streams, width = config.hc_mult, config.hidden_size
    slots = config.hasher(pad_id=config.engram_pad_token_id).slots(ids, memory.layer_id)
    looked_up = memory.embed.weight[slots].reshape(batch, positions, -1)
    weights, biases = memory.wkv.weight.split(width), memory.wkv.bias.split(width)
    value = F.linear(looked_up, weights[-1], biases[-1])
    gated = []
    for stream in range(streams):
        key = F.linear(looked_up, weights[stream], biases[stream])
        norm_key, norm_query = nn.RMSNorm(width), nn.RMSNorm(width)
        norm_key.weight, norm_query.weight = (
            nn.Parameter(memory.k_weight[stream].detach()),
            nn.Parameter(memory.q_weight[stream].detach()),
        )
        score = (norm_key(key) * norm_query(hidden[:, :, stream])).sum(-1) / math.sqrt(width)
        root = score.abs().clamp_min(1e-6).sqrt() * score.sign()
        gated.append(torch.sigmoid(root).unsqueeze(-1) * value)
    gated = torch.stack(gated, 2)
    normed = torch.stack(
        [
            F.rms_norm(gated[:, :, m], (width,), memory.conv_norm.weight[m], 1e-5)
            for m in range(streams)
        ],
        2,
    )
    padding = (config.engram_kernel_size - 1) * config.engram_dilation
    conv = F.conv1d(
        normed.reshape(batch, positions, -1).transpose(1, 2),
        memory.conv.weight,
        padding=padding,
        dilation=config.engram_dilation,
        groups=streams * width,
    )[..., :positions]
    return F.silu(conv).transpose(1, 2).reshape(gated.shape) + gated


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("order", [3, 4])
def test_memory_equals_the_public_demo(streams, order):
    config = memory_config(hc_mult=streams, engram_max_ngram_size=order)
    memory = randomised(EngramMemory(config, layer_id=3))
    hidden, ids = torch.randn(2, 17, streams, 24), torch.randint(0, 120, (2, 17))
    with torch.no_grad():
        expected = plain_demo(memory, hidden, ids)
        assert (memory(hidden, ids) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_parameters_have_the_published_names_and_shapes():
    memory = EngramMemory(memory_config(), layer_id=1)
    rows = memory.config.hasher(pad_id=0).rows(1)
    assert {name: tuple(weight.shape) for name, weight in memory.named_parameters()} == {
        "embed.weight": (rows, 6),
        "wkv.weight": (5 * 24, 4 * 6),
        "wkv.bias": (5 * 24,),
        "q_weight": (4, 24),
        "k_weight": (4, 24),
        "conv.weight": (96, 1, 4),
        "conv_norm.weight": (4, 24),
    }


def bfloat16(text: str, *shape: int) -> torch.Tensor:
    raw = np.frombuffer(bytes.fromhex(text), dtype="<u2").astype(np.int32)
    return torch.from_numpy(raw << 16).view(torch.float32).reshape(shape)


def test_gate_equals_v41():
    vector = V41["gate_vector"]
    width, streams = vector["D"], vector["hc"]
    hidden = bfloat16(vector["x_bf16_hex"], -1, streams, width)
    keys_value = bfloat16(vector["kv_bf16_hex"], -1, streams + 1, width)
    weights = [bfloat16(vector[f"{n}_weight_bf16_hex"], streams, width) for n in "qk"]
    score = gate_score(hidden, keys_value[:, :-1], *weights, eps=vector["eps"])
    assert torch.allclose(score, torch.tensor(vector["dot"]), atol=1e-6)
    gates = gate(score, "sqrt", "copysign")
    assert torch.allclose(gates, torch.tensor(vector["gate"]), atol=1e-6)
    out = (hidden + gates.unsqueeze(-1) * keys_value[:, -1:]).bfloat16().float()
    assert torch.equal(out, torch.tensor(vector["out_bf16_as_float"]).reshape(out.shape))


def test_gate_of_a_score_of_zero():
    zero = torch.zeros(1)
    assert gate(zero, "sqrt", "sign").item() == 0.5
    assert gate(zero, "sqrt", "copysign").item() == pytest.approx(0.50025, abs=1e-6)
    assert gate(torch.tensor([4.0]), "sqrt").item() == pytest.approx(1 / (1 + math.exp(-2)))
    assert gate(torch.tensor([4.0]), "linear").item() == pytest.approx(1 / (1 + math.exp(-4)))


def test_positions_without_text_add_nothing_and_cut_ngrams():
    memory = randomised(EngramMemory(memory_config(), layer_id=1))
    hidden, ids = torch.randn(1, 12, 4, 24), torch.randint(3, 120, (1, 12))
    ids[0, 5] = -1
    with torch.no_grad():
        out = memory(hidden, ids)
        seen = {}
        memory.tap = lambda name, tensor: seen.setdefault(name, tensor)
        memory(hidden, ids)
    assert torch.equal(out[0, 5], torch.zeros(4, 24))
    fresh = memory.config.hasher(pad_id=2).slots(ids[:, 6:], 1)
    assert torch.equal(seen["slots"][:, 6:], fresh)


def test_zero_convolution_adds_gate_times_value():
    memory = randomised(EngramMemory(memory_config(), layer_id=1))
    nn.init.zeros_(memory.conv.weight)
    hidden, ids, seen = torch.randn(1, 8, 4, 24), torch.randint(0, 120, (1, 8)), {}
    memory.tap = lambda name, tensor: seen.setdefault(name, tensor)
    with torch.no_grad():
        memory(hidden, ids)
    assert torch.equal(seen["conv"], torch.zeros_like(seen["conv"]))
    expected = seen["gate"].unsqueeze(-1) * seen["value"].unsqueeze(2)
    assert torch.allclose(seen["out"], expected)


def test_without_convolution_there_is_no_window():
    memory = randomised(EngramMemory(memory_config(engram_kernel_size=0), layer_id=1))
    assert not hasattr(memory, "conv")
    hidden, ids = torch.randn(1, 8, 4, 24), torch.randint(0, 120, (1, 8))
    with torch.no_grad():
        whole = memory(hidden, ids)
        shifted = memory(hidden.flip(0), ids.clone())
    assert torch.equal(whole, shifted)


def test_tap_replaces_what_it_is_given():
    memory = randomised(EngramMemory(memory_config(), layer_id=1))
    hidden, ids = torch.randn(1, 8, 4, 24), torch.randint(0, 120, (1, 8))
    memory.tap = lambda name, tensor: tensor * 0 if name == "out" else tensor
    with torch.no_grad():
        assert torch.equal(memory(hidden, ids), torch.zeros(1, 8, 4, 24))


def test_refuses_ids_beyond_the_compressed_vocabulary():
    """Without a map, ids beyond the compressed size would wrap: never silently."""
    memory = EngramMemory(memory_config(engram_compressed_vocab_size=10), layer_id=1)
    memory(torch.zeros(1, 1, 4, 24), torch.tensor([[9]]))
    with pytest.raises(UsageError, match="compressed ids from 10 to 10 are outside"):
        memory(torch.zeros(1, 1, 4, 24), torch.tensor([[10]]))


@pytest.mark.parametrize("bad", [120, -2])
def test_refuses_ids_outside_the_vocabulary(bad):
    memory = EngramMemory(memory_config(), layer_id=1)
    with pytest.raises(UsageError, match="outside the vocabulary of 120"):
        memory(torch.zeros(1, 1, 4, 24), torch.tensor([[bad]]))


def test_refuses_a_compression_map_that_does_not_fit():
    config = memory_config(engram_compressed_vocab_size=100)
    with pytest.raises(UsageError, match="120 ids to 120 does not fit"):
        EngramMemory(config, layer_id=1, compression=np.arange(120))
    EngramMemory(config, layer_id=1, compression=np.arange(120) % 100)


def test_refuses_repeated_or_missing_layers():
    with pytest.raises(UsageError, match="repeats a layer"):
        memory_config(engram_layer_ids=[1, 1])
    with pytest.raises(UsageError, match=r"\[4\]: the model has layers 0..3"):
        memory_config(engram_layer_ids=[4])
