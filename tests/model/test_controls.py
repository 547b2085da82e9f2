"""Controls: each does what it says, and generates, saves and hooks as any model does."""

import pytest
import torch
import torch.nn.functional as F

import engram_model as em
from engram_model.controls import CONTROLS, control_fields
from engram_model.errors import UsageError
from engram_model.training.optimizer import MuonAdamW

MEMORY = 1  # after a layer, so that the streams it reads differ


@pytest.fixture(scope="module")
def make(make_model):
    """Function: name of a control -> a model of two layers, the second with a memory."""
    models = {}

    def make(name: str):
        if name not in models:
            models[name] = make_model(4, layers=2, memory_layers=(MEMORY,), **CONTROLS[name])
        return models[name]

    return make


@pytest.fixture(params=CONTROLS)
def control(request, make):
    return make(request.param)


def listen(model, ids, **given) -> dict[str, torch.Tensor]:
    """The memory's intermediates, and the streams before it as "hidden"."""
    [memory], seen = model.model.memories, {}
    memory.tap = lambda name, tensor: seen.setdefault(name, tensor)
    layer = model.model.layers[MEMORY]
    hook = layer.register_forward_pre_hook(lambda layer, args: seen.setdefault("hidden", args[0]))
    try:
        with torch.no_grad():
            model(ids, use_cache=False, **given)
    finally:
        memory.tap = None
        hook.remove()
    return seen


def value_of(model, rows) -> torch.Tensor:
    weight = model.model.layers[MEMORY].engram.wkv.weight[-model.config.hidden_size :]
    return F.linear(rows.flatten(-2), weight)


def test_control_computes_with_a_cache_what_it_does_without(control, ids):
    with torch.no_grad():
        whole = control(ids, use_cache=False).logits
        first = control(ids[:, :9], use_cache=True)
        rest = control(ids[:, 9:], past_key_values=first.past_key_values).logits
    assert (torch.cat([first.logits, rest], 1) - whole).abs().max() < 1e-4


def test_control_is_saved_with_its_config(control, ids, tokenizer, tmp_path):
    control.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = em.load(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, control(ids).logits)


@pytest.mark.parametrize("name", ["shuffled_hash", "no_gate", "no_convolution", "merged"])
def test_control_is_hooked_and_its_decomposition_adds_up(make, ids, tokenizer, name):
    control = make(name)
    with torch.no_grad():
        logits, cache = em.hooked(control, tokenizer).run_with_cache(ids)
        assert (logits - control(ids).logits).abs().max() < 1e-4
    parts, labels = cache.decompose_resid(return_labels=True)
    assert f"{MEMORY}_engram_out" in labels
    whole = cache.accumulated_resid()[-1]
    assert (parts.sum(0) - whole).abs().max() < 1e-4 * whole.abs().max()


