"""Gates over a corpus: against gate_map and scikit-learn, token by token."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import engram_model as em
import engram_probes as ep
from engram_model.errors import CorpusError, UsageError
from engram_probes.gate_profiles_run import (
    BINS,
    EDGES,
    GROUPS,
    STRATA,
    GateState,
    _auc,
    read,
    statistics,
)
from engram_probes.positions import entity_final


@pytest.fixture(scope="module")
def corpus():
    return em.load_corpus("world:?seed=0&split=valid&tokens=2K&families=bio,phrase,lookalike")


@pytest.fixture(scope="module")
def found(engram, tokenizer, corpus):
    return ep.gate_profile(engram, tokenizer, corpus)


def test_group_means_are_those_of_gate_maps(engram, tokenizer, corpus, found):
    gates, added, surprisal = [], [], []
    for text in corpus["text"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        text = tokenizer.decode(ids[: engram.config.max_position_embeddings - 1])
        one = ep.gate_map(engram, tokenizer, text)
        gates.append(one.gate[:, ~one.special])
        added.append(one.added_relative[:, ~one.special])
        surprisal.append(one.next_surprisal[~one.special])
    gates, added = np.concatenate(gates, 1), np.concatenate(added, 1)
    surprisal = np.concatenate(surprisal)
    assert found.tokens == gates.shape[1] and found.documents == len(corpus)
    group = GROUPS.index("next token's surprisal over 4")
    members = surprisal >= 4
    assert found.group_tokens[group] == members.sum() > 50
    np.testing.assert_allclose(found.group_mean[group, 0], gates[:, members].mean(1), rtol=1e-5)
    np.testing.assert_allclose(
        found.group_mean[group, 1], np.exp(np.log(added[:, members]).mean(1)), rtol=1e-4
    )
    assert (found.group_low[group] < found.group_mean[group]).all()
    for layer in range(2):
        np.testing.assert_allclose(found.correlation[layer], np.corrcoef(gates[layer].T), atol=1e-6)
    expected = np.histogram(gates[0, :, 0], EDGES[0])[0]
    np.testing.assert_array_equal(found.histogram[0, 0, 0], expected)


def test_ends_are_those_that_cka_takes(engram, tokenizer, corpus, found):
    context = engram.config.max_position_embeddings
    generator = np.random.default_rng(0)
    ends = [entity_final(document, tokenizer, 10**6, generator)[1] for document in corpus]
    inside = sum(int((positions < context).sum()) for positions in ends)
    assert found.positives[0] == inside > 50 and found.positives[1] > 0
    tiers = [found.group_tokens[g] for g, name in enumerate(GROUPS) if name.startswith("end")]
    assert sum(tiers) <= inside


def test_auc_is_that_of_scikit_learn_within_strata():
    generator = np.random.default_rng(0)
    counts = np.zeros((1, 3, STRATA, 1, 1, 1, BINS))
    wins, weights = [], []
    for stratum in (0, 3, 7):
        ends, others = generator.integers(10, 50, 40), generator.integers(0, 45, 200)
        np.add.at(counts[0, 0, stratum, 0, 0, 0], ends, 1)
        np.add.at(counts[0, 2, stratum, 0, 0, 0], others, 1)
        truth = [1] * len(ends) + [0] * len(others)
        wins.append(roc_auc_score(truth, [*ends, *others]))
        weights.append(len(ends))
    counts[0, 0, 5, 0, 0, 0, 3] = 9  # ends with no match: left out
    matched, inside = _auc(counts)[0, :, 0, 0, 0]
    assert matched == pytest.approx(np.average(wins, weights=weights))
    assert np.isnan(inside)


def test_a_gate_that_marks_ends_is_found_and_a_blind_one_is_not(engram, tokenizer, corpus):
    """Planted: one stream's gate is high at the last token of names, another's is noise."""
    bridge = em.hooked(engram, tokenizer)
    generator = np.random.default_rng(0)
    ends = {}
    for document in corpus:
        ids, positions = entity_final(document, tokenizer, 10**6, generator)
        ends[tuple(ids[:128])] = set(positions.tolist())
    seen = {}

    def keep(model, args):
        seen["ids"] = tuple(args[0][0].tolist())

    def plant(gate, hook):
        import torch

        gate = gate.clone()
        marks = [float(p in ends[seen["ids"]]) for p in range(gate.shape[1])]
        gate[0, :, 0] = 0.25 + 0.5 * torch.tensor(marks)
        gate[0, :, 1] = torch.tensor(generator.random(gate.shape[1]))
        return gate

    handle = bridge.original_model.register_forward_pre_hook(keep)
    with bridge.hooks(fwd_hooks=[("blocks.0.engram.hook_gate", plant)]):
        planted = ep.gate_profile(bridge, tokenizer, corpus)
    handle.remove()
    assert (planted.auc[0, :, 0, 0, 0] == 1).all()  # entity, both controls, gate, layer 0, stream 0
    low, high = (array[0, 0, 0, 0, 1] for array in (planted.low, planted.high))
    assert 0.35 < low < 0.5 < high < 0.65


def test_states_of_parts_add_up(engram, tokenizer, corpus, found):
    half = len(corpus) // 2
    first = read(engram, tokenizer, corpus.select(range(half)), None, None, None)
    rest = read(engram, tokenizer, corpus.select(range(half, len(corpus))), None, None, None)
    both = first.state + rest.state
    whole = read(engram, tokenizer, corpus, None, None, None).state
    np.testing.assert_array_equal(both.counts.sum(0), whole.counts.sum(0))
    np.testing.assert_allclose(both.sums.sum(0), whole.sums.sum(0), rtol=1e-9)
    assert vars(GateState.empty(2, 4)).keys() == vars(both).keys()
    again = statistics(read(engram, tokenizer, corpus, None, None, None), {}, 0)
    np.testing.assert_array_equal(again.low, found.low)


def test_texts_without_spans_have_groups_only(engram, tokenizer, texts):
    found = ep.gate_profile(engram, tokenizer, texts, max_documents=3)
    assert np.isnan(found.auc).all() and "no labelled names" in found.summary()
    assert found.documents == 3 and found.group_tokens[GROUPS.index("mechanism outside")] > 20


def test_saves_and_draws(found, tmp_path):
    again = ep.load_result(found.save(tmp_path))
    np.testing.assert_array_equal(again.auc, found.auc)
    assert again.summary() == found.summary() and "0.5 is chance" in found.summary()
    for what in ("auc", "groups"):
        assert found.figure(what, "added").layout.meta["alt"]
    assert len(found.to_frame()) == found.auc.size
    assert len(found.groups_frame()) == found.group_mean.size
    with pytest.raises(UsageError, match="no figure of 'all'"):
        found.figure("all")


def test_wrong_use(twin, engram, tokenizer):
    with pytest.raises(UsageError, match="has no memory"):
        ep.gate_profile(twin, tokenizer, ["a text"])
    with pytest.raises(CorpusError, match="empty"):
        ep.gate_profile(engram, tokenizer, [" "])
