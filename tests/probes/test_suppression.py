"""A suppressed model computes what one with other weights would, and is left as it was."""

import copy

import numpy as np
import pytest
import torch

import engram_model as em
import engram_probes as ep
from engram_model.errors import CorpusError, UsageError
from engram_model.tasks import Item, answer_items
from engram_probes.capture import Subject
from engram_probes.suppression import HOWS, OF_ROWS, suppressed
from engram_probes.suppression_parts import parts_of
from engram_probes.suppression_taps import counting


@pytest.fixture(params=[1, 4], ids=["one stream", "four streams"])
def model(request, make_model):
    return make_model(streams=request.param, engram_bias=True)


def logits(model, ids):
    with torch.inference_mode():
        return model(ids).logits


def altered(model, change):
    """A copy in which `change(memory)` was done to each memory's weights."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for memory in other.model.memories:
            change(memory)
    return other


def tapped(model, ids, tap):
    """Logits with a tap of the test's own."""
    for memory in model.model.memories:
        memory.tap = tap(memory)
    try:
        return logits(model, ids)
    finally:
        for memory in model.model.memories:
            memory.tap = None


def heads_of(memory):
    """First and last row + 1 of each column."""
    starts = memory.offsets.tolist()
    return list(zip(starts, [*starts[1:], memory.embed.weight.shape[0]], strict=True))


def no_output(memory):
    memory.wkv.weight.zero_()
    memory.wkv.bias.zero_()
    memory.conv.weight.zero_()


def test_zero_is_a_model_that_adds_nothing(model, ids):
    with suppressed(model):
        found = logits(model, ids)
    assert torch.equal(found, logits(altered(model, no_output), ids))
    assert not torch.equal(found, logits(model, ids))


def test_rows_zero_is_an_empty_table(model, ids):
    with suppressed(model, "rows_zero"):
        found = logits(model, ids)
    expected = logits(altered(model, lambda memory: memory.embed.weight.zero_()), ids)
    assert torch.equal(found, expected)
    with suppressed(model, "zero"):  # biases make the difference
        assert not torch.allclose(found, logits(model, ids), atol=1e-4)


def test_without_biases_empty_rows_add_nothing(engram, ids):
    with suppressed(engram, "rows_zero"):
        found = logits(engram, ids)
    with suppressed(engram, "zero"):
        assert torch.equal(found, logits(engram, ids))


def test_only_one_head_of_one_order_of_one_layer(model, ids):
    def change(memory):
        if memory.layer_id == 2:
            low, high = heads_of(memory)[1 * 2 + 1]  # order 3, head 1
            memory.embed.weight[low:high] = 0

    with suppressed(model, "rows_zero", layers=[2], orders=[3], heads=[1]):
        found = logits(model, ids)
    assert torch.equal(found, logits(altered(model, change), ids))
    assert not torch.equal(found, logits(model, ids))


def test_mean_is_a_table_of_one_row_a_head(model, ids):
    used = {0: np.arange(0, 60), 2: np.arange(0, 60)}  # of the first head; the others: all rows

    def change(memory):
        for column, (low, high) in enumerate(heads_of(memory)):
            rows = memory.embed.weight[low : 60 if column == 0 else high]
            memory.embed.weight[low:high] = rows.mean(0)

    with suppressed(model, "mean", used=used):
        found = logits(model, ids)
    torch.testing.assert_close(found, logits(altered(model, change), ids))


def rows_read(model, ids, how, seed=0):
    """Slots and rows of the first memory: [n, C], [n, C, width]."""
    kept = {}
    memory = model.model.memories[0]
    memory.tap = lambda name, tensor: kept.setdefault(name, tensor)
    try:
        with suppressed(model, how, seed=seed):
            logits(model, ids)
    finally:
        memory.tap = None
    return kept["slots"].flatten(0, 1), kept["rows"].flatten(0, 1)


def test_shuffled_rows_are_a_permutation_within_heads(model, ids):
    memory = model.model.memories[0]
    slots, rows = rows_read(model, ids, "shuffle")
    where = {tuple(row): i for i, row in enumerate(memory.embed.weight.tolist())}
    source = torch.tensor([[where[tuple(row)] for row in position] for position in rows.tolist()])
    for column, (low, high) in enumerate(heads_of(memory)):
        pairs = set(zip(slots[:, column].tolist(), source[:, column].tolist(), strict=True))
        assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
        assert all(low <= b < high for _, b in pairs)
    assert (source != slots).float().mean() > 0.9
    assert torch.equal(rows, rows_read(model, ids, "shuffle")[1])
    assert not torch.equal(rows, rows_read(model, ids, "shuffle", seed=1)[1])


