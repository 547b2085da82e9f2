"""Expert routing: against choices made by hand, and against what the routers of a model say."""

import numpy as np
import pytest
import torch

import engram_model as em
import engram_probes as ep
from engram_model.errors import CorpusError, UsageError
from engram_probes.capture import Subject, heard
from engram_probes.memory_changes import CONTROLS, DEFAULT, MemoryChanges
from engram_probes.routing import GROUPS
from engram_probes.routing_run import (
    Choice,
    RoutingState,
    _entropy,
    chance,
    evenness,
    information,
    read,
)
from engram_probes.suppression import suppressed

TEXT = "The harbour master of Varnholm counts the boats at dusk."


@pytest.fixture(scope="module")
def corpus():
    return em.load_corpus("world:?seed=0&split=valid&tokens=1K&families=bio,phrase")


@pytest.fixture(scope="module")
def found(engram, tokenizer, corpus):
    return ep.expert_routing(engram, tokenizer, corpus, permutations=20)


def choices_of(model, ids):
    """Of each layer the ids that its router gives, [L, p, k], by torch alone."""
    kept = []
    routers = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    hooks = [
        router.register_forward_hook(lambda _m, _a, out: kept.append(out)) for router in routers
    ]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return np.stack([out[2].numpy() for out in kept])


def shares(before, after):
    return np.array(
        [
            [len(set(a) & set(b)) / len(a) for a, b in zip(*layers, strict=True)]
            for layers in zip(before, after, strict=True)
        ]
    )


def test_loads_and_what_is_kept_are_those_of_the_routers(engram, tokenizer, corpus, found):
    loads, kept, tokens = 0, {"zero": 0, "shuffle": 0}, 0
    for text in corpus["text"]:
        ids = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]
        ids = ids[: engram.config.max_position_embeddings]
        before = choices_of(engram, ids)
        loads = loads + np.stack(
            [np.bincount(c.ravel(), minlength=found.experts) for c in before[:, 1:]]
        )
        for how in kept:
            with suppressed(engram, how):
                after = choices_of(engram, ids)
            kept[how] = kept[how] + shares(before, after)[:, 1:].sum(1)
        tokens += len(ids) - 1
    assert found.group_tokens[0] == tokens and found.documents == len(corpus) > 3
    np.testing.assert_allclose(found.load, loads / tokens)
    np.testing.assert_allclose(found.load.sum(1), found.chosen)
    np.testing.assert_allclose(found.weight.sum(1), 1, rtol=1e-5)
    for how, sums in kept.items():
        np.testing.assert_allclose(found.kept[found.changes.index(how), 0], sums / tokens)
    assert found.changes == DEFAULT and (found.kept[0, 0] < 0.999).any()


def test_groups_and_intervals(found):
    assert found.group_tokens[1:].sum() <= found.group_tokens[0] and found.groups == GROUPS
    known = found.group_tokens > 0
    assert known.sum() > 2 and np.isnan(found.kept[:, ~known]).all()
    low, mean, high = found.kept_low[:, 0], found.kept[:, 0], found.kept_high[:, 0]
    assert (low <= mean).all() and (mean <= high).all() and (low < high).any()
    np.testing.assert_allclose(found.difference, found.kept[:1] - found.kept[1:])
    np.testing.assert_allclose(np.einsum("lee->le", found.together), found.load)
    over = found.together_over_chance()
    assert np.isnan(np.einsum("lee->le", over)).all() and (over[np.isfinite(over)] >= 0).all()


def test_a_memory_that_adds_nothing_changes_no_choice(make_model, tokenizer):
    model = make_model()
    with torch.no_grad():
        for memory in model.model.memories:
            memory.wkv.weight.zero_()
    result = ep.expert_routing(model, tokenizer, TEXT)
    np.testing.assert_array_equal(result.kept[:, 0], 1)
    np.testing.assert_array_equal(result.text_kept(), 1)


