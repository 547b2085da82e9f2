"""An attribution adds up to the model's logit, and every share is what taking it away costs."""

import numpy as np
import pytest
import torch

import engram_model as em
import engram_probes as ep
from engram_model.errors import UsageError

TEXT = "The harbour master of Varnholm counts the boats"
CASES = {
    "one stream": dict(streams=1),
    "four streams": dict(streams=4),
    "without convolution": dict(streams=4, engram_kernel_size=0),
    "with biases": dict(streams=2, engram_bias=True),
    "merged": dict(streams=4, engram_multi_branch=False),
    "without a gate": dict(streams=4, engram_gate="none"),
    "rows of positions": dict(streams=2, engram_hash="position"),
    "no memory": dict(streams=4, memory_layers=()),
    "four orders": dict(streams=1, engram_max_ngram_size=4, engram_n_heads=3),
}


@pytest.fixture(scope="module", params=CASES)
def model(request, make_model):
    return make_model(**CASES[request.param])


@pytest.fixture(scope="module")
def result(model, tokenizer):
    return ep.attribute(model, tokenizer, TEXT)


def last_logits(model, result):
    with torch.no_grad():
        return model(torch.tensor([result.token_ids.tolist()])).logits[0, -1]


def test_sums_to_the_models_own_logit(model, result):
    logits = last_logits(model, result)
    assert result.target_id == int(logits.argmax()) and result.rank == 1
    assert result.logit == pytest.approx(float(logits.max()), rel=1e-5)
    assert result.probability == pytest.approx(float(logits.softmax(-1).max()), rel=1e-4)
    frame = result.to_frame()
    assert list(frame.columns) == ["component", "contribution"]
    assert frame.component.is_unique and frame.contribution.notna().all()
    assert frame.contribution.sum() == pytest.approx(float(logits.max()), abs=1e-4)
    assert abs(result.remainder) < 1e-4
    assert sum(result.by_part().values()) == pytest.approx(result.logit)


def test_components_are_those_of_the_model(model, result):
    config, expected = model.config, ["embed"]
    for layer in range(config.num_hidden_layers):
        if layer in config.engram_layer_ids:
            expected += [
                f"{layer}_engram_order{order}_head{head}"
                for order in range(2, config.engram_max_ngram_size + 1)
                for head in range(config.engram_n_heads)
            ]
            expected += [f"{layer}_engram_bias"] * config.engram_bias
            expected += [f"{layer}_engram_conv"] * bool(config.engram_kernel_size)
        expected += [f"{layer}_attn_out", f"{layer}_mlp_out"]
    assert list(result.components) == [*expected, "remainder"]
    assert (result.logit_without_memory is None) == (not config.engram_layer_ids)
    assert result.by_stream.shape[1] == config.hc_mult
    np.testing.assert_allclose(result.by_stream[:-1].sum(1), result.contribution[:-1], atol=1e-9)


def test_rows_are_those_of_the_gate_map(model, tokenizer, result):
    rows = result.slots >= 0
    assert rows.tolist() == ["_order" in name for name in result.components]
    if rows.any():
        gates = ep.gate_map(model, tokenizer, TEXT)
        np.testing.assert_array_equal(result.slots[rows], gates.slots[:, -1].ravel())


def test_heads_sum_to_attention(model, tokenizer, result):
    by_head = ep.attribute(model, tokenizer, TEXT, heads=True)
    assert abs(by_head.remainder) < 1e-4
    for layer in range(model.config.num_hidden_layers):
        heads = [name.startswith(f"{layer}_attn_head") for name in by_head.components]
        assert sum(heads) == model.config.num_attention_heads
        whole = result.contribution[result.components.index(f"{layer}_attn_out")]
        assert by_head.contribution[heads].sum() == pytest.approx(whole, abs=1e-5)


def test_a_heads_share_is_that_of_its_block(make_model, tokenizer):
    """Head 1 of layer 1 writes nothing once its block of the output projection is zero."""
    model = make_model(streams=4)
    name = "1_attn_head1"
    output = model.model.layers[1].self_attn.o_proj.weight
    width = model.config.v_head_dim
    before = ep.attribute(model, tokenizer, TEXT, target=9, heads=True)
    with torch.no_grad():
        output[:, width : 2 * width] = 0
    after = ep.attribute(model, tokenizer, TEXT, target=9, heads=True)
    shares = [r.contribution[r.components.index(name)] for r in (before, after)]
    assert abs(shares[0]) > 1e-3 and shares[1] == 0


