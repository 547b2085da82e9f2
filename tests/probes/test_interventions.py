"""Interventions: edits as text, what they do to a model, and that nothing of them stays."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import engram_probes as ep
from engram_model.bridge import as_bridge
from engram_model.errors import UsageError
from engram_model.memories import memories_of
from engram_model.row_patch import RowPatch
from engram_probes.interventions import MemoryEdit
from engram_probes.provenance import weights_sha256

NUMBER = st.integers(0, 99)
POS = st.tuples(NUMBER, NUMBER).map(lambda pair: tuple(sorted(pair)))
TEXTS = st.text(min_size=1).filter(str.strip)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(TEXTS, POS, st.none() | NUMBER, st.none() | NUMBER)
def test_any_text_of_a_swap_comes_back(text, pos, layer, order):
    edit = MemoryEdit(how="swap", value=text, pos=pos, layer=layer, order=order)
    assert MemoryEdit.parse(str(edit)) == edit


@given(st.sampled_from(["gate", "scale"]), FLOATS, st.none() | NUMBER, st.none() | POS)
def test_any_number_comes_back(how, value, stream, pos):
    edit = MemoryEdit(how=how, value=value, stream=stream, pos=pos)
    assert MemoryEdit.parse(str(edit)) == edit


def test_parsed_by_hand():
    edit = MemoryEdit.parse("swap=a@b, c=d@order=3,pos=2-4")
    assert (edit.value, edit.order, edit.pos) == ("a@b, c=d", 3, (2, 4))
    assert str(edit) == "swap=a%40b, c=d@order=3,pos=2-4"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("melt", "no edit"),
        ("gate", "needs a number"),
        ("gate=x", "no number"),
        ("gate=nan", "needs a number"),
        ("zero=1", "takes no value"),
        ("swap=New York", "needs positions"),
        ("zero@order=2", "as a whole"),
        ("rows_zero@stream=0", "no stream"),
        ("zero@depth=1", "names nothing to edit"),
        ("zero@layer=1,layer=2", "once"),
        ("zero@pos=4-2", "are none"),
        ("zero@pos=900", "positions"),
        ("zero@layer=77", "layer 77"),
        ("zero@stream=77", "stream 77"),
        ("rows_zero@order=77", "order 77"),
        ("rows_zero@head=77", "head 77"),
        ("rows_zero@slot=99999999", "slot 99999999"),
    ],
)
def test_wrong_edits_get_one_line(engram, tokenizer, texts, edit, message):
    with pytest.raises(UsageError, match=message) as error:
        ep.intervene(engram, tokenizer, texts[1], (edit,))
    assert "\n" not in str(error.value)


def test_a_model_without_memory_is_refused(twin, tokenizer, texts):
    with pytest.raises(UsageError, match="no memory"):
        ep.intervene(twin, tokenizer, texts[1])


def surprisals(logits, ids):
    log_probs = logits[0].float().log_softmax(-1)
    return -log_probs[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


@pytest.mark.parametrize(
    ("edit", "hook", "change"),
    [
        ("zero", "out", lambda t: t * 0),
        ("scale=2", "out", lambda t: t * 2),
        ("gate=0.9", "gate", lambda t: torch.full_like(t, 0.9)),
        ("rows_zero", "rows", lambda t: t * 0),
        ("zero@stream=1,pos=3-4", "out", "part"),
    ],
)
def test_as_hooks_of_the_bridge_do(engram, tokenizer, texts, edit, hook, change):
    def part(tensor):
        tensor = tensor.clone()
        tensor[:, 3:5, 1] = 0
        return tensor

    made = part if change == "part" else change
    found = ep.intervene(engram, tokenizer, texts[1], (edit,))
    ids, bridge = found.token_ids.tolist(), as_bridge(engram, tokenizer)
    hooks = [
        (f"blocks.{layer}.engram.hook_{hook}", lambda t, hook: made(t))
        for layer in memories_of(engram)
    ]
    with torch.inference_mode():
        logits = bridge.run_with_hooks(torch.tensor([ids]), fwd_hooks=hooks)
        intact = engram(torch.tensor([ids])).logits
    np.testing.assert_allclose(found.surprisal[1, 1:], surprisals(logits, ids), atol=1e-5)
    np.testing.assert_allclose(found.surprisal[0, 1:], surprisals(intact, ids), atol=1e-5)
    assert np.abs(found.helped[1:]).max() > 1e-5


def test_swapped_rows_are_those_of_the_text(engram, tokenizer, texts):
    """What is read at the position is what a text that ends so reads; elsewhere nothing changes."""
    from engram_probes.capture import Subject, heard
    from engram_probes.interventions_run import Pass, editors_of

    subject, other = Subject.of(engram), " by the old mill"
    memory = subject.memories[0]

    def read(text, edits=()):
        ids, kept = subject.encode(tokenizer, text), {}
        made = Pass(subject, editors_of(subject, tokenizer, edits, len(ids)))
        with heard(memory, kept.__setitem__), made.made():
            made.logits(ids)
        return kept["slots"][0], kept["rows"][0]

    edit = MemoryEdit.parse(f"swap={other}@pos=4,order=3")
    before, after, there = read(texts[1]), read(texts[1], (edit,)), read(other)
    third = slice(memory.n_heads, 2 * memory.n_heads)
    for intact, swapped, real in zip(before, after, there, strict=True):
        expected = intact.clone()
        expected[4, third] = real[-1, third]
        assert torch.equal(swapped, expected)
    assert not torch.equal(before[0], after[0])


@pytest.mark.parametrize("edits", [("zero",), ("scale=-40@pos=6-9",), ("gate=1", "scale=30")])
def test_cached_generation_is_that_of_longer_texts(engram, tokenizer, texts, edits):
    from engram_probes.capture import Subject
    from engram_probes.interventions import edits_of
    from engram_probes.interventions_run import Pass, editors_of

    text = " ".join(texts[1].split()[:4])
    found = ep.intervene(engram, tokenizer, text, edits, generate=5)
    subject, ids = Subject.of(engram), found.token_ids.tolist()
    made = Pass(subject, editors_of(subject, tokenizer, edits_of(edits), 100))
    for token, log_prob in zip(found.generated[1], found.generated_log_prob[1], strict=True):
        if token < 0:
            break
        with made.made():
            log_probs = made.logits(ids)[0][-1].float().log_softmax(-1)
        assert int(log_probs.argmax()) == token
        assert float(log_probs[token]) == pytest.approx(float(log_prob), abs=1e-4)
        ids.append(int(token))


def test_no_change_and_nothing_left(engram, tokenizer, texts, hooks_of):
    before = weights_sha256(engram), hooks_of(engram)
    found = ep.intervene(engram, tokenizer, texts[1], ("scale=1",), generate=2)
    assert not np.nan_to_num(found.helped).any() and found.parts_at is None
    assert "no prediction changes" in found.summary() and "stays the same" in found.summary()
    table = memories_of(engram)[found_layer(engram)].embed.weight
    slots = np.arange(len(table))
    rows = table.detach().numpy().copy()
    layer = found_layer(engram)
    patch = RowPatch({layer: slots}, {layer: rows}, {layer: rows + 1})
    patched = ep.intervene(engram, tokenizer, texts[1], (), patch=patch)
    assert patched.patched == len(slots) and np.abs(patched.helped[1:]).max() > 1e-4
    assert (weights_sha256(engram), hooks_of(engram)) == before


def found_layer(model):
    return next(iter(memories_of(model)))


def test_controls_tables_and_round_trip(engram, tokenizer, texts, tmp_path):
    found = ep.intervene(engram, tokenizer, texts[1], controls=4, generate=2, topk=3)
    opened = ep.load_result(found.save(tmp_path))
    assert opened.edits == ("zero",) and opened.summary() == found.summary()
    for name, array in found.arrays().items():
        np.testing.assert_array_equal(getattr(opened, name), array)
    mean, low, high = found.control_surprisal[:, 1:]
    assert (low <= mean).all() and (mean <= high).all() and (high > low).any()
    assert found.next_ranks[0, 0, :, 0].max() == 1 and found.next_ranks[1, 1, :, 2].max() == 3
    same = found.next_ids[0] == found.next_ids[1]
    np.testing.assert_array_equal(found.next_probs[0][:, same], found.next_probs[1][:, same])
    assert len(found.to_frame()) == len(found.tokens)
    assert list(found.figure().data[0].y[1:]) == pytest.approx(list(found.helped[1:]))
    assert len(found.figure("next", 2).data) == 2
    with pytest.raises(UsageError, match="outside"):
        found.figure("next", 99)


def test_the_token_that_loses_most_is_named(engram, tokenizer, texts):
    found = ep.intervene(engram, tokenizer, texts[1])
    surprisal = np.zeros_like(found.surprisal)
    surprisal[1, 3] = np.log(4)
    planted = replace(found, surprisal=surprisal)
    assert planted.most_helped == 3
    assert "(position 3) loses most: its probability falls from 1 to 0.25" in planted.summary()
