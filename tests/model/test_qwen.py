"""`qwen4_exp`: the memory's taps change nothing, its hash is exact, its bridge adds up."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DynamicCache

import engram_model as em
from engram_model.errors import CheckpointError, UsageError
from engram_model.hashing import QwenHasher, hasher_from
from engram_model.memories import memories_of
from engram_model.memory import HOOKS

DATA = Path(__file__).parents[1] / "data"
REAL = json.loads((DATA / "hash_vectors.json").read_text())["qwen38_flash_next"]


@pytest.fixture(scope="module")
def qwen(make_qwen):
    return make_qwen()


@pytest.fixture(scope="module")
def ended(ids, tokenizer):
    """Ids with ends of texts in them: one alone, two in a row, one at the start."""
    ended = ids.clone()
    ended[0, [5, 12, 13]] = tokenizer.eos_token_id
    ended[1, [0, 20]] = tokenizer.eos_token_id
    return ended


def hasher_of(model):
    memories = list(memories_of(model).values())
    return memories[0].hasher_of(memories)


def looked_up(model, ids, **named):
    """Layer -> ids that the module itself looks up, before anything of ours touches them."""
    found = {}
    hooks = [
        layer.ple.ple_embedding.ngram_embedding.register_forward_pre_hook(
            lambda _m, args, index=index: found.update({index: args[0]})
        )
        for index, layer in enumerate(model.model.layers)
        if layer.ple is not None
    ]
    with torch.no_grad():
        logits = model(ids, **named).logits
    for hook in hooks:
        hook.remove()
    return found, logits


def test_constants_are_the_released_ones():
    hasher = QwenHasher([1], 3, 8, [20_000_000] * 2, 248_320, pad_id=248_044, seed=1234)
    assert hasher.multipliers(1).tolist() == REAL["multipliers"]
    assert hasher.primes(1).ravel().tolist() == REAL["head_primes"]
    assert hasher.rows(1) == REAL["rows"] == 320_001_446


def test_slots_are_those_that_the_module_looks_up(make_qwen, ended):
    model = make_qwen(ngram_size=4, ple_embed_dim=48)
    found, _ = looked_up(model, ended, use_cache=False)
    hasher = hasher_of(model)
    assert hasher.layer_ids == [0, 2] == sorted(found)
    for layer, slots in found.items():
        assert torch.equal(hasher.slots(ended, layer), slots)
        assert np.array_equal(hasher.slots(ended.numpy(), layer), slots.numpy())
        past = hasher.slots(ended[:, 9:], layer, history=ended[:, :9])
        assert torch.equal(past, slots[:, 9:])


def test_an_end_of_text_cuts_and_is_no_cut_of_itself(qwen, ended):
    hasher, row = hasher_of(qwen), ended[0].numpy()
    parts = hasher.segments(row)
    assert [len(part) for part in parts] == [6, 7, 1, 10]
    apart = np.concatenate([hasher.slots(part, 0) for part in parts])
    assert np.array_equal(apart, hasher.slots(row, 0))
    uncut = em.NgramHasher(**{k: v for k, v in hasher.arguments().items() if k != "rule"})
    uncut.multipliers = hasher.multipliers
    differ = (uncut.slots(row, 0) != hasher.slots(row, 0)).any(-1)
    # What is right behind an end: there alone a trigram reaches over one to another token.
    assert np.flatnonzero(differ).tolist() == [6, 13]


def test_arguments_make_the_hasher_again(qwen, ended):
    hasher = hasher_of(qwen)
    again = hasher_from(json.loads(json.dumps(hasher.arguments())))
    assert isinstance(again, QwenHasher)
    assert torch.equal(again.slots(ended, 2), hasher.slots(ended, 2))
    plain = em.NgramHasher([1], 3, 2, [101, 101], 100, pad_id=2)
    assert type(hasher_from(plain.arguments())) is em.NgramHasher


def test_foreign_constants_are_refused(make_qwen):
    model = make_qwen()
    memories_of(model)[2].ple_embedding.layer_multipliers[1] += 2
    with pytest.raises(CheckpointError, match="layer 2: the hash constants"):
        hasher_of(model)


def test_a_model_without_memory(make_qwen):
    assert memories_of(make_qwen(ple_layer_ids=[])) == {}


def test_adopting_changes_no_number(make_qwen, ended):
    model = make_qwen()
    keys = list(model.state_dict())
    before = looked_up(model, ended, use_cache=False)[1]
    memories_of(model)
    assert list(model.state_dict()) == keys
    assert torch.equal(looked_up(model, ended, use_cache=False)[1], before)


@pytest.mark.parametrize("mask", [False, True])
def test_tapping_changes_no_number(make_qwen, ended, mask):
    model = make_qwen()
    attention = torch.ones_like(ended)
    attention[1, :4] = 0
    named = dict(use_cache=False, attention_mask=attention if mask else None)
    slots, before = looked_up(model, ended, **named)
    told = {}
    for layer, memory in memories_of(model).items():
        memory.tap = lambda name, t, layer=layer: told.update({(layer, name): t}) or t
    with torch.no_grad():
        assert torch.equal(model(ended, **named).logits, before)
    assert [name for layer, name in told if layer == 0] == [*HOOKS]
    for layer, found in slots.items():
        assert torch.equal(told[layer, "slots"], found)


def test_intermediates_are_what_the_weights_say(qwen, ids):
    """Recomputed from the weights alone, in float64, with no function of the model's."""
    told, seen = {}, {}
    memory = memories_of(qwen)[2]
    memory.tap = lambda name, t: told.update({name: t}) or t
    hook = memory.register_forward_pre_hook(lambda _m, args: seen.update(hidden=args[0]))
    with torch.no_grad():
        qwen(ids, use_cache=False)
    memory.tap = None
    hook.remove()
    weights = {name: w.detach().double() for name, w in memory.state_dict().items()}
    batch, positions, streams, width = 2, ids.shape[1], 4, 32

    def normed(x, name):
        x = x.double().reshape(batch, positions, streams, width)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return x * (1 + weights[f"{name}.weight"].reshape(streams, width))

    rows = weights["ple_embedding.ngram_embedding.weight"][told["slots"]]
    key = rows.flatten(-2) @ weights["key_proj.weight"].T
    value = rows.flatten(-2) @ weights["value_proj.weight"].T
    score = (normed(key, "norm_key") * normed(seen["hidden"], "norm_query")).sum(-1) / width**0.5
    gate = 1 / (1 + torch.exp(-torch.sign(score) * score.abs().sqrt()))
    gated = gate[..., None] * value[..., None, :]
    read = normed(gated.flatten(-2), "norm_conv").flatten(-2)
    conv = torch.zeros_like(read)
    for tap in range(4):  # the last weight is the current token's; the others 3, 6, 9 before
        back = 3 * (3 - tap)
        conv[:, back:] += weights["conv1d.weight"][:, 0, tap] * read[:, : positions - back]
    conv = (conv / (1 + torch.exp(-conv))).reshape(batch, positions, streams, width)
    expected = dict(rows=rows, value=value, score=score, gate=gate, conv=conv, out=gated + conv)
    expected["key"] = key.reshape(batch, positions, streams, width)
    for name, tensor in expected.items():
        assert told[name].shape == tensor.shape
        torch.testing.assert_close(told[name].double(), tensor, atol=2e-6, rtol=1e-5)
    by_row = torch.einsum("bpcw,dcw->bpd", told["rows"], memory.value_weight)
    torch.testing.assert_close(by_row, told["value"], atol=1e-5, rtol=1e-5)


