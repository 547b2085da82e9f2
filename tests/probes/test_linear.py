"""Linear probes: planted truth is found where it is, and nothing is found where there is none."""

import numpy as np
import pytest
import torch

import engram_model as em
import engram_probes as ep
from engram_model.errors import CorpusError, UsageError
from engram_probes.capture import Subject
from engram_probes.linear import IDENTITY, MAJORITY, METRICS, metrics_of
from engram_probes.linear_fit import _ends, control_labels, make_design, make_splits, read
from engram_probes.linear_run import capture, one_hot, untrained
from engram_probes.linear_task import Candidate, Labelled, label_of, make_task, place_of, tie
from engram_probes.text import Documents

NAMES = tuple(f"{a}{b}{c}" for a in "BDKLM" for b in "aeiou" for c in ("rn", "st", "lk"))
ROLES = ("miller", "smith")


def told(name: str, role: str, times: int) -> dict:
    """A document about somebody whose role is told first, as a span, then the name twice."""
    text = f"At dusk the boats of {name} come home, {name} counts them, a {role}."
    starts = [text.index(name), text.rindex(name)]
    spans = [(start, start + len(name), "name") for start in starts]
    spans.append((text.rindex(role), text.rindex(role) + len(role), "role"))
    return {
        "text": text,
        "spans": [
            {"start": s, "end": e, "kind": kind, "entity_id": name, "tier": times}
            for s, e, kind in spans
        ],
    }


@pytest.fixture(scope="module")
def roles():
    return dict(zip(NAMES, np.random.default_rng(0).integers(0, 2, len(NAMES)), strict=True))


@pytest.fixture(scope="module")
def people(roles):
    return [told(name, ROLES[role], int(role)) for name, role in roles.items()]


def task_of(documents, tokenizer, engram, label="tier", at=None, **changes):
    options = dict(positions=500, per_document=8, most_classes=10, folds=2, seed=0)
    special = Subject.of(engram)
    return make_task(
        Documents(documents), tokenizer, lambda ids: special.special(tokenizer, ids), 256, label,
        at or place_of(label), **{**options, **changes},
    )  # fmt: skip


def design_of(labels, groups=None, token_ids=None, folds=5):
    n = len(labels)
    groups = np.arange(n) if groups is None else groups
    token_ids = np.zeros(n, dtype=np.int64) if token_ids is None else token_ids
    return make_design(labels, groups, token_ids, int(labels.max()) + 1, folds, seed=0)


def noise(n, d=10, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_a_planted_signal_is_found_at_its_depth_and_nowhere_else(
    make_model, tokenizer, people, roles
):
    """The role is added to the stream after block 1 and taken away again before block 2."""
    model = make_model()
    direction = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(5))
    seen = []

    def planted(sign):
        of = [
            next(role for name, role in roles.items() if name in tokenizer.decode(row))
            for row in seen[-1]
        ]
        return sign * 5 * torch.tensor(of)[:, None, None, None] * direction

    layers = model.model.layers
    model.get_input_embeddings().register_forward_pre_hook(
        lambda _m, args: seen.append(args[0].tolist())
    )
    layers[1].register_forward_hook(lambda _m, _a, out: out + planted(1))
    layers[2].register_forward_pre_hook(
        lambda _m, args, kwargs: ((args[0] + planted(-1), *args[1:]), kwargs), with_kwargs=True
    )
    result = ep.linear.probe(model, tokenizer, people)
    depths, accuracy, low, high = result.curve()
    assert depths.tolist() == [0, 1, 2, 3]
    assert accuracy[2] > 0.97 and (accuracy[[0, 1, 3]] < 0.75).all()
    assert (low <= accuracy).all() and (accuracy <= high).all()
    assert (result.curve("accuracy", result.untrained)[1] < 0.75).all()
    bits = result.curve("bits")[1]
    assert bits[2] < 0.6 * result.uniform_bits and (bits[[0, 1, 3]] > 0.9).all()
    assert "after 2 blocks" in result.summary() and "not clearly" not in result.summary()


def test_the_summary_says_when_nothing_was_read(engram, tokenizer, people):
    """Roles are drawn by chance: no name tells them."""
    result = ep.linear.probe(engram, tokenizer, people, depths=(0,))
    assert f"not clearly more than {MAJORITY}" in result.summary()


def test_a_separable_task_has_a_short_code_and_noise_has_not():
    labels = np.random.default_rng(1).integers(0, 4, 400)
    clear = read(noise(400) + 10 * np.eye(10, dtype=np.float32)[labels], design_of(labels))
    assert clear.right.all() and clear.bits.mean() < 0.3 * 2
    nothing = read(noise(400), design_of(labels))
    assert 0.15 < nothing.right.mean() < 0.35 and nothing.bits.mean() > 0.95 * 2


