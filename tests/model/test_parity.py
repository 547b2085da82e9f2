"""Parity: cached equals uncached, saved equals loaded, hooked equals plain, sums equal wholes."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, pipeline

import engram_model as em

STREAMS = [1, 4]


@pytest.fixture(params=STREAMS, ids=lambda streams: f"{streams}-streams", scope="module")
def model(request, make_model):
    return make_model(request.param)


@pytest.fixture(scope="module")
def bridge(model, tokenizer):
    return em.hooked(model, tokenizer)


@pytest.fixture(scope="module")
def run(bridge, ids):
    with torch.no_grad():
        return bridge.run_with_cache(ids)


@pytest.fixture(scope="module")
def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def in_chunks(model, ids, sizes, cache=None):
    """Logits of consecutive chunks that share one cache."""
    parts = []
    for chunk in ids.split(list(sizes), dim=1):
        out = model(chunk, past_key_values=cache, use_cache=True)
        cache, parts = out.past_key_values, [*parts, out.logits]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("sizes", [(24,), (1,) * 24, (10, 1, 1, 2, 5, 5), (2, 22)])
def test_cached_parity(model, ids, logits, sizes):
    with torch.no_grad():
        assert (in_chunks(model, ids, sizes) - logits).abs().max() < 1e-4


def test_cached_parity_with_left_padding(model, ids, logits, tokenizer):
    padding = torch.full((2, 5), tokenizer.pad_token_id)
    padded = torch.cat([padding, ids], 1)
    mask = torch.cat([torch.zeros_like(padding), torch.ones_like(ids)], 1)
    with torch.no_grad():
        whole = model(padded, attention_mask=mask).logits[:, 5:]
        first = model(padded[:, :9], attention_mask=mask[:, :9], use_cache=True)
        rest = model(padded[:, 9:], attention_mask=mask, past_key_values=first.past_key_values)
    assert (whole - logits).abs().max() < 1e-4
    assert (rest.logits - logits[:, 4:]).abs().max() < 1e-4


@pytest.mark.parametrize(
    "how",
    [dict(), dict(num_beams=3), dict(cache_implementation="static")],
    ids=["greedy", "beams", "static-cache"],
)
def test_generation_parity(model, ids, how, tokenizer):
    """A left-padded batch with the cache writes what each text alone writes without it."""
    short = ids[:1, :6]
    padding = torch.full((1, 4), tokenizer.pad_token_id)
    batch = torch.cat([torch.cat([padding, short], 1), ids[1:, :10]])
    mask = torch.ones_like(batch)
    mask[0, :4] = 0
    given = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
    together = model.generate(batch, attention_mask=mask, **given, **how)
    beams = {"num_beams": how.get("num_beams", 1)}
    for row, prompt in ((0, short), (1, ids[1:, :10])):
        alone = model.generate(prompt, use_cache=False, **given, **beams)
        assert together[row, -6:].tolist() == alone[0, -6:].tolist()


def test_cropped_cache_parity_without_convolution(make_model, ids):
    model = make_model(2, engram_kernel_size=0)
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    with torch.no_grad():
        model(ids[:, :16], past_key_values=cache)
        cache.crop(-6)
        again = model(ids[:, 10:], past_key_values=cache).logits
        assert (again - model(ids).logits[:, 10:]).abs().max() < 1e-4


def test_forced_gate_leaves_padding_alone(model, ids, tokenizer, bridge):
    padding = torch.full((2, 5), tokenizer.pad_token_id)
    mask = torch.cat([torch.zeros_like(padding), torch.ones_like(ids)], 1)
    hooks = [("blocks.2.engram.hook_gate", lambda gate, hook: gate * 0 + 1)]
    with torch.no_grad():
        alone = bridge.run_with_hooks(ids, fwd_hooks=hooks)
        padded = bridge.run_with_hooks(
            torch.cat([padding, ids], 1), attention_mask=mask, fwd_hooks=hooks
        )
    assert (padded[:, 5:] - alone).abs().max() < 1e-4


def test_cropped_cache_parity(model, ids, logits):
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    with torch.no_grad():
        model(ids[:, :16], past_key_values=cache)
        cache.crop(-6)
        again = model(ids[:, 10:], past_key_values=cache).logits
    assert (again - logits[:, 10:]).abs().max() < 1e-4


def test_cache_without_room_for_the_history_is_refused(model, ids):
    with pytest.raises(em.errors.UsageError, match=r"DynamicCache\(config=model\.config\)"):
        model(ids, past_key_values=DynamicCache())


def test_saved_parity(model, ids, logits, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, logits)
    writer = pipeline("text-generation", model=loaded, tokenizer=tokenizer)
    [written] = writer("The harbour", max_new_tokens=3, do_sample=False)
    assert written["generated_text"].startswith("The harbour")


def test_yarn_parity(make_model, ids):
    """Cached equals uncached beyond the trained length, where YaRN's scaling is at work."""
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 16,
        "mscale_all_dim": 1.0,
    }
    plain = make_model(4)
    model = make_model(4, rope_parameters=yarn)
    with torch.no_grad():
        whole = model(ids).logits
        assert (in_chunks(model, ids, (9, 15)) - whole).abs().max() < 1e-4
        assert (whole - plain(ids).logits).abs().max() > 1e-3