def test_tapped_with_a_cache_as_without(qwen, ended):
    whole = looked_up(qwen, ended, use_cache=False)[1]
    for memory in memories_of(qwen).values():
        memory.tap = lambda name, tensor: tensor
    cache, parts = DynamicCache(config=qwen.config), []
    with torch.no_grad():
        for part in (ended[:, :7], ended[:, 7:8], ended[:, 8:9], ended[:, 9:]):
            parts.append(qwen(part, past_key_values=cache, use_cache=True).logits)
    for memory in memories_of(qwen).values():
        memory.tap = None
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def bridge(qwen, tokenizer):
    return em.hooked(qwen, tokenizer)


@torch.no_grad()
def test_bridge_is_the_model(bridge, qwen, ended):
    logits, cache = bridge.run_with_cache(ended, use_cache=False)
    torch.testing.assert_close(logits, qwen(ended, use_cache=False).logits, atol=1e-5, rtol=0)
    streams = (2, 24, 4, 32)
    shapes = dict(slots=(2, 24, 4), rows=(2, 24, 4, 8), key=streams, value=(2, 24, 32),
                  score=(2, 24, 4), gate=(2, 24, 4), conv=streams, out=streams)  # fmt: skip
    for name, shape in shapes.items():
        assert cache[f"blocks.2.engram.hook_{name}"].shape == shape
        assert f"blocks.1.engram.hook_{name}" not in cache
    for name in ("hook_in", "hook_out", "attn_hc.hook_in", "mlp_hc.hook_in", "engram.hook_in"):
        assert cache[f"blocks.2.{name}"].shape == streams
    assert cache["blocks.2.linear_attn.hook_ssm_decay"].shape == (2, 24, 4)
    assert cache["blocks.3.attn.hook_out"].shape == cache["blocks.2.hook_attn_out"].shape