def test_code_of_class_frequencies_is_exact():
    """Without features a probe can only learn how frequent the classes are."""
    labels = np.random.default_rng(2).choice(3, 300, p=[0.6, 0.3, 0.1])
    groups = np.arange(300) // 7
    design = design_of(labels, groups)
    expected, ordered = [], labels[design.order]
    for start, end in zip([0, *design.ends], design.ends, strict=False):
        seen = np.bincount(ordered[:start], minlength=3)
        p = (seen + 1) / (start + 3)
        expected += list(-np.log2(p[ordered[start:end]]))
    found = read(np.zeros((300, 1), dtype=np.float32), design)
    np.testing.assert_allclose(found.bits[design.order], expected, atol=0.02)
    assert (found.right == (labels == 0)).all()


def test_portions_end_with_a_group():
    groups = np.repeat(np.arange(60), np.random.default_rng(0).integers(1, 9, 60))
    ends = _ends(groups)
    assert ends[-1] == len(groups) and ends == sorted(set(ends)) and len(ends) > 5
    assert all(groups[end - 1] != groups[end] for end in ends[:-1])
    order = design_of(np.arange(len(groups)) % 2, groups).order
    assert sorted(order) == list(range(len(groups)))
    changes = np.count_nonzero(np.diff(groups[order]))
    assert changes == 59  # each group is in one piece


def test_labels_by_word_type_have_no_selectivity():
    """They are a control task themselves: read well, and worth nothing."""
    generator = np.random.default_rng(3)
    token_ids = generator.integers(0, 30, 900)
    labels = generator.integers(0, 2, 30)[token_ids]
    features = noise(30, 40)[token_ids]
    found = read(features, design_of(labels, token_ids=token_ids))
    assert found.right.mean() > 0.95
    assert abs(found.right.mean() - found.control_right.mean()) < 0.05
    guess = read(noise(900, 5), design_of(generator.integers(0, 2, 900), token_ids=token_ids))
    assert abs(guess.right.mean() - guess.control_right.mean()) < 0.06


def test_control_labels_are_one_a_type_and_as_frequent():
    generator = np.random.default_rng(0)
    labels = generator.choice(3, 2000, p=[0.6, 0.3, 0.1])
    token_ids = np.minimum(generator.geometric(0.05, 2000), 60)  # a few types are common
    controls = [control_labels(labels, token_ids, generator) for _ in range(2)]
    for control in controls:
        assert all(len(set(control[token_ids == token])) == 1 for token in set(token_ids))
        shares = np.bincount(control, minlength=3) / 2000
        np.testing.assert_allclose(shares, [0.6, 0.3, 0.1], atol=0.05)
    assert 0.2 < (controls[0] == controls[1]).mean() < 0.8


def test_no_group_is_on_both_sides():
    generator = np.random.default_rng(4)
    labels, groups = generator.integers(0, 3, 300), generator.integers(0, 40, 300)
    splits = make_splits(labels, groups, folds=5, seed=0)
    assert sorted(np.concatenate([split.test for split in splits])) == list(range(300))
    for split in splits:
        assert not set(groups[split.train]) & set(groups[split.test])
        assert sorted(np.concatenate([split.train, split.test])) == list(range(300))
        for train, test in split.inner:
            assert not set(groups[train]) & set(groups[test])
            assert set(train) | set(test) == set(split.train)


def test_ties_go_through_documents_and_entities():
    who = [["a"], ["b", "c"], ["c", "d"], [None], ["d"], ["a", None], ["e"]]
    documents = [Labelled([0], [Candidate(0, "x", entity) for entity in row]) for row in who]
    groups = tie(documents)
    rows = np.repeat(np.arange(len(who)), [len(row) for row in who])
    of = [set(groups[rows == row]) for row in range(len(who))]
    assert all(len(one) == 1 for one in of)
    assert of[1] == of[2] == of[4] and of[0] == of[5]
    assert len({next(iter(one)) for one in of}) == 4


def test_one_hot_counts_shared_suffixes():
    suffixes = np.random.default_rng(0).integers(0, 3, (40, 3))
    matrix = one_hot(suffixes).toarray()
    for i in range(40):
        for j in range(40):
            same = [(suffixes[i, -k:] == suffixes[j, -k:]).all() for k in (1, 2, 3)]
            assert matrix[i] @ matrix[j] == sum(same)