def test_hooked_parity(bridge, model, ids, logits, run):
    assert (run[0] - logits).abs().max() < 1e-5 * logits.abs().max()
    with torch.no_grad():  # and the plain model is as it was
        assert torch.equal(model(ids).logits, logits)


def test_hooked_generation_parity(bridge, model, tokenizer):
    prompt = "The harbour master"
    tokens = bridge.to_tokens(prompt)
    assert tokens[0, 0] == tokenizer.bos_token_id and tokens[0, 1] != tokenizer.bos_token_id
    given = dict(max_new_tokens=5, do_sample=False)
    ours = bridge.generate(tokens, verbose=False, stop_at_eos=False, **given)
    theirs = model.generate(tokens, eos_token_id=None, **given)
    assert ours.tolist() == theirs.tolist()


def test_hook_shapes(model, run):
    config, cache = model.config, run[1]
    streams, width = config.hc_mult, config.hidden_size
    columns = config.engram_columns
    one = (2, 24, width) if streams == 1 else (2, 24, streams, width)
    expected = {
        "slots": (2, 24, columns),
        "rows": (2, 24, columns, config.engram_head_dim),
        "key": (2, 24, streams, width),
        "value": (2, 24, width),
        "score": (2, 24, streams),
        "gate": (2, 24, streams),
        "conv": (2, 24, streams, width),
        "out": one,
    }
    for layer in config.engram_layer_ids:
        shapes = {
            name: tuple(cache[f"blocks.{layer}.engram.hook_{name}"].shape) for name in expected
        }
        assert shapes == expected
    assert cache["blocks.0.engram.hook_slots"].dtype == torch.int64


@pytest.mark.parametrize("name", ["slots", "rows", "key", "value", "score", "gate", "conv", "out"])
def test_every_hook_is_live(bridge, ids, logits, name):
    """An edit at position 9 changes what follows and nothing before it."""

    def edit(tensor, hook):
        tensor = tensor.clone()
        if name == "slots":
            tensor[:, 9] = (tensor[:, 9] + 1) % 100
        else:
            tensor[:, 9] = 1.0 - tensor[:, 9]
        return tensor

    with torch.no_grad():
        edited = bridge.run_with_hooks(ids, fwd_hooks=[(f"blocks.2.engram.hook_{name}", edit)])
    change = (edited - logits).abs().amax((0, 2))
    assert change[:9].max() < 1e-5 and change[9:].max() > 1e-4


def residual(cache, model, layer, mlp_input):
    """The residual as the model holds it, collapsed by its own head if in streams."""
    if model.config.hc_mult > 1:
        last = layer == model.config.num_hidden_layers
        name = f"blocks.{layer}.mlp_hc.hook_in" if mlp_input else f"blocks.{layer}.hook_in"
        streams = cache[f"blocks.{layer - 1}.hook_out"] if last else cache[name]
        return model.model.hc_head(streams)
    if mlp_input:
        return cache["resid_mid", layer]
    last = layer == model.config.num_hidden_layers
    return cache["resid_post", layer - 1] if last else cache["resid_pre", layer]


