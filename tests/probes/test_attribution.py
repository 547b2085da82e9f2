"""Shares of a logit: they add up, and each is what its writer gave."""

import numpy as np
import pytest
import torch

import engram_model as em
import engram_probes as ep
from engram_model.controls import CONTROLS
from engram_model.errors import UsageError

TEXT = "The harbour master of Varnholm counts the boats"


def shares(result) -> dict[str, float]:
    frame = result.to_frame()
    return dict(zip(frame["component"], frame["contribution"], strict=True))


@pytest.mark.parametrize("control", [None, "merged", "no_gate", "no_convolution", "linear_gate"])
@pytest.mark.parametrize("streams", [1, 4])
def test_shares_sum_to_the_logit(make_model, tokenizer, streams, control):
    model = make_model(streams, **(CONTROLS[control] if control else {}))
    result = ep.attribute(model, tokenizer, TEXT)
    with torch.no_grad():
        ids = torch.tensor([[0, *tokenizer(TEXT, add_special_tokens=False)["input_ids"]]])
        logits = model(ids).logits[0, -1]
    assert result.target_id == int(logits.argmax())
    assert result.logit == pytest.approx(float(logits.max()), abs=1e-5)
    found = shares(result)
    assert sum(found.values()) == pytest.approx(result.logit, abs=1e-9)
    assert abs(found["remainder"]) < 1e-4 * max(1, np.abs(result.contribution).max())
    heads = {f"{layer}_engram_order{n}_head{h}" for layer in (0, 2) for n in (2, 3) for h in (0, 1)}
    assert heads <= set(found)
    assert ("0_engram_conv" in found) == (control != "no_convolution")


def test_a_bias_has_its_own_share(make_model, tokenizer):
    found = shares(ep.attribute(make_model(4, engram_bias=True), tokenizer, TEXT))
    assert abs(found["0_engram_bias"]) > 1e-4 and abs(found["remainder"]) < 1e-4


@pytest.mark.parametrize("streams", [1, 4])
def test_one_head_alone_has_all_of_the_memorys_share(make_model, tokenizer, streams):
    """Planted: all rows but those of one head are zero, and there is no convolution."""
    model = make_model(streams, engram_kernel_size=0)
    memory = model.model.memories[-1]
    offsets = memory.offsets.tolist()
    column = 3  # order 3, head 1
    with torch.no_grad():
        rows = memory.embed.weight[offsets[column] :].clone()
        memory.embed.weight.zero_()
        memory.embed.weight[offsets[column] :] = rows
    bridge = em.hooked(model, tokenizer)
    found = shares(ep.attribute(bridge, tokenizer, TEXT))
    with torch.no_grad():
        ids = bridge.to_tokens(TEXT)
        logits, cache = bridge.run_with_cache(ids)
        whole, labels = cache.decompose_resid(pos_slice=-1, return_labels=True)
        expected = cache.logit_attrs(whole, int(logits[0, -1].argmax()), pos_slice=-1)[:, 0]
    total = float(expected[labels.index("2_engram_out")])
    assert found["2_engram_order3_head1"] == pytest.approx(total, abs=1e-5) and abs(total) > 1e-3
    others = [
        v for name, v in found.items() if name.startswith("2_engram") and "3_head1" not in name
    ]
    assert len(others) == 3 and np.abs(others).max() < 1e-9


def test_difference_of_two_tokens_is_the_difference_of_their_shares(engram, tokenizer):
    first, second = (ep.attribute(engram, tokenizer, TEXT, one) for one in (17, 40))
    both = ep.attribute(engram, tokenizer, TEXT, 17, against=40)
    assert both.components == first.components
    np.testing.assert_allclose(
        both.contribution, first.contribution - second.contribution, atol=1e-5
    )
    assert both.logit == pytest.approx(first.logit - second.logit, abs=1e-5)
    assert "less that of" in both.summary()


def test_hooks_of_a_bridge_are_live(engram, tokenizer):
    bridge = em.hooked(engram, tokenizer)
    closed = [(f"blocks.{i}.engram.hook_gate", lambda gate, hook: gate * 0) for i in (0, 2)]
    with bridge.hooks(fwd_hooks=closed):
        found = shares(ep.attribute(bridge, tokenizer, TEXT))
    heads = [value for name, value in found.items() if "_engram_order" in name]
    assert len(heads) == 8 and np.abs(heads).max() == 0


def test_saves_draws_and_names(engram, twin, tokenizer, tmp_path):
    result = ep.attribute(engram, tokenizer, TEXT, "a")
    again = ep.load_result(result.save(tmp_path))
    assert again.summary() == result.summary() and result.target == "a"
    assert result.figure(most=5).layout.meta["alt"].startswith("Bars of the shares of 6")
    assert result.from_memory.sum() == 10
    plain = ep.attribute(twin, tokenizer, TEXT)
    assert not plain.from_memory.any() and "memory" not in plain.summary()


def test_wrong_use(engram, tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(UsageError, match=r"'harbour master' is \d+ tokens"):
        ep.attribute(engram, tokenizer, TEXT, "harbour master")
    with pytest.raises(UsageError, match="outside the vocabulary"):
        ep.attribute(engram, tokenizer, TEXT, 10**6)
    with pytest.raises(UsageError, match="the text is empty"):
        ep.attribute(engram, tokenizer, " ")
    with pytest.raises(UsageError, match="one text, not list"):
        ep.attribute(engram, tokenizer, [TEXT])
    small = GPT2LMHeadModel(GPT2Config(vocab_size=350, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(UsageError, match="needs an Engram model"):
        ep.attribute(small, tokenizer, TEXT)