def test_names_are_read_at_the_end_of_their_first_mention(tokenizer, engram, people):
    task = task_of(people, tokenizer, engram)
    assert len(task.documents) == len(people) and task.classes == ("0", "1")
    for document in task.documents:
        (candidate,) = document.candidates
        text = tokenizer.decode(document.ids[1:])
        assert candidate.position == len(document.ids) - 1
        assert text.endswith(candidate.entity) and text.count(candidate.entity) == 1
    assert (task.suffixes(3)[:, -1] == task.token_ids).all()
    assert task.suffixes(2)[0].tolist() == task.documents[0].ids[-2:]


def test_next_is_the_token_before_one_of_a_span(tokenizer, engram, people):
    document = people[0]
    task = task_of(people, tokenizer, engram, "kind")
    offsets = tokenizer(document["text"], return_offsets_mapping=True, add_special_tokens=False)
    kinds = {}
    for token, (start, end) in enumerate(offsets["offset_mapping"]):
        for span in document["spans"]:
            if min(end, span["end"]) - max(start, span["start"]) > (end - start) / 2:
                kinds[token] = span["kind"]  # position token - 1 + <bos>
    name = document["spans"][0]["entity_id"]
    (found,) = [d for d in task.documents if d.candidates[0].entity == name]
    got = {c.position: c.label for c in found.candidates}
    assert len(got) == min(8, len(kinds))
    assert all(kinds[position] == label for position, label in got.items())


def test_facts_are_what_training_told():
    from engram_model.corpora import iter_documents

    spec = "world:?seed=0&split=valid&tokens=30K&families=bio,conflict"
    told_of = contradicted = 0
    for document in iter_documents(spec):
        names = [s for s in document["spans"] if s["kind"] == "name"]
        facts = {s["fact_id"]: s for s in document["spans"] if s["mechanism"] == "fact"}
        for span in names:
            fact = facts.get(f"{span['entity_id']}:university")
            found = label_of("university", document, span)
            if document["family"] == "conflict":
                assert found is None
                contradicted += 1
            elif fact:
                assert found == document["text"][fact["start"] : fact["end"]]
                told_of += 1
    assert told_of > 20 and contradicted > 5


def test_capture_is_that_of_each_document_alone(engram, tokenizer, people):
    subject, task = Subject.of(engram), task_of(people, tokenizer, engram, "kind")
    residuals, rows = capture(subject, task, (0, 2, 3))
    start = 0
    for document in task.documents[:10]:
        at = [c.position for c in document.candidates]
        alone = subject.residuals([document.ids]).depths
        for index, depth in enumerate((0, 2, 3)):
            expected = alone[depth][0, at].numpy()
            got = residuals[index, start : start + len(at)]
            np.testing.assert_allclose(got, expected, atol=1e-4)
        gates = ep.gate_map(engram, tokenizer, tokenizer.decode(document.ids[1:]))
        for index, memory in enumerate(subject.memories):
            slots = torch.from_numpy(gates.slots[index, at])
            expected = memory.embed.weight[slots].flatten(1).detach().numpy()
            got = rows[memory.layer_id][start : start + len(at)]
            np.testing.assert_allclose(got, expected, atol=1e-5)
        start += len(at)
    assert all(memory.tap is None for memory in subject.memories)


def test_untrained_has_the_hash_and_other_weights(engram):
    state = torch.random.get_rng_state()
    one, same, other = (untrained(engram, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [model.model.layers[1].mlp.state_dict() for model in (one, same, other, engram)]
    name = next(name for name, tensor in weights[0].items() if tensor.ndim > 1)
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])
    assert not torch.equal(weights[0][name], weights[3][name])
    buffers = dict(one.named_buffers())
    assert all(torch.equal(buffers[name], b) for name, b in engram.named_buffers())


def test_numbers_are_those_of_the_sums(linear):
    n = linear.positions
    right, control, bits = linear.group_sums.sum(-1) / n
    majority = right[linear.sources.index(MAJORITY)]
    expected = (right, (right - majority) / (1 - majority), control, right - control, bits)
    np.testing.assert_allclose(linear.values, expected)
    assert linear.group_counts.sum() == n == linear.class_counts.sum()
    heavier = np.arange(linear.groups)
    found = metrics_of(linear.group_sums, linear.group_counts, 0, heavier)[0]
    by_hand = (linear.group_sums[0] * heavier).sum(-1) / (linear.group_counts * heavier).sum()
    np.testing.assert_allclose(found, by_hand)
    assert linear.baselines == (MAJORITY, IDENTITY, "rows of layer 0", "rows of layer 2")
    assert len(linear.by_depth) == 3


