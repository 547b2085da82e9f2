"""Editing rows: what is written is what is read, nothing else changes, and all can be undone."""

import numpy as np
import pytest
import torch

import engram_model as em
import engram_probes as ep
from engram_model.errors import CheckpointError, UsageError
from engram_model.row_patch import RowPatch, memories_of
from engram_probes import editing

PROMPT, ANSWER = "The miller of Varnholm counts", " boats"


def state(model) -> dict:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, before) -> bool:
    return all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def edited(engram, tokenizer, texts):
    before = state(engram)
    result, patch = editing.edit(
        engram,
        tokenizer,
        PROMPT,
        ANSWER,
        texts=texts,
        paraphrases=(PROMPT.upper(), "A song of"),
        goal=0.15,
        steps=400,
    )
    assert same(engram, before)  # the model is left as it was
    return result, patch


def test_answer_becomes_likely(edited):
    result, _ = edited
    assert np.exp(result.log_prob_after[0]) > 0.149 > 0.05 > np.exp(result.log_prob_before[0])
    assert 0 < result.steps < 400 and result.layers == (0, 2)


def test_only_the_looked_up_rows_change(engram, tokenizer, edited):
    _, patch = edited
    gates = ep.gate_map(engram, tokenizer, PROMPT)
    for index, layer in enumerate(gates.layers):
        assert patch.slots[layer].tolist() == np.unique(gates.slots[index, -1]).tolist()
    before = state(engram)
    with patch.applied(engram):
        changed = [n for n, t in engram.state_dict().items() if not torch.equal(before[n], t)]
        assert changed == [f"model.layers.{i}.engram.embed.weight" for i in (0, 2)]
        ids = torch.tensor(
            [[0, *tokenizer(PROMPT + ANSWER, add_special_tokens=False)["input_ids"]]]
        )
        first = 1 + len(tokenizer(PROMPT, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            log = engram(ids).logits[0].log_softmax(-1)
        score = sum(float(log[i - 1, ids[0, i]]) for i in range(first, ids.shape[1]))
    assert score == pytest.approx(float(edited[0].log_prob_after[0]), abs=1e-4)
    assert same(engram, before)


def test_spill_over_is_counted_and_measured_exactly(engram, tokenizer, texts, edited):
    result, patch = edited
    counts, moved = np.zeros(patch.rows + 1, int), np.zeros(patch.rows + 1)
    for text in texts:
        gates = ep.gate_map(engram, tokenizer, text)
        shared = sum(
            np.isin(gates.slots[i], patch.slots[layer]).sum(-1)
            for i, layer in enumerate(gates.layers)
        )
        ids = torch.tensor([gates.token_ids.tolist()])
        with torch.no_grad():
            old = engram(ids).logits[0].log_softmax(-1)
            with patch.applied(engram):
                new = engram(ids).logits[0].log_softmax(-1)
        kl = (old.exp() * (old - new)).sum(-1).numpy()
        for k, value in zip(shared[1:], kl[1:], strict=True):  # without <bos>
            counts[k] += 1
            moved[k] += value
    np.testing.assert_array_equal(result.touched, counts[1:])
    assert result.others == counts[0] and counts[1:].sum() > 0
    seen = counts[1:] > 0
    np.testing.assert_allclose(
        result.touched_kl[seen], (moved[1:] / np.maximum(counts[1:], 1))[seen], atol=1e-5
    )
    assert result.spill_frame()["positions"].sum() == counts.sum()


def test_case_of_the_prompt_reads_the_same_rows(make_model, tokenizer):
    """Compression folds case: with a memory at the last layer alone, both spellings are edited."""
    model = make_model(1, layers=1, memory_layers=(0,))
    result, patch = editing.edit(
        model, tokenizer, "so the boats", " come", paraphrases=("so THE boats",)
    )
    assert result.log_prob_after[1] > result.log_prob_before[1] + 0.5
    assert patch.rows == 4


def test_closed_form_reaches_a_goal_nearby(engram, tokenizer):
    """To first order: a small change of odds is hit closely, and in one step."""
    before, _ = editing.edit(engram, tokenizer, PROMPT, ANSWER, method="closed", goal=1e-9)
    assert before.steps == 0 and before.change == 0
    start = float(np.exp(before.log_prob_before[0]))
    goal = 1.05 * start
    result, _ = editing.edit(engram, tokenizer, PROMPT, ANSWER, method="closed", goal=goal)
    if len(tokenizer(ANSWER, add_special_tokens=False)["input_ids"]) == 1:
        assert np.exp(result.log_prob_after[0]) == pytest.approx(goal, rel=0.01)
    assert result.steps == 1 and result.log_prob_after[0] > result.log_prob_before[0]


def test_through_a_bridge_as_from_the_model(engram, tokenizer, texts):
    """A bridge sets its own tap in every pass; its hooks stay live."""
    words = (tokenizer, PROMPT, ANSWER)
    plain, _ = editing.edit(engram, *words, steps=3, texts=texts[:3])
    bridged, _ = editing.edit(em.hooked(engram, tokenizer), *words, steps=3, texts=texts[:3])
    np.testing.assert_allclose(bridged.log_prob_after, plain.log_prob_after, atol=1e-4)
    np.testing.assert_array_equal(bridged.touched, plain.touched)


def test_place_of_an_edit(engram, tokenizer, tmp_path):
    result, patch = editing.edit(engram, tokenizer, PROMPT, ANSWER, at="Varnholm", steps=2)
    whole = ep.gate_map(engram, tokenizer, PROMPT)
    end = len(tokenizer(PROMPT[: PROMPT.index(" counts")], add_special_tokens=False)["input_ids"])
    assert patch.slots[0].tolist() == np.unique(whole.slots[0, end]).tolist()
    assert "".join(result.at).endswith("lm") and result.others_kl is None
    reopened = ep.load_result(result.save(tmp_path))  # without texts nothing is known of others
    assert reopened.others_kl is None and np.isnan(reopened.spill_frame()["kl"]).all()
    with pytest.raises(UsageError, match="'Paris' is not in the prompt"):
        editing.edit(engram, tokenizer, PROMPT, ANSWER, at="Paris")


def test_patch_travels_and_is_undone(engram, make_model, edited, tmp_path):
    _, patch = edited
    again = RowPatch.load(patch.save(tmp_path / "patch.safetensors"))
    before = state(engram)
    again.apply(engram)
    with pytest.raises(UsageError, match="applied already"):
        patch.apply(engram)
    again.undo(engram)
    assert same(engram, before)
    with pytest.raises(UsageError, match="made for another model"):
        again.apply(make_model(4, seed=5))
    with pytest.raises(UsageError, match="no memory in layer 2"):
        again.apply(make_model(4, memory_layers=(0,)))
    assert sorted(memories_of(engram)) == [0, 2]


def test_broken_patches(edited, tmp_path):
    _, patch = edited
    file = patch.save(tmp_path / "p.safetensors")
    content = file.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-40])
    (tmp_path / "text.safetensors").write_text("hello")
    bad = RowPatch(patch.slots, patch.before, {k: v * np.nan for k, v in patch.after.items()})
    bad.save(tmp_path / "nan.safetensors")
    for name in ("cut", "text", "nan", "none"):
        with pytest.raises(CheckpointError) as caught:
            RowPatch.load(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(caught.value)


def test_saves_and_draws(edited, tmp_path):
    result, _ = edited
    again = ep.load_result(result.save(tmp_path))
    assert again.summary() == result.summary() and "share a row" in again.summary()
    assert len(result.to_frame()) == 3 and result.figure().layout.meta["alt"]


def test_wrong_use(engram, twin, tokenizer):
    with pytest.raises(UsageError, match="has no memory"):
        editing.edit(twin, tokenizer, PROMPT, ANSWER)
    with pytest.raises(UsageError, match="use one of gradient, closed"):
        editing.edit(engram, tokenizer, PROMPT, ANSWER, method="magic")
    with pytest.raises(UsageError, match="the answer is empty"):
        editing.edit(engram, tokenizer, PROMPT, " ")
