"""Alignment over training: a planted course, files, parts that add up, wrong use."""

import json
from dataclasses import replace

import numpy as np
import pytest

import engram_probes as ep
from engram_model.errors import CorpusError, UsageError
from engram_probes.alignment_training_run import TrainingRun


@pytest.fixture(scope="module")
def steps(make_model):
    return [make_model(streams=4, seed=seed) for seed in (5, 6, 0)]


@pytest.fixture(scope="module")
def found(steps, twin, tokenizer, texts, make_model):
    return ep.alignment_over_training(
        steps[::-1],
        twin,
        tokenizer,
        texts,
        tokens=[300, 200, 100],
        null=make_model(streams=1, memory_layers=(), seed=9),
        k=2,
        per_document=4,
        batch_size=4,
    )


def test_it_is_what_cka_says_of_each_checkpoint(found, steps, twin, tokenizer, texts):
    """At the same positions, for the same seed; the order given does not matter."""
    options = dict(k=2, per_document=4, batch_size=4, permutations=0)
    assert found.tokens.tolist() == [100, 200, 300]
    for place, model in enumerate(steps):
        alone = ep.cka(model, twin, tokenizer, texts, **options)
        for name in ("matrix", "soft_index", "soft_low", "soft_high"):
            np.testing.assert_allclose(
                getattr(found, name)[place], getattr(alone, name), atol=1e-9, err_msg=name
            )
        itself = ep.cka(model, steps[-1], tokenizer, texts, **options)
        np.testing.assert_allclose(found.final[place], np.diag(itself.matrix), atol=1e-9)
    np.testing.assert_allclose(found.final[-1], 1)
    assert found.null_index.shape == (3,) and found.memory_layers == (0, 2)


def test_a_planted_course_is_told_and_drawn(found):
    soft = np.array([[0, 1.0, 2.0], [0, 1.5, 2.0], [0, 1.9, 2.0]])
    final = np.array([[0.9, 0.2, 0.8], [0.95, 0.6, 0.9], [1, 1, 1.0]])
    planted = replace(
        found, soft_index=soft, soft_low=soft - 0.1, soft_high=soft + 0.2, final=final
    )
    said = planted.summary()
    assert "Layer 1 of" in said and "1.0 (0.9 to 1.2)" in said and "1.9 (1.8 to 2.1)" in said
    assert "layer 1 changes most, with CKA 0.20" in said
    figure = planted.figure()
    assert figure.layout.xaxis.type == "log" and len(figure.data) == 4  # the null is the fourth
    np.testing.assert_allclose(np.array(figure.data[1].y, float), soft[:, 1], rtol=1e-6)
    assert figure.data[0].name == "layer 0 (memory)"
    figure = planted.figure("final")
    assert len(figure.data) == 3 and "Lines of 3 layers" in figure.layout.meta["alt"]
    frame = planted.to_frame()
    assert len(frame) == 9 and frame[frame.tokens == 200].soft_index.tolist() == soft[1].tolist()
    with pytest.raises(UsageError, match="'soft' and 'final'"):
        planted.figure("cka")


def test_round_trip(found, tmp_path):
    opened = ep.load_result(found.save(tmp_path))
    for name, array in found.arrays().items():
        np.testing.assert_array_equal(opened.arrays()[name], array, err_msg=name)
    assert opened.summary() == found.summary()
    bare = replace(found, null_index=None, null_low=None, null_high=None, null_model=None)
    assert ep.load_result(bare.save(tmp_path)).null_index is None


def test_parts_add_up(steps, twin, tokenizer, texts):
    run = TrainingRun(
        checkpoints=steps,
        model_b=twin,
        tokenizer=tokenizer,
        trained=[1, 2, 3],
        null=None,
        positions="sampled",
        per_document=2,
        k=2,
        seed=0,
    )
    whole = run.result(run.read(texts, 4), 4)
    merged = run.result(run.read(texts[:8], 4) + run.read(texts[8:], 4), 4)
    assert merged.documents == 24 and np.isfinite(whole.final_low).all()
    for name, array in whole.arrays().items():
        np.testing.assert_allclose(merged.arrays()[name], array, atol=1e-9, err_msg=name)


def test_tokens_come_from_the_training_log(steps, twin, tokenizer, texts, tmp_path, monkeypatch):
    for place, model in enumerate(steps):
        folder = tmp_path / f"step-{place}"
        folder.mkdir()
        log = {"step": 10 * (place + 1), "tokens_per_step": 64}
        (folder / "training_log.json").write_text(json.dumps(log))
        monkeypatch.setattr(model.config, "name_or_path", str(folder))
    options = dict(k=2, max_documents=8, batch_size=8)
    result = ep.alignment_over_training(steps, twin, tokenizer, texts, **options)
    assert result.tokens.tolist() == [640, 1280, 1920]
    assert result.checkpoints == ("step-0", "step-1", "step-2") and result.model == "step-2"
    assert "too few documents for intervals" in result.summary()


def test_errors(steps, twin, tokenizer, texts, make_model):
    shallow = make_model(layers=2, memory_layers=(0,))
    known = {"tokens": [1, 2, 3]}
    for error, message, models, given, options in [
        (UsageError, "at least 2", steps[:1], texts, {"tokens": [1]}),
        (UsageError, "tokens has 2 numbers", steps, texts, {"tokens": [1, 2]}),
        (UsageError, "as many tokens", steps, texts, {"tokens": [1, 2, 2]}),
        (UsageError, "2 and 3 layers", [*steps, shallow], texts, {"tokens": [1, 2, 3, 4]}),
        (UsageError, "give tokens=", steps, texts, {}),
        (UsageError, "k 9", steps, texts, {**known, "k": 9}),
        (UsageError, "batch_size 2", steps, texts, {**known, "batch_size": 2}),
        (CorpusError, "too few", steps, texts[:2], known),
    ]:
        with pytest.raises(error) as caught:
            ep.alignment_over_training(models, twin, tokenizer, given, **{"k": 2, **options})
        assert message in str(caught.value) and "\n" not in str(caught.value)