@pytest.mark.parametrize("streams", [1, 4])
def test_controls_are_as_large_as_what_is_taken_away(make_model, tokenizer, streams):
    model = make_model(streams=streams)
    subject = Subject.of(em.hooked(model, tokenizer))
    changes = MemoryChanges(subject, DEFAULT, seed=0)
    ids = [tokenizer.bos_token_id, *tokenizer(TEXT)["input_ids"]]
    outs = {}
    for condition in changes.conditions:
        kept = outs[condition] = []
        with changes.made(condition):
            memories = [
                heard(m, lambda n, t, k=kept: n == "out" and k.append(t)) for m in subject.memories
            ]
            with memories[0], memories[1]:
                subject.run([ids])
    for number, intact in enumerate(outs["intact"]):
        size = intact.norm(dim=-1)
        for name in CONTROLS:
            apart = (outs[name][number] - intact).norm(dim=-1)
            torch.testing.assert_close(apart, size, rtol=1e-4, atol=1e-5)
        assert not outs["zero"][number].any() and size.min() > 0
        removed = (intact - outs["other"][number]) / size.unsqueeze(-1)
        unit = intact / size.unsqueeze(-1)
        shift = next(
            s for s in range(1, len(ids)) if torch.allclose(removed, unit.roll(s, 1), atol=1e-3)
        )
        assert 0 < shift < len(ids)
    assert all(memory.tap is None for memory in model.model.memories)


def test_choices_by_hand():
    ids = np.array([[[0, 1], [0, 2], [0, 1]]])
    other = np.array([[[1, 0], [3, 1], [1, 2]]])
    before, after = (
        Choice(each, np.full(each.shape, 0.5), np.zeros((1, 3)), 4) for each in (ids, other)
    )
    np.testing.assert_allclose(before.share_kept(after), [[1, 0, 0.5]])
    state = RoutingState.empty(1, 4, 1, 1)
    usual = np.array([True, True, True])
    state.add(0, [before, after], usual, np.array([2, 2, 3]), np.random.default_rng(0))
    np.testing.assert_array_equal(state.counts[0, 0, 0], [3, 2, 1, 0])
    np.testing.assert_array_equal(state.counts[0, 4, 0], [1, 1, 0, 0])  # "fact" is mechanism 3
    np.testing.assert_array_equal(state.together[0, 0], [3, 2, 1, 0])
    np.testing.assert_allclose(state.kept[0, 0, [0, 3, 4], 0], [1.5, 1, 0.5])
    np.testing.assert_allclose(state.weights[0, 0], [1.5, 1, 0.5, 0])
    assert state.shifted.sum() == 6 and state.tokens[0, 0] == 3


def test_statistics_of_planted_tables():
    assert evenness(np.array([5, 5, 5, 5.0])) == pytest.approx(1)
    assert evenness(np.array([5, 0, 0, 0.0])) == 0
    one_to_one = 10 * np.eye(3)[:, None]
    np.testing.assert_allclose(information(one_to_one), np.log(3))
    np.testing.assert_allclose(information(np.ones((3, 2, 4))), 0, atol=1e-12)
    assert np.isnan(information(np.zeros((3, 1, 4)))).all()


def test_chance_is_that_of_draws_by_the_loads():
    dice = np.random.default_rng(0)
    n, k = 20_000, 2
    before, after = (
        np.argsort(dice.gumbel(size=(n, 5)) + np.log([5, 3, 2, 1, 1]), 1)[:, -k:] for _ in range(2)
    )
    counts = [np.bincount(each.ravel(), minlength=5) for each in (before, after)]
    expected = chance(counts[0][None, None], counts[1][None, None, None], np.array([n]), k)
    drawn = shares([before], [after]).mean()
    assert expected[0, 0, 0] == pytest.approx(drawn, abs=0.01)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_entropy_is_that_of_the_routers_own_scores(score):
    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    scores = logits.softmax(-1) if score == "softmax" else logits.sigmoid()
    weights, ids = scores.topk(3)
    share = scores / scores.sum(-1, keepdim=True)
    expected = -(share * share.log()).sum(-1)
    torch.testing.assert_close(_entropy(logits, 2.5 * weights, ids), expected)