@pytest.mark.parametrize("name", CONTROLS)
def test_control_learns(make_model, ids, name):
    model = make_model(2, layers=1, memory_layers=(0,), **CONTROLS[name])
    [memory], size = model.model.memories, model.config.hidden_size
    before = memory.embed.weight.clone(), memory.wkv.weight.clone()
    optimizer = MuonAdamW(model, 0.01, weight_decay=0.0)
    model(ids[:, :8], labels=ids[:, :8], use_cache=False).loss.backward()
    optimizer.step()
    moved_table, moved = memory.embed.weight != before[0], memory.wkv.weight != before[1]
    assert moved_table.any() and moved[-size:].any()
    assert moved[:-size].any() == (name != "no_gate")
    assert all(weight.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("name", ["capacity_1", "shuffled_hash", "linear_gate", "merged"])
def test_control_runs_on_the_kernels(make_model, ids, name):
    model = make_model(2, layers=1, memory_layers=(0,), **CONTROLS[name])
    logits = []
    for backend in ("torch", "triton"):
        model.set_backend(backend)
        with torch.no_grad():
            logits.append(model(ids[:, :6], use_cache=False).logits)
        assert model.model.memories[0].used == backend
    assert (logits[1] - logits[0]).abs().max() < 1e-4


def test_one_row_is_read_by_every_ngram(make, ids):
    model = make("capacity_1")
    assert model.model.memories[0].embed.weight.shape[0] == 4
    slots = listen(model, ids)["slots"]
    assert torch.equal(slots, torch.arange(4).expand_as(slots))


def test_positions_are_those_of_the_text_in_a_padded_batch(make, ids, tokenizer):
    model = make("shuffled_hash")
    given = dict(max_new_tokens=3, do_sample=False, eos_token_id=None)
    padding = torch.full((1, 4), tokenizer.pad_token_id)
    batch = torch.cat([torch.cat([padding, ids[:1, :6]], 1), ids[1:, :10]])
    mask = torch.ones_like(batch)
    mask[0, :4] = 0
    together = model.generate(batch, attention_mask=mask, **given)
    alone = model.generate(ids[:1, :6], use_cache=False, **given)
    assert together[0, -3:].tolist() == alone[0, -3:].tolist()


def test_position_chooses_the_rows_whatever_the_text(make, ids):
    model = make("shuffled_hash")
    slots = listen(model, ids)["slots"]
    assert not torch.equal(ids[0], ids[1]) and torch.equal(slots[0], slots[1])
    assert slots[0].unique(dim=0).shape[0] == ids.shape[1]
    config, memory = model.config, model.model.memories[-1]
    hasher = config.hasher(int(memory.compression[config.engram_pad_token_id]))
    places = memory.compression[: ids.shape[1]]
    assert torch.equal(slots[0], hasher.slots(places, MEMORY))
    shifted = torch.arange(5, 5 + ids.shape[1])[None]
    later = listen(model, ids, position_ids=shifted)["slots"]
    assert torch.equal(later[0, 2:-5], slots[0, 7:])


def test_linear_gate_is_the_sigmoid_of_the_score(make, ids):
    seen = listen(make("linear_gate"), ids)
    assert torch.allclose(seen["gate"], torch.sigmoid(seen["score"]))


def test_without_a_gate_the_value_enters_in_full(make, ids):
    model = make("no_gate")
    seen = listen(model, ids)
    value = value_of(model, seen["rows"]).unsqueeze(2)
    assert torch.allclose(seen["out"], value + seen["conv"], atol=1e-6)


def test_kernels_always_gate(make_model, ids):
    model = make_model(1, layers=1, memory_layers=(0,), **CONTROLS["no_gate"])
    model.set_backend("triton")
    with pytest.raises(em.errors.UsageError, match="the kernels always gate"):
        model(ids)


def test_without_convolution_the_gated_value_is_all(make, ids):
    model = make("no_convolution")
    seen = listen(model, ids)
    gated = seen["gate"].unsqueeze(-1) * value_of(model, seen["rows"]).unsqueeze(2)
    assert "conv" not in seen and torch.allclose(seen["out"], gated, atol=1e-6)


def test_without_compression_raw_ids_are_hashed(make, ids):
    model = make("no_compression")
    config = model.config
    assert config.engram_compressed_vocab_size == config.vocab_size
    assert config.engram_compression_sha256 is None
    slots = config.hasher(config.engram_pad_token_id).slots(ids, MEMORY)
    assert torch.equal(listen(model, ids)["slots"], slots)


def test_merged_memory_has_one_gate_of_the_collapsed_streams(make, ids):
    model = make("merged")
    layer, width = model.model.layers[MEMORY], model.config.hidden_size
    memory, seen = layer.engram, listen(model, ids)
    assert memory.wkv.weight.shape[0] == 2 * width and memory.q_weight.shape == (1, width)
    with torch.no_grad():
        _, _, collapsed = layer.attn_hc(seen["hidden"])
    key = F.linear(seen["rows"].flatten(-2), memory.wkv.weight[:width])
    query = F.rms_norm(collapsed, (width,), memory.q_weight[0], 1e-20)
    key = F.rms_norm(key, (width,), memory.k_weight[0], 1e-20)
    score = (query * key).sum(-1, keepdim=True) / width**0.5
    assert torch.allclose(seen["score"], score, atol=1e-5)
    assert seen["gate"].shape == (*ids.shape, 1) and seen["out"].shape == (*ids.shape, 1, width)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("none", "engram-tiny", {}), "no control 'none'; there are capacity_1, "),
        (("merged", "moe-tiny", {}), "moe-tiny has no memory"),
        (("no_gate", "engram-tiny", {"engram_gate": "sqrt"}), "engram_gate is what the control"),
    ],
)
def test_what_is_no_control(arguments, line):
    with pytest.raises(UsageError, match=line):
        control_fields(*arguments)


def test_a_control_with_other_changes():
    assert control_fields("no_gate", "engram-tiny", {"hc_mult": 1}) == {
        "engram_gate": "none", "hc_mult": 1,
    }  # fmt: skip
