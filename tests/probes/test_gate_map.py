"""The gate map is what the model's own forward pass computes."""

import numpy as np
import pytest
import torch

import engram_probes as ep
from engram_model.errors import UsageError


@pytest.fixture(params=[1, 4], ids=["one stream", "four streams"])
def model(request, make_model):
    return make_model(streams=request.param)


def run(model, ids):
    """Everything of one pass, taken by hand: tapped tensors and inputs of each memory, logits."""
    kept = {}
    for memory in model.model.memories:
        here = kept[memory.layer_id] = {}
        memory.tap = lambda name, tensor, here=here: here.setdefault(name, tensor)
        hook = memory.register_forward_pre_hook(
            lambda _m, args, here=here: here.update(hidden=args[0])
        )
        here["remove"] = hook
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0]
    for memory in model.model.memories:
        memory.tap = None
        kept[memory.layer_id].pop("remove").remove()
    return kept, logits


def test_equals_a_forward_pass_with_tap(model, tokenizer, texts):
    gates = ep.gate_map(model, tokenizer, texts[1])
    kept, logits = run(model, gates.token_ids.tolist())
    assert gates.layers == (0, 2)
    assert gates.token_ids[0] == tokenizer.bos_token_id
    for i, layer in enumerate(gates.layers):
        here = kept[layer]
        hidden = here["hidden"][0]
        out = here["out"][0].reshape(hidden.shape)
        np.testing.assert_array_equal(gates.slots[i], here["slots"][0])
        np.testing.assert_allclose(gates.scores[i], here["score"][0], rtol=1e-6)
        np.testing.assert_allclose(gates.gate[i], here["gate"][0], rtol=1e-6)
        np.testing.assert_allclose(gates.value_norm[i], here["value"][0].norm(dim=-1), rtol=1e-5)
        np.testing.assert_allclose(gates.added_norm[i], out.norm(dim=-1), rtol=1e-5)
        relative = out.norm(dim=-1) / hidden.norm(dim=-1)
        np.testing.assert_allclose(gates.added_relative[i], relative, rtol=1e-5)
        whole = out.flatten(1).norm(dim=-1) / hidden.flatten(1).norm(dim=-1)
        np.testing.assert_allclose(gates.values("added", layer), whole, rtol=1e-5)
    probs = logits.softmax(-1)
    following = torch.tensor(gates.token_ids[1:])
    surprisal = -probs[:-1].gather(1, following[:, None])[:, 0].log()
    np.testing.assert_allclose(gates.next_surprisal[:-1], surprisal, rtol=1e-4)
    assert np.isnan(gates.next_surprisal[-1])
    np.testing.assert_array_equal(gates.next_ids[:, 0], probs.argmax(-1))
    np.testing.assert_allclose(gates.next_probs, probs.topk(5).values, rtol=1e-4)


def test_the_model_is_left_as_it_was(engram, tokenizer, texts, hooks_of):
    memories, hooks = engram.model.memories, hooks_of(engram)
    before = [lambda name, tensor: tensor for _ in memories]
    for memory, tap in zip(memories, before, strict=True):
        memory.tap = tap
    try:
        ep.gate_map(engram, tokenizer, texts[0])
        assert [memory.tap for memory in memories] == before
    finally:
        for memory in memories:
            memory.tap = None
    assert hooks_of(engram) == hooks


def test_an_edit_by_another_tap_is_seen(engram, tokenizer, texts, gates):
    memory = engram.model.memories[0]
    memory.tap = lambda name, tensor: tensor * 0 + 1 if name == "gate" else tensor
    try:
        edited = ep.gate_map(engram, tokenizer, texts[1])
    finally:
        memory.tap = None
    assert (edited.gate[0] == 1).all()
    assert not np.allclose(edited.next_probs, gates.next_probs)


def test_a_bridge_gives_the_same(engram, tokenizer, texts, gates):
    import engram_model as em

    bridged = ep.gate_map(em.hooked(engram, tokenizer), tokenizer, texts[1])
    np.testing.assert_allclose(bridged.gate, gates.gate, atol=1e-6)
    np.testing.assert_allclose(bridged.next_probs, gates.next_probs, atol=1e-6)
    lens = ep.logit_lens(em.hooked(engram, tokenizer), tokenizer, texts[1])
    assert lens.max_difference < 1e-5


def test_strip_and_values(gates):
    strip = gates.strip("gate", layer=2, stream=3)
    assert [token for token, _ in strip] == list(gates.tokens)
    np.testing.assert_allclose([value for _, value in strip], gates.gate[1, :, 3], rtol=1e-6)
    np.testing.assert_allclose(gates.values("score"), gates.scores.mean(-1), rtol=1e-6)
    np.testing.assert_allclose(
        gates.values("added", stream=1), gates.added_norm[..., 1] / gates.residual_norm[..., 1],
        rtol=1e-5,
    )  # fmt: skip
    assert len(gates.strip(what="added")) == len(gates.tokens)


def test_summary_names_the_largest_addition(gates):
    added = gates.values("added")[:, 1:]
    layer, position = np.unravel_index(added.argmax(), added.shape)
    summary = gates.summary()
    assert f"position {position + 1}, layer {gates.layers[layer]}" in summary
    assert f"{added.max():.2f} of the residual" in summary


def test_frame_has_a_row_for_each_stream(gates):
    frame = gates.to_frame()
    assert len(frame) == gates.gate.size
    row = frame[(frame.layer == 2) & (frame.position == 4) & (frame.stream == 3)].iloc[0]
    assert row.gate == gates.gate[1, 4, 3] and row.token == gates.tokens[4]
    assert frame[frame.special].position.unique().tolist() == [0]


def test_errors(engram, twin, tokenizer):
    for model, text, message in [
        (engram, " \n", "empty"),
        (engram, "The harbour master. " * 100, f"reads {engram.config.max_position_embeddings}"),
        (twin, "The harbour", "has no memory"),
        (engram, ["The harbour"], "one text"),
        (engram.model, "The harbour", "not a causal language model"),
    ]:
        with pytest.raises(UsageError) as error:
            ep.gate_map(model, tokenizer, text)
        assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": "key"}, "gate, score, added"),
        ({"layer": 1}, "layers with one: 0, 2"),
        ({"stream": 4}, "streams 0..3"),
    ],
)
def test_wrong_choices_are_named(gates, options, message):
    with pytest.raises(UsageError, match=message):
        gates.figure(**options)