def test_two_parts_add_up_to_the_whole(engram, tokenizer, corpus):
    def state(texts):
        run = read(engram, tokenizer, texts, ("zero", "shuffle"), None, None, 1, 0, None)
        return run.state

    texts = corpus["text"][:4]
    whole, parts = state(texts), state(texts[:2]) + state(texts[2:])
    for name in ("counts", "tokens", "weights", "kept", "changed", "together"):
        total, summed = getattr(whole, name), getattr(parts, name)
        if name in ("counts", "tokens", "weights", "kept"):
            total, summed = total.sum(0), summed.sum(0)
        np.testing.assert_allclose(summed, total, rtol=1e-6, err_msg=name)


def test_one_text(engram, tokenizer):
    result = ep.expert_routing(engram, tokenizer, TEXT, changes=("zero",))
    ids = [tokenizer.bos_token_id, *tokenizer(TEXT)["input_ids"]]
    before = choices_of(engram, ids)
    with suppressed(engram):
        after = choices_of(engram, ids)
    np.testing.assert_array_equal(result.expert_ids, [before, after])
    np.testing.assert_allclose(result.text_kept(), shares(before, after))
    assert len(result.tokens) == len(ids) and np.isnan(result.information).all()
    figure = result.figure("text")
    np.testing.assert_allclose(np.array(figure.data[0].z, float), result.text_kept(), rtol=1e-6)


def test_hooks_of_a_bridge_are_live(engram, tokenizer):
    bridge = em.hooked(engram, tokenizer)
    name = "blocks.1.mlp.gate.hook_expert_indices"
    with bridge.hooks(
        fwd_hooks=[(name, lambda ids, hook: torch.zeros_like(ids) + torch.arange(ids.shape[-1]))]
    ):
        result = ep.expert_routing(bridge, tokenizer, TEXT, changes=())
    layer = result.layers.index(1)
    np.testing.assert_array_equal(result.load[layer, : result.chosen], 1)


def test_the_same_seed_gives_the_same(engram, tokenizer, texts):
    one, two = (
        ep.expert_routing(engram, tokenizer, texts[:2], permutations=2, seed=3) for _ in range(2)
    )
    np.testing.assert_array_equal(one.kept, two.kept)


@pytest.mark.parametrize("what", [None, "mechanism", "load", "information"])
def test_figures(found, what):
    figure = found.figure(what)
    assert figure.layout.title.text and figure.layout.meta["alt"].endswith(".")
    if what is None:
        line = next(trace for trace in figure.data if trace.name == "memory silenced")
        np.testing.assert_allclose(np.array(line.y, float), found.kept[0, 0], rtol=1e-6)
        assert "by chance" in {trace.name for trace in figure.data}


def test_frames(found):
    frame = found.to_frame()
    assert len(frame) == found.kept.size
    row = frame[(frame.change == "noise") & (frame.group == "fact")].iloc[0]
    assert row.kept == found.kept[1, GROUPS.index("fact"), 0]
    assert list(found.layers_frame().layer) == list(found.layers)
    assert "as large" in found.summary() and "by chance" in found.summary()


def test_wrong_use(engram, tokenizer, found, make_model):
    with pytest.raises(UsageError, match="no change 'nothing'"):
        ep.expert_routing(engram, tokenizer, TEXT, changes=("nothing",))
    with pytest.raises(UsageError, match="permutations=0"):
        ep.expert_routing(engram, tokenizer, TEXT, permutations=0)
    with pytest.raises(CorpusError, match="empty"):
        ep.expert_routing(engram, tokenizer, [])
    with pytest.raises(UsageError, match="no figure of 'x'"):
        found.figure("x")
    with pytest.raises(UsageError, match="single text"):
        found.figure("text")
    dense = make_model(first_k_dense_replace=3)
    with pytest.raises(UsageError, match="no experts that are chosen"):
        ep.expert_routing(dense, tokenizer, TEXT)
