"""Gates over a corpus: against gate_map and scikit-learn, token by token."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import engram_model as em
import engram_probes as ep
from engram_model.errors import CorpusError, UsageError
from engram_probes.gate_groups import TEXT_GROUPS
from engram_probes.gate_profiles_run import (
    BINS,
    EDGES,
    STRATA,
    GateState,
    _auc,
    read,
    statistics,
)
from engram_probes.positions import entity_final

GROUPS = tuple(group.name for group in TEXT_GROUPS)


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
    assert (found.group_tokens[group] == members.sum()).all() and members.sum() > 50
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
    tiers = [found.group_tokens[g, 0] for g, name in enumerate(GROUPS) if name.startswith("end")]
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
    assert vars(GateState.empty(2, 4, 5)).keys() == vars(both).keys()
    again = statistics(read(engram, tokenizer, corpus, None, None, None), {}, 0)
    np.testing.assert_array_equal(again.low, found.low)


def test_texts_without_spans_have_groups_only(engram, tokenizer, texts):
    found = ep.gate_profile(engram, tokenizer, texts, max_documents=3)
    assert np.isnan(found.auc).all() and "no labelled names" in found.summary()
    assert found.documents == 3 and found.group_tokens[GROUPS.index("mechanism outside"), 0] > 20


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


@pytest.fixture(scope="module")
def short():
    return em.load_corpus("world:?seed=1&split=valid&tokens=700&families=bio,reading")


@pytest.fixture(scope="module")
def counted(engram, tokenizer, short):
    from engram_probes.slot_index import build_index

    return build_index(engram, tokenizer, short)


@pytest.fixture(scope="module")
def frequency(engram, tokenizer, short, counted):
    return ep.gate_profile(engram, tokenizer, short, index=counted, controls=6)


def by_hand(engram, tokenizer, index, text):
    """Counts [O, p], tenants, log reads and own shares [O, L, p], each looked up by itself."""
    from engram_probes.memory_tables import tables_of

    tables = tables_of(engram)
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]][:128]
    compressed = [tables.hasher.pad_id] * 2 + tables.compression[ids].tolist()
    rows = {layer: tables.hasher.slots(np.array(compressed[2:]), layer) for layer in (0, 2)}
    shape = (2, 2, len(ids))
    counts, tenants, reads, share = np.zeros((2, len(ids))), *np.zeros((3, *shape))
    for order, layer, p in np.ndindex(shape):
        own = tuple(compressed[p + 1 - order : p + 3])
        counts[order, p] = index.count(own)
        for head in range(2):
            slot = int(rows[(0, 2)[layer]][p, order * 2 + head])
            found = index.tenants((0, 2)[layer], order + 2, head, slot)
            others = [c for n, c in zip(*found, strict=True) if tuple(n.tolist()) != own]
            tenants[order, layer, p] += len(others) / 2
            reads[order, layer, p] += np.log1p(sum(others)) / 2
            total = found.counts.sum()
            share[order, layer, p] += counts[order, p] / total / 2 if total else 0
    return ids, counts, tenants, reads, share


def test_counts_and_loads_are_those_found_one_by_one(engram, tokenizer, short, counted):
    from engram_probes.ngram_use import NgramUse

    use = NgramUse(counted, controls=3)
    for text in ("Nobody told of this before.", short[2]["text"]):
        ids, counts, tenants, reads, share = by_hand(engram, tokenizer, counted, text)
        found = use(em.compression_map(tokenizer)[ids])
        usual = np.arange(len(ids)) > 0
        np.testing.assert_array_equal(found.counts[:, usual], counts[:, usual])
        np.testing.assert_allclose(found.loads[0], tenants, rtol=1e-6)
        np.testing.assert_allclose(found.loads[1], reads, rtol=1e-5)
        np.testing.assert_allclose(found.own_share, share, rtol=1e-9)
        assert found.control.shape == (3, 2, 2, 2, len(ids))
        assert not np.array_equal(found.control[0], found.loads)


def test_groups_by_ngram_are_those_of_gate_maps(engram, tokenizer, short, counted, frequency):
    """Every band of the trigram's count, and the second layer's fifths of others' reads."""
    from engram_probes.gate_groups import COUNTS

    gates, bands, fifths = [], [], []
    for text in short["text"]:
        ids, counts, _, reads, _ = by_hand(engram, tokenizer, counted, text)
        one = ep.gate_map(engram, tokenizer, tokenizer.decode(ids[1:]))
        gates.append(one.gate[:, ~one.special])
        bands.append(np.digitize(counts[1], COUNTS[1:])[~one.special])
        edges = frequency.fifths[1, 1, 1]
        fifths.append(np.digitize(reads[1, 1].astype(np.float32), edges)[~one.special])
    gates, bands, fifths = np.concatenate(gates, 1), np.concatenate(bands), np.concatenate(fifths)
    for kind, found, layers in (("count", bands, [0, 1]), ("reads", fifths, [1])):
        groups = [g for g, k in enumerate(frequency.group_kinds) if k == f"3-gram {kind}"]
        for band, group in enumerate(groups):
            members = found == band
            assert (frequency.group_tokens[group, layers] == members.sum()).all()
            if members.any():
                np.testing.assert_allclose(
                    frequency.group_mean[group, 0, layers],
                    gates[layers][:, members].mean(1),
                    rtol=1e-5,
                )
    assert len(np.unique(bands)) > 3 and len(np.unique(fifths)) == 5