@torch.no_grad()
def test_hooks_are_live(bridge, qwen, make_qwen, ids):
    silenced = bridge.run_with_hooks(
        ids, fwd_hooks=[(f"blocks.{n}.engram.hook_out", lambda t, hook: t * 0) for n in (0, 2)]
    )
    without = make_qwen(ple_layer_ids=[])
    without.load_state_dict(qwen.state_dict(), strict=False)
    torch.testing.assert_close(silenced, without(ids).logits, atol=1e-5, rtol=0)
    before = bridge(ids)
    for name in HOOKS:
        other = (lambda t, hook: t.flip(1)) if name == "slots" else (lambda t, hook: t * 0.5)
        changed = bridge.run_with_hooks(ids, fwd_hooks=[(f"blocks.0.engram.hook_{name}", other)])
        # Halving a key changes nothing: it is normed.
        assert ((changed - before).abs().max() > 1e-3) == (name != "key"), name
    swapped = [("blocks.3.hook_in", lambda t, hook: t[..., [1, 0, 2, 3], :])]
    assert (bridge.run_with_hooks(ids, fwd_hooks=swapped) - before).abs().max() > 1e-3


@torch.no_grad()
def test_decomposition_adds_up(bridge, ids):
    _, cache = bridge.run_with_cache(ids)
    stack, labels = cache.decompose_resid(return_labels=True)
    assert [label for label in labels if "engram" in label] == ["0_engram_out", "2_engram_out"]
    assert labels[:4] == ["embed", "0_engram_out", "0_attn_out", "0_mlp_out"]
    assert len(labels) == 1 + 2 * 4 + 2
    torch.testing.assert_close(stack.sum(0), cache["hc_head.hook_out"], atol=1e-5, rtol=0)
    layers, names = cache.accumulated_resid(return_labels=True)
    assert names == ["0_pre", "1_pre", "2_pre", "3_pre", "final_post"]
    torch.testing.assert_close(layers[-1], cache["hc_head.hook_out"], atol=1e-5, rtol=0)
    head = bridge.original_model.model.hyper_connection_mixer
    third = head(cache["blocks.2.hook_in"].flatten(-2))
    torch.testing.assert_close(layers[2], third, atol=1e-5, rtol=0)
    middle = cache.decompose_resid(layer=2, mlp_input=True).sum(0)
    read = head(cache["blocks.2.mlp_hc.hook_in"].flatten(-2))
    torch.testing.assert_close(middle, read, atol=1e-5, rtol=0)
    direction = bridge.tokens_to_residual_directions(torch.tensor(7))
    logit = (stack.sum(0) @ direction)[0, -1]
    torch.testing.assert_close(logit, bridge(ids)[0, -1, 7], atol=1e-5, rtol=0)


def test_a_model_of_two_modalities_has_no_bridge(tokenizer):
    class Qwen4ExpForConditionalGeneration:
        pass

    with pytest.raises(UsageError, match="no adapter for a Qwen4ExpForConditionalGeneration"):
        em.hooked(Qwen4ExpForConditionalGeneration(), tokenizer)