def test_random_rows_have_each_heads_mean_and_variance(make_model):
    model = make_model(engram_vocab_size=4001)
    memory = model.model.memories[0]
    with torch.no_grad():
        for column, (low, high) in enumerate(heads_of(memory)):
            memory.embed.weight[low:high] += column
            memory.embed.weight[low:high, 0] *= 3
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (12, 40), generator=generator)
    slots, rows = rows_read(model, ids, "random")
    for column, (low, high) in enumerate(heads_of(memory)):
        head = memory.embed.weight[low:high]
        torch.testing.assert_close(rows[:, column].mean(0), head.mean(0), atol=0.3, rtol=0.1)
        torch.testing.assert_close(rows[:, column].std(0), head.std(0), atol=0.05, rtol=0.2)
    first = {}
    for slot, row in zip(slots.flatten().tolist(), rows.flatten(0, 1), strict=True):
        assert torch.equal(first.setdefault(slot, row), row)  # one slot, one row
    assert torch.equal(rows, rows_read(model, ids, "random")[1])


def test_gates_open(model, ids):
    with suppressed(model, "gate_one"):
        found = logits(model, ids)
    expected = tapped(
        model, ids, lambda _: lambda name, x: torch.ones_like(x) if name == "gate" else x
    )
    assert torch.equal(found, expected)


def test_gates_closed_leave_the_convolution(model, ids):
    def tap(memory):
        kept = {}

        def only_conv(name, tensor):
            kept[name] = tensor
            return kept["conv"].reshape(tensor.shape) if name == "out" else tensor

        return only_conv

    with suppressed(model, "gate_zero"):
        found = logits(model, ids)
    assert torch.equal(found, tapped(model, ids, tap))
    with suppressed(model, "zero"):
        assert not torch.equal(found, logits(model, ids))


def test_gates_closed_without_convolution_are_zero(make_model, ids):
    model = make_model(engram_kernel_size=0, engram_multi_branch=False)
    with suppressed(model, "gate_zero"):
        found = logits(model, ids)
    with suppressed(model, "zero"):
        assert torch.equal(found, logits(model, ids))


@pytest.mark.parametrize("how", HOWS)
def test_all_is_as_before_afterwards(engram, ids, how, hooks_of):
    state = {name: tensor.clone() for name, tensor in engram.state_dict().items()}
    before, hooks = logits(engram, ids), hooks_of(engram)
    with pytest.raises(ZeroDivisionError), suppressed(engram, how):
        assert not torch.equal(logits(engram, ids), before)
        raise ZeroDivisionError
    with pytest.raises(UsageError), suppressed(engram, how):  # an error within the pass
        engram.model.memories[0](torch.zeros(1, 1, 4, 32), torch.tensor([[10**6]]))
    assert torch.equal(logits(engram, ids), before)
    assert all(torch.equal(state[name], tensor) for name, tensor in engram.state_dict().items())
    assert all(memory.tap is None for memory in engram.model.memories)
    assert hooks_of(engram) == hooks


def test_other_probes_see_what_is_left(engram, tokenizer, texts):
    with suppressed(engram, "gate_one", layers=[2]):
        gates = ep.gate_map(engram, tokenizer, texts[1])
    assert (gates.gate[1] == 1).all() and (gates.gate[0] != 1).any()
    with suppressed(engram):
        assert (ep.gate_map(engram, tokenizer, texts[1]).added_norm == 0).all()
    assert all(memory.tap is None for memory in engram.model.memories)


def test_two_at_once_and_cached_generation(engram, ids):
    with suppressed(engram, layers=[0]), suppressed(engram, layers=[2]):
        found = logits(engram, ids)
        with torch.inference_mode():
            first = engram(ids[:, :-1], use_cache=True)
            last = engram(ids[:, -1:], past_key_values=first.past_key_values).logits
    with suppressed(engram):
        assert torch.equal(found, logits(engram, ids))
    torch.testing.assert_close(last[:, 0], found[:, -1], atol=1e-4, rtol=1e-4)