def frozen(model, tokenizer, changed):
    """The top logit after an edit of what the last memory adds at the end, all else held.

    The edit is made where the model adds it. Attention, MLP, mixing, collapse and the scale of the
    final norm are forced to the values they had: what is left is the straight way to the logit.
    """
    bridge = em.hooked(model, tokenizer)
    with torch.no_grad():
        tokens = bridge.to_tokens(TEXT)
        logits, cache = bridge.run_with_cache(tokens)
        held = ("attn.hook_out", "mlp.hook_out", "hc.hook_post", "hc.hook_comb")
        hooks = [
            (name, lambda tensor, hook: cache[hook.name])
            for name in cache.cache_dict
            if name.endswith((*held, "ln_final.hook_scale"))
        ]
        if model.config.hc_mult > 1:
            weights = cache._head_weights(cache._residual(cache.model.cfg.n_layers, False))
            hooks.append(
                (
                    "hc_head.hook_out",
                    lambda tensor, hook: (weights * seen["streams"]).sum(-2),
                )
            )
            seen: dict = {}
            hooks.append(("hc_head.hook_in", lambda t, hook: seen.update(streams=t) or t))
        layer = model.config.engram_layer_ids[-1]
        hooks.append((f"blocks.{layer}.engram.hook_out", lambda out, hook: changed(out, cache)))
        edited = bridge.run_with_hooks(tokens, fwd_hooks=hooks)
    target = int(logits[0, -1].argmax())
    return float(logits[0, -1, target] - edited[0, -1, target])


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize(("order", "head"), [(2, 1), (3, 0)])
def test_a_rows_share_is_what_its_removal_costs(make_model, tokenizer, streams, order, head):
    """Brute force: the column's value, at the gate it had, is taken out of the forward pass."""
    model = make_model(streams)
    result = ep.attribute(model, tokenizer, TEXT)
    memory, width = model.model.memories[-1], model.config.engram_head_dim
    column = (order - 2) * model.config.engram_n_heads + head

    def without(out, cache):
        rows = cache["blocks.2.engram.hook_rows"][:, -1, column]
        block = memory.wkv.weight[-model.config.hidden_size :, column * width :][:, :width]
        gone = cache["blocks.2.engram.hook_gate"][:, -1, :, None] * (rows @ block.T)[:, None]
        out = out.clone()
        out[:, -1] -= gone.reshape(out[:, -1].shape)
        return out

    cost = frozen(model, tokenizer, without)
    share = result.contribution[result.components.index(f"2_engram_order{order}_head{head}")]
    assert abs(share) > 1e-3 and cost == pytest.approx(share, abs=2e-5)


@pytest.mark.parametrize("streams", [1, 4])
def test_the_memorys_terms_are_what_its_removal_costs(make_model, tokenizer, streams):
    model = make_model(streams)
    result = ep.attribute(model, tokenizer, TEXT)
    cost = frozen(model, tokenizer, lambda out, cache: torch.zeros_like(out))
    terms = [name.startswith("2_engram") for name in result.components]
    assert cost == pytest.approx(result.contribution[terms].sum(), abs=2e-5)


def test_a_planted_row_has_its_heads_share_and_no_other(make_model, tokenizer):
    """All rows are zero but the one that a head reads: the other heads wrote nothing."""
    model = make_model(streams=4, engram_kernel_size=0)
    slots = ep.gate_map(model, tokenizer, TEXT).slots[1, -1]
    memory = model.model.memories[1]
    with torch.no_grad():
        planted = memory.embed.weight[slots[3]].clone() * 5
        memory.embed.weight.zero_()
        memory.embed.weight[slots[3]] = planted
    result = ep.attribute(model, tokenizer, TEXT)
    shares = {
        name: share
        for name, share in zip(result.components, result.contribution, strict=True)
        if name.startswith("2_engram")
    }
    planted_share = shares.pop("2_engram_order3_head1")
    assert abs(planted_share) > 1e-3 and set(shares.values()) == {0.0}
    assert frozen(model, tokenizer, lambda out, cache: torch.zeros_like(out)) == pytest.approx(
        planted_share, abs=2e-5
    )
    row = result.components.index("2_engram_order3_head1")
    assert result.random_low[row] == result.random_high[row] == 0  # 1 of some 211 rows is not zero


def test_against_attributes_the_difference(engram, tokenizer):
    first = ep.attribute(engram, tokenizer, TEXT, target=10)
    second = ep.attribute(engram, tokenizer, TEXT, target=20)
    both = ep.attribute(engram, tokenizer, TEXT, target=10, against=20)
    assert both.logit == pytest.approx(first.logit - second.logit, abs=1e-5)
    np.testing.assert_allclose(
        both.contribution[:-1], (first.contribution - second.contribution)[:-1], atol=1e-9
    )
    assert (both.target, both.against) == (first.target, second.target)
    assert f"less that of “{second.target}”" in both.summary()
    assert first.rank == 1 + int((last_logits(engram, first) > first.logit + 1e-6).sum())


