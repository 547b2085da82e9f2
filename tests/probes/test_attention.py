"""Attention patterns: scores of patterns made by hand, and of a model's own attention."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import engram_model as em
import engram_probes as ep
from engram_model.errors import CorpusError, UsageError
from engram_probes.attention import NEAR, SCORES
from engram_probes.attention_run import INDUCTION, Listener, Queries, _induction, read
from engram_probes.suppression import suppressed

TEXT = "The harbour master of Varnholm counts the boats. The harbour master counts."
SMALL = dict(sequences=3, length=8)
PLACE = {name: place for place, name in enumerate(SCORES)}


@pytest.fixture(scope="module")
def found(engram, twin, tokenizer, texts):
    return ep.attention_patterns(engram, tokenizer, texts[:6], twin=twin, **SMALL)


@pytest.fixture(scope="module")
def one(engram, tokenizer):
    return ep.attention_patterns(engram, tokenizer, TEXT, changes=("zero",), **SMALL)


IDS = [9, 5, 6, 5, 7, 6, 6, 5]
# token 5 at 3 and 7, 6 at 5 occurred before; 6 at 6 is answered by itself, which does not count
ANSWERS = {3: 2, 5: 3, 7: 4}


def queries(special=(0,)):
    flags = np.zeros(len(IDS), bool)
    flags[list(special)] = True
    return Queries.of(IDS, flags, "cpu")


def looking_to(target):
    """Every query looks to `target(query)` alone, [1, 1, p, p]."""
    pattern = torch.zeros(1, 1, len(IDS), len(IDS))
    for query in range(len(IDS)):
        pattern[0, 0, query, target(query)] = 1
    return pattern


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (lambda q: 0, {"first": 6, "near": 0, "entropy": 0, "distance": 0}),
        (lambda q: max(q - 1, 0), {"previous": 6, "near": 6, "first": 0, "distance": 6}),
        (lambda q: q, {"itself": 6, "near": 0, "distance": 0}),
        (
            lambda q: max(q - NEAR - 1, 1),
            {"near": 4, "previous": 1, "distance": 1 + 2 + 3 + 4 + 5 + 5},
        ),
        (lambda q: ANSWERS.get(q, 0), {"induction": 3, "first": 3}),
    ],
    ids=["first", "previous", "itself", "far", "induction"],
)
def test_scores_of_patterns_by_hand(target, expected):
    asked = queries()
    assert asked.usual.tolist() == [2, 3, 4, 5, 6, 7]
    assert dict(zip(asked.asking.tolist(), asked.answers.tolist(), strict=True)) == ANSWERS
    sums = asked.sums(looking_to(target))[:, 0]
    for name, value in expected.items():
        assert sums[PLACE[name]] == pytest.approx(value), name
    assert asked.counts()[INDUCTION] == 3 and asked.counts()[0] == 6


def test_an_even_pattern_has_the_entropy_of_its_keys():
    even = torch.tril(torch.ones(1, 1, len(IDS), len(IDS)))
    even = even / even.sum(-1, keepdim=True)
    entropy = queries().sums(even)[PLACE["entropy"], 0]
    assert entropy == pytest.approx(sum(np.log(q + 1) for q in range(2, 8)))


def test_special_tokens_ask_nothing():
    assert queries(special=(0, 3)).usual.tolist() == [2, 4, 5, 6, 7]
    assert 3 not in queries(special=(0, 3)).asking.tolist()


class Stub:
    """A listener of a model with two heads: one that looks to what followed its token last time,
    and one that looks a fixed number of tokens back."""

    LENGTH = 10

    def __init__(self, tokenizer) -> None:
        config = SimpleNamespace(vocab_size=len(tokenizer))
        model = SimpleNamespace(device="cpu")
        self.subject = SimpleNamespace(model=model, config=config, context=64)

    def measure(self, batch, measure):
        pattern = torch.zeros(len(batch), 2, len(batch[0]), len(batch[0]))
        for text, ids in enumerate(batch):
            last = {}
            for query, token in enumerate(ids):
                pattern[text, 0, query, last[token] + 1 if token in last else 0] = 1
                pattern[text, 1, query, max(query - self.LENGTH + 1, 0)] = 1
                last[token] = query
        return measure(pattern)[None, None].numpy()


def test_induction_is_told_from_a_fixed_distance(tokenizer):
    repeated, fresh = _induction(Stub(tokenizer), tokenizer, 4, Stub.LENGTH, 0)
    assert repeated.shape == (4, 1, 1, 2)
    np.testing.assert_array_equal(repeated[:, 0, 0], 1)
    np.testing.assert_array_equal(fresh[:, 0, 0], [[0, 1]] * 4)


def test_sequences_read_together_are_each_read_as_alone(engram, tokenizer, monkeypatch):
    def found(at_once):
        monkeypatch.setattr("engram_probes.attention_run.CPU_TOKENS", at_once)
        return _induction(Listener(engram, tokenizer, ("zero",), 0), tokenizer, 3, 8, 0)

    for together, alone in zip(found(4096), found(1), strict=True):
        assert together.shape == (3, 2, 3, 2)
        np.testing.assert_allclose(together, alone, atol=1e-6)


def test_patterns_are_the_models_own(engram, tokenizer, one, attentions):
    pattern = attentions(engram, tokenizer, TEXT)
    np.testing.assert_allclose(one.pattern, pattern, atol=1e-5)
    assert len(one.tokens) == pattern.shape[-1] and one.documents == 1
    before = np.diagonal(pattern, -1, 2, 3)[..., 1:].mean(-1)  # the query at 1 is left out
    np.testing.assert_allclose(one.mean[0, PLACE["previous"]], before, atol=1e-5)
    with suppressed(engram):
        silenced = attentions(engram, tokenizer, TEXT)
    np.testing.assert_allclose(
        one.mean[1, PLACE["first"]], silenced[:, :, 2:, 0].mean(-1), atol=1e-5
    )
    np.testing.assert_allclose(one.change[0], one.mean[1] - one.mean[0], atol=1e-9)
    assert np.abs(one.change[0]).max() > 1e-3 and np.isnan(one.low).all()


def test_a_corpus_weighs_queries_and_pairs_models(
    engram, twin, tokenizer, texts, found, attentions
):
    sums, twins, number = 0, 0, 0
    for text in texts[:6]:
        each, other = (attentions(model, tokenizer, text) for model in (engram, twin))
        sums = sums + np.diagonal(each, -1, 2, 3)[..., 1:].sum(-1)
        twins = twins + np.diagonal(other, -1, 2, 3)[..., 1:].sum(-1)
        number += each.shape[-1] - 2
    place = PLACE["previous"]
    assert found.queries == number and found.pattern is None and found.tokens == ()
    np.testing.assert_allclose(found.mean[0, place], sums / number, atol=1e-5)
    np.testing.assert_allclose(found.twin_mean[place], twins / number, atol=1e-5)
    np.testing.assert_allclose(
        found.difference[place], (sums.mean(1) - twins.mean(1)) / number, atol=1e-5
    )
    np.testing.assert_allclose(found.overall, found.difference.mean(-1))
    assert (found.overall_low <= found.overall).all() and (
        found.overall <= found.overall_high
    ).all()
    np.testing.assert_allclose(found.layer_mean, found.mean.mean(-1))
    assert (found.low <= found.mean + 1e-12).all() and (found.mean <= found.high + 1e-12).all()
    assert (found.difference_low <= found.difference_high).all()
    assert found.repeated.shape == (3, 3, found.mean.shape[-1]) and (found.fresh < 1).all()


def test_layers_before_the_memory_are_not_changed(make_model, tokenizer):
    model = make_model(memory_layers=(2,))
    result = ep.attention_patterns(model, tokenizer, TEXT, **SMALL)
    np.testing.assert_array_equal(result.change[:, :, :2], 0)
    assert np.abs(result.change[:, :, 2]).max() > 1e-3


def test_two_parts_add_up_to_the_whole(engram, tokenizer, texts):
    def state(some):
        return read(engram, None, tokenizer, some, ("zero",), None, None, 2, 4, 0, None).state

    whole, parts = state(texts[:4]), state(texts[:2]) + state(texts[2:4])
    np.testing.assert_allclose(parts.sums.sum(0), whole.sums.sum(0), rtol=1e-6)
    np.testing.assert_array_equal(parts.queries.sum(0), whole.queries.sum(0))


def test_figures(found, one):
    heads = found.figure("heads", "previous")
    np.testing.assert_allclose(
        np.array(heads.data[0].z, float), found.mean[0, PLACE["previous"]], rtol=1e-6
    )
    change = found.figure("heads", "near", change="zero").data[0]
    np.testing.assert_allclose(np.array(change.z, float), found.change[0, PLACE["near"]], rtol=1e-5)
    assert change.zmid == 0
    repeated = found.figure("heads", "repeated").data[0]
    np.testing.assert_allclose(np.array(repeated.z, float), found.repeated[0], rtol=1e-6)
    names = {trace.name for trace in found.figure("layers", "distance").data}
    assert {"memory silenced", found.twin} <= names
    pattern = one.figure("pattern", layer=1, head=1)
    drawn = np.array(pattern.data[0].z, float)
    np.testing.assert_allclose(np.nan_to_num(drawn), one.pattern[1, 1], rtol=1e-6)
    assert list(pattern.layout.xaxis.ticktext) == [
        token.replace("<", "&lt;").replace(">", "&gt;") for token in one.tokens
    ]
    assert pattern.layout.yaxis.range[0] > pattern.layout.yaxis.range[1]  # first query on top


def test_frames(found):
    frame = found.to_frame()
    assert len(frame) == found.mean.size
    layers = found.layers_frame()
    assert {"zero_low", "noise", "twin", "difference_high"} <= set(layers.columns)
    assert found.twin in found.summary() and "as large" in found.summary()


def test_wrong_use(engram, tokenizer, texts, found, make_model):
    cases = {
        "no change 'nothing'": lambda: ep.attention_patterns(
            engram, tokenizer, TEXT, changes=("nothing",)
        ),
        "both at least 2": lambda: ep.attention_patterns(engram, tokenizer, TEXT, sequences=1),
        "the text is empty": lambda: ep.attention_patterns(engram, tokenizer, " "),
        "compare models of as many": lambda: ep.attention_patterns(
            engram, tokenizer, TEXT, twin=make_model(layers=2, memory_layers=())
        ),
        "no figure of 'x'": lambda: found.figure("x"),
        "no score 'x'": lambda: found.figure("heads", "x"),
        "no change 'x'": lambda: found.figure("heads", "near", change="x"),
        "kept of a single text": lambda: found.figure("pattern"),
    }
    for message, wrong in cases.items():
        with pytest.raises(UsageError, match=message):
            wrong()
    with pytest.raises(CorpusError, match="empty"):
        ep.attention_patterns(engram, tokenizer, [])


def test_a_head_that_is_not_there(one):
    with pytest.raises(UsageError, match=r"no head 7\.0"):
        one.figure("pattern", layer=7)


def test_hooks_of_a_bridge_are_live(engram, tokenizer):
    bridge = em.hooked(engram, tokenizer)
    hook = ("blocks.1.attn.hook_pattern", lambda pattern, hook: torch.zeros_like(pattern))
    with bridge.hooks(fwd_hooks=[hook]):
        result = ep.attention_patterns(bridge, tokenizer, TEXT, changes=(), **SMALL)
    assert not result.pattern[1].any() and result.pattern[0].any()
