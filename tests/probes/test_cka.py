"""Alignment of two models against a plain double loop."""

import numpy as np
import pytest
import torch

import engram_probes as ep
from engram_model.errors import CorpusError, UsageError
from engram_probes.alignment import SECOND, soft_alignment
from engram_probes.neighbours import mutual_neighbours


def representations(model, tokenizer, texts, position):
    """Residual after each block at one position of each text, one run a text: [layers, n, d]."""
    layers = [[] for _ in model.model.layers]
    hooks = [
        layer.register_forward_hook(
            lambda _m, _a, out, i=i: layers[i].append(model.model.collapse(out)[0, position])
        )
        for i, layer in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            model(torch.tensor([[tokenizer.bos_token_id, *ids]]))
    for hook in hooks:
        hook.remove()
    return [torch.stack(layer).numpy() for layer in layers]


def test_equals_a_double_loop(engram, twin, tokenizer, texts):
    """One entity a text, always the third token, so that the positions are known."""
    documents = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        documents.append(
            {"text": text, "spans": [{"start": 0, "end": ids["offset_mapping"][2][1]}]}
        )
    result = ep.cka(
        engram, twin, tokenizer, documents, positions="entity", k=2, batch_size=8, permutations=0
    )
    columns = representations(engram, tokenizer, texts, 3)
    rows = representations(twin, tokenizer, texts, 3)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            expected = ep.linear_cka(row, column, batch_size=8)
            assert result.matrix[i, j] == pytest.approx(expected, abs=1e-4)
    assert (result.samples, result.documents, result.batches, result.blocks) == (24, 24, 3, 3)


def test_a_model_is_like_itself(engram, tokenizer, texts):
    result = ep.cka(engram, engram, tokenizer, texts, k=2, batch_size=8, permutations=5)
    np.testing.assert_allclose(np.diag(result.matrix), 1)
    np.testing.assert_allclose(np.diag(result.neighbours), 1)
    np.testing.assert_allclose(result.matrix, result.matrix.T, atol=1e-6)


def test_a_model_that_is_compared_with_itself_runs_once(engram, tokenizer, texts):
    runs = []
    hook = engram.register_forward_hook(lambda *_: runs.append(1))
    ep.cka(engram, engram, tokenizer, texts, k=2, batch_size=24, permutations=0)
    hook.remove()
    assert len(runs) == 1


def run_of(engram, twin, tokenizer, **options):
    from engram_probes.alignment_run import AlignmentRun

    defaults = dict(
        tokenizer_b=None,
        positions="sampled",
        per_document=4,
        k=2,
        neighbours=3,
        permutations=5,
        second=True,
        sinks=True,
        seed=0,
    )
    return AlignmentRun(
        model_a=engram, model_b=twin, tokenizer=tokenizer, **{**defaults, **options}
    )


def test_states_of_parts_add_up(engram, twin, tokenizer, texts):
    """Blocks of 4, cut after 16 documents: null, intervals and second opinions are the whole's."""
    run = run_of(engram, twin, tokenizer)
    whole = run.result(run.read(texts, 4), 4)
    parts = run.read(texts[:16], 4) + run.read(texts[16:], 4)
    merged = run.result(parts, 4)
    assert whole.blocks == merged.blocks == 6 and np.isfinite(whole.low).all()
    for name, array in whole.arrays().items():
        np.testing.assert_allclose(merged.arrays()[name], array, atol=1e-6, err_msg=name)
    assert (merged.samples, merged.pool) == (whole.samples, whole.pool) == (96, 24)
    assert merged.sink_share == whole.sink_share > 0
    assert [part["documents"] for part in merged.provenance.corpus["parts"]] == [16, 8]


def test_the_pool_stays_small(monkeypatch, engram, twin, tokenizer, texts):
    monkeypatch.setattr("engram_probes.alignment_state.POOL", 10)
    state = run_of(engram, twin, tokenizer).read(texts, 4)
    assert len(state.pool) == 3 and state.pooled()[0].shape[1] == 10


def test_planted_sinks_are_put_back_and_said():
    """Unrelated features; the last rows, shared and large, stand in for one of eight samples."""
    from engram_probes.alignment_state import AlignmentState, Picked
    from engram_probes.hsic import HsicSums

    draw = np.random.default_rng(0).normal
    block, features = [], [[], []]
    for document in range(64):
        stand_in = np.array([0 if document % 8 == 0 else -1])
        block.append(Picked([1, document, 3], np.array([1]), stand_in))
        for model in features:
            model.append(draw(size=(1, 32)))
            model += [np.full((1, 32), 30.0)] * (document % 8 == 0)
    rows, columns = (np.concatenate(model)[None] for model in features)
    state = AlignmentState.of_block(rows, columns, block, 0, 0)
    assert (state.samples, state.replaced) == (64, 8)
    assert abs(HsicSums.total(state.blocks).cka()[0, 0]) < 0.05
    assert HsicSums.total(state.sinks).cka()[0, 0] > 0.95


def test_sinks_that_matter_are_said(alignment):
    from dataclasses import replace

    moved = alignment.matrix.copy()
    moved[1, 2] += 0.5
    told = replace(alignment, with_sinks=moved, sink_share=0.125)
    assert told.sink_change == pytest.approx(0.5)
    assert "as 12.5% of the samples, they would change CKA by up to +0.50" in told.summary()
    assert "put back" not in replace(alignment, with_sinks=alignment.matrix).summary()


def test_special_tokens_stand_in_as_often_as_they_are(engram, twin, tokenizer, texts):
    """Only `<bos>` is special: one token of each document."""
    run = run_of(engram, twin, tokenizer, per_document=100)
    state = run.read(texts * 8, 24)
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    expected = np.mean([n / (n + 1) for n in lengths]) * len(texts) * 8
    assert state.replaced == pytest.approx(expected, rel=0.25)
    assert run_of(engram, twin, tokenizer, sinks=False).read(texts, 24).replaced == 0


def test_positions_of_one_kind_or_mechanism_of_span(engram, twin, tokenizer, labelled):
    documents = [
        {
            **d,
            "spans": [
                {**s, "mechanism": "fact" if s["kind"] == "role" else None} for s in d["spans"]
            ],
        }
        for d in labelled
    ]
    found = {}
    for asked in ("entity", "kind:name", "kind:role", "mechanism:fact"):
        found[asked] = ep.cka(
            engram, twin, tokenizer, documents, k=2, batch_size=15, permutations=0, positions=asked
        )
    np.testing.assert_array_equal(found["entity"].matrix, found["kind:name"].matrix)
    np.testing.assert_array_equal(found["kind:role"].matrix, found["mechanism:fact"].matrix)
    assert found["kind:role"].samples == len(labelled) == 75  # one smith each, two names
    assert found["kind:name"].samples == 150
    for asked, message in (("kind:city", "has: name, role"), ("mechanism:copy", "has: fact")):
        with pytest.raises(CorpusError, match=message):
            ep.cka(engram, twin, tokenizer, documents, k=2, positions=asked)


def test_rows_are_the_baseline(engram, twin, tokenizer, texts, alignment):
    options = dict(k=2, per_document=4, batch_size=4, permutations=0)
    swapped = ep.cka(twin, engram, tokenizer, texts, **options)
    np.testing.assert_allclose(swapped.matrix, alignment.matrix.T, atol=1e-6)
    assert alignment.memory_layers == (0, 2) and swapped.memory_layers == ()


def test_no_batch_holds_two_positions_of_a_document(alignment):
    """24 documents, 4 positions each, 4 documents a batch."""
    assert (alignment.documents, alignment.samples) == (24, 96)
    assert (alignment.batches, alignment.blocks) == (24, 6)


def test_intervals_and_null(alignment):
    assert (alignment.low <= alignment.high).all()
    assert (alignment.low <= alignment.matrix).all() and (alignment.matrix <= alignment.high).all()
    assert (alignment.null_mean < alignment.null_high).all()
    assert np.abs(alignment.null_mean).max() < 0.15


def test_few_blocks_have_no_interval(engram, twin, tokenizer, texts):
    result = ep.cka(engram, twin, tokenizer, texts, k=2, batch_size=8, permutations=0)
    assert result.blocks == 3
    assert np.isnan(result.low).all() and np.isnan(result.null_mean).all()
    assert "permuted" not in result.summary()
    assert "no interval: 3 blocks of documents are too few" in result.summary()


def test_the_seed_decides_everything(engram, twin, tokenizer, texts, alignment):
    options = dict(k=2, per_document=4, batch_size=4, permutations=20)
    again = ep.cka(engram, twin, tokenizer, texts, **options)
    other = ep.cka(engram, twin, tokenizer, texts, seed=1, **options)
    for name, array in alignment.arrays().items():
        np.testing.assert_array_equal(array, again.arrays()[name], err_msg=name)
    assert not np.array_equal(alignment.matrix, other.matrix)


def test_soft_alignment_is_the_centre_of_the_top_rows():
    matrix = np.random.default_rng(0).uniform(-0.2, 1, size=(9, 4))
    expected = []
    for column in matrix.T:
        top = sorted(range(9), key=lambda i: -column[i])[:5]
        weights = [max(column[i], 0) for i in top]
        expected.append(sum(w * i for w, i in zip(weights, top, strict=True)) / sum(weights))
    np.testing.assert_allclose(soft_alignment(matrix, 5), expected)
    np.testing.assert_allclose(soft_alignment(np.ones((9, 1)), 9), 4)
    assert np.isnan(soft_alignment(-(matrix[:, :1] ** 2), 5)).all()


def test_mutual_neighbours_of_known_features():
    draw = np.random.default_rng(0).normal
    x = draw(size=(1, 200, 16))
    assert mutual_neighbours(x, 5 * x, 10)[0, 0] == pytest.approx(1)
    chance = mutual_neighbours(x, draw(size=(1, 200, 16)), 10)[0, 0]
    assert chance == pytest.approx(10 / 199, abs=0.02)


def test_floor_and_ceiling(alignment):
    assert (alignment.soft_floor, alignment.soft_ceiling) == (0.5, 1.5)
    known = alignment.soft_index[np.isfinite(alignment.soft_index)]
    assert known.size and ((known >= 0) & (known <= 2)).all()


def test_errors(engram, twin, tokenizer, texts):
    from transformers import GPT2Config, GPT2LMHeadModel

    other = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2))
    for error, message, models, given, options in [
        (UsageError, "k 5", (engram, twin), texts, {"k": 5}),
        (UsageError, "other vocabularies", (engram, other), texts, {"k": 2}),
        (UsageError, "'sampled' or 'entity'", (engram, twin), texts, {"positions": "last"}),
        (UsageError, "'kind:name'", (engram, twin), texts, {"positions": "tier:0"}),
        (UsageError, "per_document 0", (engram, twin), texts, {"per_document": 0}),
        (UsageError, "neighbours 0", (engram, twin), texts, {"neighbours": 0}),
        (UsageError, "batch_size 3", (engram, twin), texts, {"batch_size": 3, "k": 2}),
        (CorpusError, "too few", (engram, twin), texts[:3], {"k": 2}),
        (CorpusError, "spans", (engram, twin), texts, {"k": 2, "positions": "entity"}),
    ]:
        with pytest.raises(error) as caught:
            ep.cka(*models, tokenizer, given, **{"k": 2, **options})
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_pair_of_layers_by_each_measure(alignment):
    frame = alignment.pair_frame(0, 2).set_index("measure")
    assert tuple(frame.index) == alignment.measures == ("cka", *SECOND, "sinks")
    assert frame.value["cka"] == alignment.matrix[0, 2] and frame.low["cka"] == alignment.low[0, 2]
    assert frame.value["rsa"] == alignment.rsa[0, 2]
    assert frame.null_high["procrustes"] == alignment.second_null_high[1, 0, 2]
    assert np.isnan(frame.null_mean["sinks"]) and np.isnan(frame.low["rsa"])
    with pytest.raises(UsageError, match="layers 0 and 9"):
        alignment.pair_frame(0, 9)


def test_what_is_said_of_a_pair(alignment):
    column = 1
    best = int(np.argmax(alignment.matrix[:, column]))
    said = alignment.pair_summary(best, column)
    assert f"CKA {alignment.matrix[best, column]:.2f}" in said and "the most alike" in said
    least = int(np.argmin(alignment.matrix[:, column]))
    assert f"number {len(alignment.matrix)}" in alignment.pair_summary(least, column)