def test_a_bridge_is_suppressed_and_its_cache_holds_what_is_left(engram, tokenizer, ids):
    bridge = em.hooked(engram, tokenizer)
    with torch.inference_mode(), suppressed(bridge):
        found, cache = bridge.run_with_cache(ids)
    assert (cache["blocks.2.engram.hook_out"] == 0).all()
    assert not (cache["blocks.2.engram.hook_conv"] == 0).all()
    with suppressed(engram):
        torch.testing.assert_close(found, logits(engram, ids), atol=1e-5, rtol=1e-4)


def items_of(questions):
    return [Item(**{**q, "options": tuple(q["options"])}) for q in questions]


def test_before_and_after_are_what_the_models_answer(engram, tokenizer, questions, suppression):
    def change(memory):
        low = heads_of(memory)[2][0]
        memory.embed.weight[low:] = 0  # order 3

    order = np.argsort([q["suite"] != "what" for q in questions], kind="stable")
    items = [items_of(questions)[i] for i in order]
    for condition, one in enumerate([engram, altered(engram, change)]):
        answers = answer_items(one, tokenizer, items)
        np.testing.assert_array_equal(
            suppression.item_credit[condition], [answer.credit for answer in answers]
        )
        scores = [a.scores[a.item.options.index(a.item.answer)] for a in answers]
        np.testing.assert_allclose(suppression.item_log_prob[condition], scores, rtol=1e-9)
    assert suppression.tasks == ("what", "who") and suppression.item_ids[:2] == ("q0", "q2")
    assert suppression.replaced.tolist() == [0.5]
    assert "order 3 of the memory" in suppression.summary()


def test_suppressing_nothing_keeps_everything(engram, tokenizer, questions):
    items = items_of(questions)
    choices = [answer.choice for answer in answer_items(engram, tokenizer, items)]
    known = [{**q, "answer": choice} for q, choice in zip(questions, choices, strict=True)]
    known = [{**q, "entity": q["id"], "suite": "known"} for q in known]
    for part in ({"slots": {0: [], 2: []}}, {"layers": []}, {"slots": {}}):
        result = ep.suppress(engram, tokenizer, known, "rows_zero", **part)
        assert result.retained == result.retained_low == result.retained_high == 1
        np.testing.assert_array_equal(*result.item_log_prob)
        assert result.change == 0 and result.replaced.tolist() == [0]


def test_controls_are_read_rows_of_the_same_columns(engram, tokenizer, texts):
    subject = Subject.of(engram)
    with counting(subject, tokenizer) as counts:
        for text in texts[:4]:
            subject.logits(subject.encode(tokenizer, text))
    read = np.flatnonzero(counts[2])
    part = parts_of(subject, "rows_zero", slots={2: read[::9]})[1]
    for draw in range(3):
        control = part.control(counts[2], (0, draw))
        assert np.isin(control.slots, read).all() and not np.isin(control.slots, part.slots).any()
        columns = [np.bincount(part.column_of(p.slots), minlength=4) for p in (part, control)]
        np.testing.assert_array_equal(*columns)
    assert part.reads(counts[2]) == counts[2][read[::9]].sum()


def test_reads_are_counted_at_ordinary_positions(engram, tokenizer, texts):
    subject = Subject.of(engram)
    ids = subject.encode(tokenizer, texts[1] + tokenizer.eos_token + "At dusk.")
    with counting(subject, tokenizer) as counts:
        subject.logits(ids)
    usual = ~subject.special(tokenizer, ids)
    memory = engram.model.memories[1]
    slots = memory._slots(torch.tensor([ids]), None)[0].numpy()[usual]
    rows = memory.embed.weight.shape[0]
    np.testing.assert_array_equal(counts[2], np.bincount(slots.ravel(), minlength=rows))


def test_suites_of_the_world_by_name(engram, tokenizer):
    done = []
    names = ["arith", "phrases", "arith"]
    result = ep.suppress(
        engram, tokenizer, names, items=3, progress=lambda *state: done.append(state)
    )
    assert result.tasks == ("arith", "phrases") and result.items.tolist() == [3, 3]
    assert done == [(6, 12), (12, 12)]
    assert result.provenance.corpus["tasks"] == {"arith": 3, "phrases": 3}
    again = ep.suppress(engram, tokenizer, "arith", items=3)
    np.testing.assert_array_equal(again.item_log_prob[:, :3], result.item_log_prob[:, :3])