def test_target_by_text_is_the_token(engram, tokenizer):
    by_text = ep.attribute(engram, tokenizer, TEXT, target=" the")
    (expected,) = tokenizer(" the", add_special_tokens=False)["input_ids"]
    assert by_text.target_id == expected and by_text.target == "·the"
    by_id = ep.attribute(engram, tokenizer, TEXT, target=np.int64(expected))
    np.testing.assert_array_equal(by_text.contribution, by_id.contribution)


def test_random_rows_are_the_whole_table_of_the_head(make_model, tokenizer):
    """Against every row of the head, read by hand as the looked-up one is."""
    model = make_model(streams=1)
    result = ep.attribute(model, tokenizer, TEXT, draws=20_000)
    row = result.components.index("2_engram_order3_head0")
    memory = model.model.memories[1]
    primes = memory.primes.flatten().tolist()
    start = int(memory.offsets[2])
    table = memory.embed.weight[start : start + primes[2]].detach()
    block = memory.wkv.weight[-model.config.hidden_size :, 2 * 8 : 3 * 8].detach()
    values = table @ block.T
    looked_up = values[result.slots[row] - start]
    bridge = em.hooked(model, tokenizer)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(bridge.to_tokens(TEXT))
    gate = cache["blocks.2.engram.hook_gate"][0, -1, 0]
    read = model.lm_head.weight[result.target_id] * model.model.norm.weight
    read = (read / cache["ln_final.hook_scale"][0, -1]).detach() * gate
    assert float(looked_up @ read) == pytest.approx(result.contribution[row], abs=1e-5)
    expected = np.percentile(values @ read, [2.5, 97.5])
    found = [result.random_low[row], result.random_high[row]]
    np.testing.assert_allclose(found, expected, atol=0.05 * np.ptp(expected))


