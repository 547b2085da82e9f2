"""Probes read any causal model that TransformerLens adapts; those of the memory say that it has
none."""

import numpy as np
import pytest
import torch

import engram_probes as ep
from engram_model.errors import UsageError

TEXT = "The harbour master of Varnholm counts the boats at dusk. The harbour master counts."
SIZES = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=192,
)  # fmt: skip
EXPERTS = dict(num_experts_per_tok=2, moe_intermediate_size=16)
LATENT = dict(
    q_lora_rank=None, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=16
)
KINDS = {
    "GPT2": dict(n_embd=32, n_layer=3, n_head=2, n_positions=192),
    "Llama": SIZES,
    "Qwen3": {**SIZES, "head_dim": 16},
    "DeepseekV3": {
        **SIZES, **LATENT, **EXPERTS, "n_routed_experts": 8, "n_group": 2, "topk_group": 1,
        "n_shared_experts": 1, "first_k_dense_replace": 1,
    },
    "Qwen3Moe": {**SIZES, **EXPERTS, "head_dim": 16, "num_experts": 8, "mlp_only_layers": []},
    "Mixtral": {**SIZES, "num_local_experts": 4},
}  # fmt: skip
MIXTURES = {"DeepseekV3": (8, (1, 2)), "Qwen3Moe": (8, (0, 1, 2)), "Mixtral": (4, (0, 1, 2))}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind, tokenizer):
    import transformers

    ends = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    sizes = {**KINDS[kind], "vocab_size": len(tokenizer), **ends}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for weight in model.parameters():  # biases and norms too, so that each matters
            weight.add_(torch.randn_like(weight) * 0.2)
    return model


def test_the_last_lens_is_the_model(model, tokenizer):
    result = ep.logit_lens(model, tokenizer, TEXT)
    assert result.mean[result.metrics.index("kl"), -1] == pytest.approx(0, abs=1e-6)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(TEXT)["input_ids"]]])
    with torch.no_grad():
        entropy = torch.distributions.Categorical(logits=model(ids).logits[0]).entropy()[1:]
    measured = result.mean[result.metrics.index("entropy"), -1]
    assert measured == pytest.approx(float(entropy.mean()), rel=1e-4)


def test_a_model_is_aligned_with_itself(model, tokenizer, texts):
    found = ep.cka(
        model, model, tokenizer, texts, k=2, per_document=4, batch_size=4, permutations=5
    )
    np.testing.assert_allclose(np.diagonal(found.matrix), 1, atol=1e-4)


def test_attributions_add_up(model, tokenizer):
    assert abs(ep.attribute(model, tokenizer, TEXT).remainder) < 1e-4


def test_a_linear_probe_reads_it(model, tokenizer, labelled):
    found = ep.linear.probe(model, tokenizer, labelled, positions=40, folds=2, depths=(0, 3))
    assert np.isfinite(found.curve()).all()


def test_patterns_are_those_of_eager_attention(kind, model, tokenizer):
    found = ep.attention_patterns(model, tokenizer, TEXT, sequences=2, length=10)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(TEXT)["input_ids"]]])
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = torch.stack(model(ids, output_attentions=True).attentions, 0)[:, 0]
    model.set_attn_implementation(before)
    np.testing.assert_allclose(found.pattern, expected.numpy(), atol=1e-5)
    assert found.layers == (0, 1, 2) and found.changes == () and found.change.shape[0] == 0
    assert found.summary().endswith(".")


def test_routing(kind, model, tokenizer):
    if kind not in MIXTURES:
        with pytest.raises(UsageError, match="no experts that are chosen"):
            ep.expert_routing(model, tokenizer, TEXT)
        return
    experts, layers = MIXTURES[kind]
    found = ep.expert_routing(model, tokenizer, TEXT)
    assert found.layers == layers and found.experts == experts and found.chosen == 2
    assert found.kept.shape[0] == 0 and found.summary().endswith(".")
    for place, layer in enumerate(layers):
        ids, weights = _routed(model, kind, layer, tokenizer)
        order = found.expert_ids[0, place].argsort(-1)
        np.testing.assert_array_equal(
            np.take_along_axis(found.expert_ids[0, place], order, -1), np.sort(ids, -1)
        )
        given = np.take_along_axis(weights, ids.argsort(-1), -1)
        np.testing.assert_allclose(
            np.take_along_axis(found.expert_weights[0, place], order, -1),
            given / given.sum(-1, keepdims=True),
            rtol=1e-4,
        )


def _routed(model, kind, layer, tokenizer):
    """What the router of the model itself gives, without TransformerLens."""
    kept = []
    router = model.model.layers[layer].mlp.gate
    hook = router.register_forward_hook(lambda _m, _a, output: kept.append(output))
    with torch.no_grad():
        model(torch.tensor([[tokenizer.bos_token_id, *tokenizer(TEXT)["input_ids"]]]))
    hook.remove()
    return kept[0][2].numpy(), kept[0][1].numpy()


@pytest.mark.parametrize(
    "probe",
    [
        lambda model, tokenizer: ep.gate_map(model, tokenizer, TEXT),
        lambda model, tokenizer: ep.gate_profile(model, tokenizer, [TEXT]),
        lambda model, tokenizer: ep.inspect_slots(model, tokenizer, TEXT),
        lambda model, tokenizer: ep.suppress(model, tokenizer, "arith"),
        lambda model, tokenizer: ep.editing.edit(model, tokenizer, "The miller", " boats"),
    ],
    ids=["gates", "profile", "slots", "suppress", "edit"],
)
def test_probes_of_the_memory_refuse_it_in_one_line(model, tokenizer, probe):
    with pytest.raises(UsageError, match="has no memory") as error:
        probe(model, tokenizer)
    assert "\n" not in str(error.value)