def test_a_dataset_of_questions(engram, tokenizer, questions, suppression):
    from datasets import Dataset

    dataset = Dataset.from_list(questions)
    found = ep.suppress(engram, tokenizer, dataset, "rows_zero", orders=[3])
    np.testing.assert_array_equal(found.item_log_prob, suppression.item_log_prob)
    few = ep.suppress(engram, tokenizer, dataset, items=4)
    assert few.items.tolist() == [4, 4]


def test_tasks_split_by_a_label(engram, tokenizer, questions):
    records = [{**q, "tier": i % 5 if i % 2 else None} for i, q in enumerate(questions)]
    found = ep.suppress(engram, tokenizer, records, by="tier", items=2)
    expected = ["what", *(f"who, tier {tier}" for tier in (1, 3, 0, 2, 4))]
    assert list(found.tasks) == expected and (found.items == 2).all()
    for message, by in (("there are tier", "hops"), ("there are none", "prompt")):
        with pytest.raises(UsageError, match=message):
            ep.suppress(engram, tokenizer, records if by == "hops" else questions, by=by)


def test_the_kernels_do_not_bypass_it(engram, tokenizer, ids):
    from engram_model.backend import set_backend

    with suppressed(engram):
        logits(engram, ids)
        assert {memory.used for memory in engram.model.memories} == {"torch"}
    set_backend(engram, "triton")
    try:
        with pytest.raises(UsageError, match="'triton' cannot be used: something listens"):
            ep.suppress(engram, tokenizer, [QUESTION])
    finally:
        set_backend(engram, "auto")
    assert all(memory.tap is None for memory in engram.model.memories)


QUESTION = {"prompt": "At", "answer": " dusk", "options": [" dusk", " boats"]}
WRONG = [
    ({"how": "silence"}, UsageError, "'silence' is no way to suppress; use one of zero, rows_"),
    ({"layers": [1]}, UsageError, "layer 1 is not among the model's memory layers: 0, 2"),
    ({"how": "mean", "orders": [4]}, UsageError, "order 4 is not among the model's orders: 2, 3"),
    ({"how": "mean", "heads": [2]}, UsageError, "head 2 is not among the model's heads: 0, 1"),
    ({"orders": [2]}, UsageError, "zero silences a layer's memory as a whole"),
    ({"how": "gate_one", "slots": {0: [1]}}, UsageError, "use one of " + ", ".join(OF_ROWS)),
    ({"how": "mean", "slots": [1]}, UsageError, "slots of which layer?"),
    ({"how": "mean", "slots": {0: [10**6]}}, UsageError, "slot 1000000: the table of layer 0 has"),
    ({"how": "mean", "slots": {0: [-1]}}, UsageError, "slot -1"),
    ({"how": "mean", "slots": {2: [1]}, "layers": [0]}, UsageError, "layer 2 is not among"),
    ({"controls": 2}, UsageError, "give slots, or controls=0"),
    ({"how": "mean", "slots": {0: range(200)}, "controls": 1}, UsageError, "too few for a control"),
    ({"tasks": "nope"}, UsageError, "no suite 'nope'; there are knowledge"),
    ({"tasks": []}, CorpusError, "there are no tasks"),
    ({"tasks": QUESTION}, UsageError, "tasks is a dict"),
    ({"tasks": 3}, UsageError, "tasks is a int"),
    ({"tasks": [QUESTION, {"text": "a"}]}, CorpusError, "record 1 is no question"),
    ({"tasks": [{**QUESTION, "answer": " dawn"}]}, CorpusError, "record 0 is no question"),
    ({"tasks": [{**QUESTION, "options": [" dusk"] * 2}]}, CorpusError, "record 0"),
]


@pytest.mark.parametrize(("given", "kind", "message"), WRONG)
def test_wrong_use(engram, tokenizer, given, kind, message):
    with pytest.raises(kind) as error:
        ep.suppress(engram, tokenizer, **{"tasks": [QUESTION], **given})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_model_without_memory(twin, tokenizer):
    with pytest.raises(UsageError, match="has no memory, so there is nothing to suppress"):
        ep.suppress(twin, tokenizer, [QUESTION])
    with pytest.raises(UsageError, match="has no memory"), suppressed(twin):
        pass


def test_a_tokenizer_of_another_model(make_model, tokenizer):
    model = make_model(vocab_size=300, engram_compressed_vocab_size=None)
    with pytest.raises(UsageError, match="outside the vocabulary"):
        ep.suppress(model, tokenizer, [QUESTION])