def test_draws_depend_on_the_seed_only(engram, tokenizer):
    first, again, other = (
        ep.attribute(engram, tokenizer, TEXT, draws=50, seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.random_low, again.random_low)
    assert not np.array_equal(first.random_sum, other.random_sum)
    np.testing.assert_array_equal(first.contribution, other.contribution)
    assert first.provenance.seed == 0 and first.provenance.settings["draws"] == 50


def test_silenced_is_the_model_without_its_memory(engram, tokenizer):
    result = ep.attribute(engram, tokenizer, TEXT)
    for memory in engram.model.memories:
        memory.tap = lambda name, tensor: tensor * 0 if name == "out" else tensor
    try:
        silenced = last_logits(engram, result)
    finally:
        for memory in engram.model.memories:
            memory.tap = None
    expected = float(silenced[result.target_id])
    assert result.logit_without_memory == pytest.approx(expected, abs=1e-5)
    probability = float(silenced.softmax(-1)[result.target_id])
    assert result.probability_without_memory == pytest.approx(probability, rel=1e-4)
    assert abs(result.logit_without_memory - result.logit) > 1e-3


def test_the_model_is_left_as_it_was(make_model, tokenizer):
    model = make_model().train()
    before = [m.tap for m in model.model.memories]
    ep.attribute(model, tokenizer, TEXT)
    assert model.training and [m.tap for m in model.model.memories] == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_of_a_bridge_are_seen(engram, tokenizer):
    bridge = em.hooked(engram, tokenizer)
    plain = ep.attribute(engram, tokenizer, TEXT, target=10)
    same = ep.attribute(bridge, tokenizer, TEXT, target=10)
    np.testing.assert_allclose(same.contribution, plain.contribution, atol=1e-5)
    with bridge.hooks(fwd_hooks=[("blocks.2.engram.hook_gate", lambda gate, hook: gate * 0)]):
        shut = ep.attribute(bridge, tokenizer, TEXT, target=10)
    rows = [name.startswith("2_engram") for name in shut.components]
    assert (shut.contribution[rows] == 0).all() and abs(shut.remainder) < 1e-4
    again = ep.attribute(bridge, tokenizer, TEXT, target=10)
    np.testing.assert_allclose(again.contribution, plain.contribution, atol=1e-5)


def test_what_a_hook_adds_is_the_remainder(engram, tokenizer):
    bridge = em.hooked(engram, tokenizer)
    with bridge.hooks(fwd_hooks=[("blocks.2.engram.hook_out", lambda out, hook: out + 1)]):
        result = ep.attribute(bridge, tokenizer, TEXT)
    assert abs(result.remainder) > 0.01
    assert result.contribution.sum() == pytest.approx(result.logit)
    assert "remainder" in result.summary()


def other(name, vocabulary, **fields):
    import transformers

    small = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=vocabulary, max_position_embeddings=64,
    )  # fmt: skip
    if name == "GPT2":
        small = dict(n_embd=32, n_layer=2, n_head=2, vocab_size=vocabulary, n_positions=64)
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**small, **fields})
    model = getattr(transformers, f"{name}ForCausalLM" if name != "GPT2" else "GPT2LMHeadModel")
    model = model(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return model


@pytest.mark.parametrize(
    ("name", "fields", "also"),
    [
        ("GPT2", {}, {"pos_embed", "bias"}),
        ("Llama", {}, set()),
        ("GPTNeoX", {}, {"bias"}),
        ("Gemma", {"head_dim": 16}, set()),
        ("Olmo2", {}, set()),
    ],
)
def test_other_causal_models(tokenizer, name, fields, also):
    model = other(name, len(tokenizer), **fields)
    result = ep.attribute(model, tokenizer, TEXT)
    logits = last_logits(model, result)
    assert result.logit == pytest.approx(float(logits.max()), rel=1e-4)
    assert abs(result.remainder) < 1e-4 and also <= set(result.components)
    assert result.logit_without_memory is None and result.memory == 0
    assert "memory" not in result.by_part() and result.summary().endswith(".")
    if name == "Olmo2":
        with pytest.raises(UsageError, match="heads have no share"):
            ep.attribute(model, tokenizer, TEXT, heads=True)
    else:
        assert abs(ep.attribute(model, tokenizer, TEXT, heads=True).remainder) < 1e-4
    if also:
        difference = ep.attribute(model, tokenizer, TEXT, target=5, against=7)
        assert abs(difference.remainder) < 1e-4


def test_a_model_whose_logit_is_no_sum_is_refused(tokenizer):
    model = other("Cohere", len(tokenizer), logit_scale=0.1)
    with pytest.raises(UsageError, match="does more than add them"):
        ep.attribute(model, tokenizer, TEXT)


def test_an_architecture_without_an_adapter_is_refused(tokenizer):
    from transformers import CTRLConfig, CTRLLMHeadModel

    sizes = dict(n_embd=32, n_layer=2, n_head=2, dff=32, vocab_size=len(tokenizer))
    with pytest.raises(UsageError, match="no adapter for a CTRLLMHeadModel"):
        em.hooked(CTRLLMHeadModel(CTRLConfig(**sizes)), tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": " "}, "empty"),
        ({"text": ["The harbour"]}, "one text"),
        ({"target": "counts the boats"}, "is 4 tokens (co unts"),
        ({"target": "·the"}, "did you mean ' the'"),
        ({"target": ""}, "0 tokens"),
        ({"target": 400_000}, "outside the vocabulary"),
        ({"target": -1}, "outside the vocabulary"),
        ({"target": 1.5}, "1.5 is no token"),
        ({"target": 7, "against": 7}, "one token"),
        ({"against": "counts the boats"}, "not one"),
        ({"draws": 0}, "draws=0"),
    ],
)
def test_wrong_use_is_one_line(engram, tokenizer, options, message):
    with pytest.raises(UsageError) as error:
        ep.attribute(engram, tokenizer, **{"text": TEXT, **options})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_figure_has_every_component(engram, tokenizer):
    result = ep.attribute(engram, tokenizer, TEXT)
    figure = result.figure()
    bars = [trace for trace in figure.data if trace.type == "bar"]
    drawn = {}
    for trace in bars:
        drawn |= dict(zip(trace.customdata, trace.x, strict=True))
    assert drawn == pytest.approx(dict(zip(result.components, result.contribution, strict=True)))
    memory = next(trace for trace in bars if trace.name == "memory")
    assert all("_engram_" in name for name in memory.customdata)
    assert memory.marker.color not in {t.marker.color for t in bars if t is not memory}
    assert list(figure.layout.yaxis.ticktext) == list(result.components)
    assert all(trace.width < 1 for trace in bars)  # no bar covers its neighbour
    lines = next(trace for trace in figure.data if trace.type == "scatter")
    rows = np.flatnonzero(result.slots >= 0)
    assert lines.y[::3] == tuple(rows) and lines.x[0] == result.random_low[rows[0]]
    assert figure.layout.meta["alt"].startswith(f"Bar chart of {len(drawn)} components")