@pytest.mark.parametrize("layer, mlp_input", [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (3, 0)])
def test_decomposition_parity(run, model, layer, mlp_input):
    stack, labels = run[1].decompose_resid(layer, mlp_input=bool(mlp_input), return_labels=True)
    with torch.no_grad():
        whole = residual(run[1], model, layer, bool(mlp_input))
    assert (stack.sum(0) - whole).norm() < 1e-5 * whole.norm()
    memories = [label for label in labels if "engram" in label]
    reached = range(layer + mlp_input)
    assert memories == [f"{i}_engram_out" for i in (0, 2) if i in reached]


def test_decomposition_parity_needs_every_part(run, model):
    """Without the memory, or with the mixing transposed, the sum misses: the test has teeth."""
    cache = run[1]
    stack, labels = cache.decompose_resid(return_labels=True)
    whole = residual(cache, model, 3, False)
    without = stack[[i for i, label in enumerate(labels) if "engram" not in label]].sum(0)
    assert (without - whole).norm() > 0.05 * whole.norm()
    if model.config.hc_mult > 1:
        turned = {k: v.mT if k.endswith("hook_comb") else v for k, v in cache.cache_dict.items()}
        wrong = em.bridge.EngramCache(turned, cache.model).decompose_resid().sum(0)
        assert (wrong - whole).norm() > 0.01 * whole.norm()


def test_accumulated_parity(run, model, logits):
    stack, labels = run[1].accumulated_resid(apply_ln=True, return_labels=True)
    assert labels == ["0_pre", "1_pre", "2_pre", "final_post"]
    with torch.no_grad():
        assert (model.lm_head(stack[-1]) - logits).abs().max() < 1e-5 * logits.abs().max()
        first = model.model.norm(residual(run[1], model, 1, False))
    assert torch.allclose(stack[1], first, atol=1e-5)


def test_attribution_parity(run, logits):
    """Every component's share of the top logit sums to it, the memory among them."""
    target = logits[:, -1].argmax(-1)
    stack, labels = run[1].decompose_resid(pos_slice=-1, return_labels=True)
    shares = run[1].logit_attrs(stack, target, pos_slice=-1)
    top = logits[torch.arange(2), -1, target]
    assert torch.allclose(shares.sum(0), top, rtol=1e-5, atol=1e-5)
    assert shares[labels.index("2_engram_out")].abs().min() > 0


def test_decomposition_parity_without_the_batch(bridge, ids, run):
    with torch.no_grad():
        _, single = bridge.run_with_cache(ids[:1], remove_batch_dim=True)
    together = run[1].decompose_resid()[:, 0]
    assert torch.allclose(single.decompose_resid(), together, atol=1e-5)
    accumulated = run[1].accumulated_resid()[:, 0]
    assert torch.allclose(single.accumulated_resid(), accumulated, atol=1e-5)


def test_decompositions_by_kind(run):
    cache = run[1]
    _, attention = cache.decompose_resid(mode="attn", incl_embeds=False, return_labels=True)
    assert attention == ["0_attn_out", "1_attn_out", "2_attn_out"]


def test_full_decomposition_knows_the_memory_or_refuses(run, model):
    cache = run[1]
    if model.config.hc_mult > 1:
        with pytest.raises(NotImplementedError, match="decompose_resid"):
            cache.get_full_resid_decomposition()
        return
    stack, labels = cache.get_full_resid_decomposition(return_labels=True)
    assert {"0_engram_out", "2_engram_out", "L0H0"} <= set(labels)
    assert (stack.sum(0) - cache["resid_post", 2]).abs().max() < 1e-4


def test_adapter_is_found_by_its_entry_point():
    from importlib.metadata import entry_points

    [found] = entry_points(group="transformer_lens.architectures", name="EngramForCausalLM")
    assert found.load() is em.bridge.EngramAdapter


def test_hooked_takes_a_tokenizer_made_in_memory(make_model):
    from engram_model.bpe import train_bpe
    from engram_model.training.train import new_model

    fresh = train_bpe(["a tokenizer that was never saved"] * 5, 280)
    bridge = em.hooked(new_model("engram-tiny", fresh, {}), fresh)
    assert bridge.to_str_tokens("never", prepend_bos=False) == fresh.tokenize("never")