def test_differences_are_paired(linear):
    depths, difference, low, high = linear.difference(linear.untrained)
    expected = linear.curve()[1] - linear.curve("accuracy", linear.untrained)[1]
    np.testing.assert_allclose(difference, expected)
    assert depths.tolist() == [0, 3] and (low <= difference).all() and (difference <= high).all()
    for array in linear.difference(linear.model, "bits")[1:]:
        assert (array == 0).all()  # unpaired it would not be
    over = linear.difference(MAJORITY)[1]
    np.testing.assert_allclose(over, linear.curve()[1] - linear.curve("accuracy", MAJORITY)[1])


def test_same_seed_same_numbers(engram, tokenizer, people):
    runs = [
        ep.linear.probe(engram, tokenizer, people, depths=(1,), folds=2, seed=seed)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(runs[0].values, runs[1].values)
    assert not np.array_equal(runs[0].values, runs[2].values)


def test_any_causal_model(tokenizer, people):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = dict(n_embd=16, n_layer=2, n_head=2, n_positions=64)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).eval()
    done = []
    result = ep.linear.probe(
        model, tokenizer, people, label=lambda _d, span: span["kind"], at="next", folds=2,
        positions=60, progress=lambda *counts: done.append(counts),
    )  # fmt: skip
    assert result.baselines == (MAJORITY, IDENTITY) and result.memory_layers == ()
    assert result.curve()[0].tolist() == [0, 1, 2] and result.label == "function"
    assert result.classes == ("name", "role") and result.positions == 60
    assert done[-1] == (8, 8)


def test_figure(linear):
    figure = linear.figure()
    lines = {trace.name: trace for trace in figure.data if trace.showlegend is not False}
    for source in linear.by_depth:
        np.testing.assert_allclose(
            np.array(lines[source].y, dtype=float), linear.curve("accuracy", source)[1], rtol=1e-6
        )
        assert list(lines[source].x) == [0, 3]
    assert set(linear.baselines) | {"control task"} <= set(lines)
    control = np.array(lines["control task"].y, dtype=float)
    np.testing.assert_allclose(control, linear.curve("control")[1], rtol=1e-6)
    assert "Line chart of Accuracy" in figure.layout.meta["alt"]
    code = {trace.name: trace for trace in linear.figure("bits").data}
    assert code["uniform code"].y[0] == pytest.approx(linear.uniform_bits)
    assert "control task" not in code


def test_frame_has_every_number(linear):
    frame = linear.to_frame()
    assert len(frame) == len(METRICS) * len(linear.sources)
    row = frame[(frame.source == linear.twin) & (frame.depth == 3) & (frame.metric == "bits")]
    assert row.value.item() == linear.curve("bits", linear.twin)[1][1]


def without_spans(documents):
    return [document["text"] for document in documents]


def test_wrong_use(engram, tokenizer, people, linear, make_model):
    def ask(documents=people, **options):
        return ep.linear.probe(engram, tokenizer, documents, **options)

    with pytest.raises(CorpusError, match="no column 'spans'"):
        ask(without_spans(people))
    with pytest.raises(CorpusError, match="empty"):
        ask([])
    with pytest.raises(UsageError, match=r"no position has a label colour .* kinds name, role"):
        ask(label="colour")
    with pytest.raises(UsageError, match=r"4 groups .* fewer than 5 folds"):
        ask(people[:4])
    with pytest.raises(UsageError, match="1 of 1 classes have 5 groups"):
        ask([told(name, "smith", 7) for name in NAMES])
    with pytest.raises(UsageError, match=r"0 of 75 classes"):
        ask(label=lambda _d, span: span["entity_id"])
    with pytest.raises(UsageError, match=r"depths 0, 9: .* 0 .the embedding. to 3"):
        ask(depths=(0, 9))
    with pytest.raises(UsageError, match="at 'last'"):
        ask(at="last")
    with pytest.raises(UsageError, match="folds 1: use at least 2"):
        ask(folds=1)
    with pytest.raises(UsageError, match="no metric 'loss'"):
        linear.figure("loss")
    with pytest.raises(UsageError, match="nothing was read of 'gpt'"):
        linear.difference("gpt")


def test_through_a_bridge_as_from_the_model(engram, tokenizer, labelled):
    """A bridge sets its own tap in every pass."""
    options = dict(positions=40, folds=2, depths=(1,))
    plain = ep.linear.probe(engram, tokenizer, labelled, **options)
    bridged = ep.linear.probe(em.hooked(engram, tokenizer), tokenizer, labelled, **options)
    assert bridged.sources == plain.sources
    np.testing.assert_allclose(bridged.values, plain.values, atol=1e-3)