def test_a_short_figure_sums_the_smallest(engram, tokenizer):
    result = ep.attribute(engram, tokenizer, TEXT)
    figure = result.figure(most=5)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert sum(len(trace.x) for trace in bars) == 5
    assert sum(sum(trace.x) for trace in bars) == pytest.approx(result.logit)
    assert figure.layout.yaxis.ticktext[-1] == f"{len(result.components) - 4} smaller ones"
    with pytest.raises(UsageError, match="most=1"):
        result.figure(most=1)


def test_a_position_is_attributed_as_the_text_cut_there(engram, tokenizer):
    cut = ep.attribute(engram, tokenizer, TEXT, position=5, draws=3)
    assert len(cut.token_ids) == 6
    with torch.no_grad():
        logits = engram(torch.tensor([[tokenizer.bos_token_id, *tokenizer(TEXT)["input_ids"]]]))
    assert cut.logit == pytest.approx(float(logits.logits[0, 5].max()), abs=1e-4)
    assert cut.provenance.settings["position"] == 5
    last = len(tokenizer(TEXT)["input_ids"])
    whole, same = (ep.attribute(engram, tokenizer, TEXT, position=p) for p in (None, last))
    np.testing.assert_array_equal(whole.contribution, same.contribution)
    for none in (-1, last + 1):
        with pytest.raises(UsageError, match=f"no position {none}"):
            ep.attribute(engram, tokenizer, TEXT, position=none)


def test_the_memory_piece_by_piece(engram, twin, tokenizer):
    result = ep.attribute(engram, tokenizer, TEXT)
    frame = result.memory_frame()
    assert frame["contribution"].sum() == pytest.approx(result.memory)
    row = frame[frame["component"] == "2_engram_order3_head1"].iloc[0]
    at = result.components.index("2_engram_order3_head1")
    assert (row["layer"], row["order"], row["head"], row["row"]) == (2, 3, 1, result.slots[at])
    assert row["n-gram"] == "".join(result.tokens[-3:])
    outside = not result.random_low[at] <= result.contribution[at] <= result.random_high[at]
    assert row["beyond"] == outside
    assert not frame[frame["component"].str.endswith("conv")]["beyond"].any()
    drawn = [name for bar in result.figure("memory").data if bar.type == "bar"
             for name in bar.customdata]  # fmt: skip
    assert drawn == frame["component"].tolist()
    none = ep.attribute(twin, tokenizer, TEXT)
    assert none.memory_frame().empty
    with pytest.raises(UsageError, match="has none"):
        none.figure("memory")


def test_bars_of_the_parts_sum_to_the_logit(engram, tokenizer):
    result = ep.attribute(engram, tokenizer, TEXT)
    bars = result.figure("parts").data
    assert sum(bar.x[0] for bar in bars) == pytest.approx(result.logit, abs=1e-3)
    assert {bar.name for bar in bars} == {"embedding", "attention", "MLPs", "memory"}
    with pytest.raises(UsageError, match="no figure of 'x'"):
        result.figure("x")


def test_summary_states_the_sums(engram, tokenizer):
    result = ep.attribute(engram, tokenizer, TEXT)
    summary = result.summary()
    assert f"memory {result.memory:+.2f}" in summary
    assert f"is {result.logit:.2f}" in summary
    rows = np.where(result.slots >= 0, result.contribution, 0)
    assert f"rows add {rows.sum():+.2f} (" in summary
    assert f"{result.components[np.abs(rows).argmax()]} " in summary
    assert f"would be {result.logit_without_memory:.2f}" in summary
    assert -1 <= result.memory_share <= 1


def test_rounding_of_bfloat16_is_the_remainder(make_model, tokenizer):
    result = ep.attribute(make_model().to(torch.bfloat16), tokenizer, TEXT)
    sizes = np.abs(result.contribution[:-1]).sum()
    assert abs(result.remainder) < 0.03 * sizes
    assert result.contribution.sum() == pytest.approx(result.logit)


def test_a_text_of_special_tokens_only(engram, tokenizer):
    result = ep.attribute(engram, tokenizer, tokenizer.eos_token)
    assert abs(result.remainder) < 1e-4 and result.figure().layout.meta["alt"]


def test_wrong_shapes_are_refused(engram, tokenizer):
    from dataclasses import replace

    result = ep.attribute(engram, tokenizer, TEXT)
    with pytest.raises(ValueError, match="contributions for"):
        replace(result, components=result.components[:-1])
    with pytest.raises(ValueError, match="component, stream"):
        replace(result, by_stream=result.by_stream[0])