def test_a_gate_that_follows_count_or_load_is_found(engram, tokenizer, short, counted):
    """Planted in layer 0: stream 0 follows the count, 1 shuns others' reads, 2 is noise."""
    import torch

    bridge = em.hooked(engram, tokenizer)
    planted = {}
    for text in short["text"]:
        ids, counts, _, reads, _ = by_hand(engram, tokenizer, counted, text)
        planted[tuple(ids)] = counts[1], reads[1, 0]
    seen = {}
    generator = np.random.default_rng(0)

    def keep(model, args):
        seen["ids"] = tuple(args[0][0].tolist())

    def plant(gate, hook):
        gate = gate.clone()
        counts, reads = planted[seen["ids"]]
        gate[0, :, 0] = torch.tensor(1 - 1 / (1 + counts))
        gate[0, :, 1] = torch.tensor(1 - reads / 10)
        gate[0, :, 2] = torch.tensor(generator.random(len(counts)))
        return gate

    handle = bridge.original_model.register_forward_pre_hook(keep)
    with bridge.hooks(fwd_hooks=[("blocks.0.engram.hook_gate", plant)]):
        found = ep.gate_profile(bridge, tokenizer, short, index=counted, controls=20)
    handle.remove()
    count, load, _ = found.partial[1, found.loads.index("reads"), :, 0, 0]
    low, high = found.control_low[1, 1, 0, 0], found.control_high[1, 1, 0, 0]
    assert count[0] > 0.99 and load[1] < -0.99
    assert load[1] < low[1] - 0.5  # rows of other hashes say nothing of this gate
    assert low[2] - 0.1 < load[2] < high[2] + 0.1 and abs(count[2]) < 0.1
    assert np.isnan(load[0])  # the count alone fixes this gate: nothing is left to explain


def test_partial_correlations_are_those_of_residuals():
    """Against regression: ranks less what the others explain, then Pearson."""
    from scipy.stats import rankdata, spearmanr

    from engram_probes.rank_correlation import centred_ranks, correlation, moments, partial

    generator = np.random.default_rng(0)
    count, surprisal = generator.integers(0, 20, 900), generator.random(900)
    load = generator.random(900) + 0.05 * count
    gate = count - 4 * surprisal + generator.normal(size=900) * 4
    columns = np.stack([gate, count, load, surprisal])
    matrix = correlation(moments(centred_ranks(columns)))
    np.testing.assert_allclose(matrix, spearmanr(columns.T).statistic, atol=1e-9)
    ranks = rankdata(columns, axis=1)
    for at, given in ((1, (2, 3)), (2, (1, 3)), (3, (1, 2))):
        others = np.stack([*ranks[list(given)], np.ones(900)], 1)
        left = [
            ranks[i] - others @ np.linalg.lstsq(others, ranks[i], rcond=None)[0] for i in (0, at)
        ]
        assert partial(matrix, 0, at, given) == pytest.approx(np.corrcoef(left)[0, 1], abs=1e-9)
    same = correlation(moments(centred_ranks(np.stack([gate, count, 2 * count, 0 * count]))))
    assert np.isnan(partial(same, 0, 1, (2,))) and np.isnan(same[0, 3])


def test_samples_are_bounded_and_add_up():
    from engram_probes.rank_correlation import MOST, TokenSample, priorities

    parts = [priorities(text, 400, 0) for text in ("a", "b", "c")]
    rows = [np.full((400, 2), number) for number in range(3)]
    first, rest, whole = TokenSample(), TokenSample(), TokenSample()
    first.add(7, parts[0], rows[0])
    for sample, numbers in ((rest, (1, 2)), (whole, (2, 0, 1))):
        for number in numbers:
            sample.add(7, parts[number], rows[number])
    assert len(whole.features()[1]) == MOST
    for one, other in zip((first + rest).features(), whole.features(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert set(whole.features()[1][:, 0]) == {0, 1, 2} and len(first.blocks[7][0]) == 400


def test_a_profile_with_an_index_saves_and_draws(frequency, found, tmp_path):
    again = ep.load_result(frequency.save(tmp_path))
    np.testing.assert_array_equal(again.partial, frequency.partial)
    assert again.correlations_frame().equals(frequency.correlations_frame())
    assert len(again.correlations_frame()) == frequency.partial.size
    assert "partial rank correlation" in frequency.summary()
    assert frequency.provenance.corpus["index"]["documents"] == frequency.documents
    assert (frequency.partial_low <= frequency.partial_high + 1e-12).all()
    for what in ("frequency", "correlations", "groups"):
        assert frequency.figure(what, "added").layout.meta["alt"]
    drawn = frequency.figure("groups").layout.yaxis.ticktext
    assert drawn and not any("-gram" in name for name in drawn)
    assert not any("-gram" in kind for kind in found.group_kinds)  # left out, not NaN
    assert found.partial is None and found.orders == ()
    for what in ("frequency", "correlations"):
        with pytest.raises(UsageError, match="without an index"):
            found.figure(what)


def test_an_index_of_another_hash_is_refused(make_model, tokenizer, short, counted):
    with pytest.raises(UsageError, match="another hash"):
        ep.gate_profile(make_model(engram_seed=5), tokenizer, short, index=counted)
