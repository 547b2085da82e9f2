"""Strongest contexts of rows: a planted row; all against gate maps and the model's weights."""

import numpy as np
import pytest
import torch

import engram_model as em
import engram_probes as ep
from engram_model.errors import CorpusError, UsageError
from engram_probes.contexts_run import BLOCKS, Rows, read
from engram_probes.memory_tables import tables_of
from engram_probes.text import Documents


@pytest.fixture(scope="module")
def found(engram, tokenizer, texts):
    return ep.row_contexts(engram, tokenizer, texts, k=4)


def all_reads(engram, tokenizer, texts, layer, column):
    """(row, document, position, contribution, gate) of every ordinary token, from gate maps."""
    index, memory = (0, 2).index(layer), engram.model.layers[layer].engram
    reads = []
    for number, text in enumerate(texts):
        one = ep.gate_map(engram, tokenizer, text)
        for p in np.flatnonzero(~one.special):
            row = int(one.slots[index, p, column])
            share = memory.value_weight[:, column] @ memory.embed.weight[row]
            gate = one.gate[index, p]
            added = np.linalg.norm(gate[:, None] * share.detach().numpy()[None])
            size = np.linalg.norm(one.residual_norm[index, p])
            reads.append((row, number, int(p), added / size, gate.mean()))
    return reads


def test_contexts_are_the_strongest_of_all_reads(engram, tokenizer, texts, found):
    assert len(found.slots) == 2 * 2 * 2  # the most read row of each layer, order, head
    for row in (0, 3, 6):
        column = (found.orders[row] - 2) * 2 + found.heads[row]
        reads = all_reads(engram, tokenizer, texts, found.layers[row], column)
        rows, times = np.unique([read[0] for read in reads], return_counts=True)
        assert times[rows == found.slots[row]].item() == times.max() == found.reads[row]
        mine = sorted((r for r in reads if r[0] == found.slots[row]), key=lambda r: -r[3])
        np.testing.assert_allclose(found.strength[row], [r[3] for r in mine[:4]], rtol=1e-4)
        assert found.mean[row] == pytest.approx(np.mean([r[3] for r in mine]), rel=1e-4)
        assert found.mean_low[row] <= found.mean[row] <= found.mean_high[row]
        places = {(r[1], r[2]) for r in mine}
        assert set(zip(found.document[row], found.position[row], strict=True)) <= places


def test_a_planted_row_is_found_in_its_contexts(make_model, tokenizer, texts):
    """In a table without collisions “of Varnholm counts” has rows of its own, read in 3 of 6."""
    model = make_model(engram_vocab_size=50_021, engram_head_dim=2)
    plan = ["Nobody counts.", texts[1], "In Varnholm counts", texts[2], "At Varnholm.", texts[3]]
    found = ep.row_contexts(model, tokenizer, plan, ngram=" of Varnholm counts", k=9, around=3)
    assert found.reads.tolist() == 2 * [4, 4, 3, 3]  # “Varnholm counts” is in one more
    assert (found.distinct == 1).all()
    for row in np.flatnonzero(found.reads == 3):
        assert sorted(found.document[row, :3]) == [1, 3, 5]
        assert (found.document[row, 3:] == -1).all() and np.isnan(found.strength[row, 3:]).all()
        assert set(found.ngram_texts[row]) == {"·of·Varnholm·counts"}
        shown = found.before[row][0] + found.token[row][0] + found.after[row][0]
        assert shown.replace("·", " ") in plan[found.document[row, 0]]
        assert "·Varnholm·counts·" in shown
    row = int(np.flatnonzero(found.reads == 3)[0])
    layer, slot = found.layers[row], int(found.slots[row])
    with torch.no_grad():
        model.model.layers[layer].engram.embed.weight[slot] *= 10
    again = ep.row_contexts(model, tokenizer, plan, {layer: [slot]})
    assert again.value_norm[0] == pytest.approx(10 * found.value_norm[row], rel=1e-5)


def test_random_rows_are_of_the_same_head(engram, tokenizer, texts):
    tables = tables_of(engram)
    slot = int(tables.hasher.offsets(2)[3]) + 7
    rows = Rows.of(tables, [(2, slot)], 20, 0)
    first, size = tables.hasher.offsets(2)[3], tables.hasher.primes(2).reshape(-1)[3]
    assert ((rows.control >= first) & (rows.control < first + size)).all()
    assert slot not in rows.control and len(np.unique(rows.control)) == 20
    found = ep.row_contexts(engram, tokenizer, texts, {2: [slot]}, controls=int(size) - 1)
    reads = all_reads(engram, tokenizer, texts, 2, 3)
    others = [r[3] for r in reads if r[0] != slot]
    assert found.control_reads[0] == len(others)
    assert found.control[0] == pytest.approx(np.mean(others), rel=1e-4)


def test_by_gate(engram, tokenizer, texts, found):
    row = 5
    pair = {found.layers[row]: [int(found.slots[row])]}
    of_gate = ep.row_contexts(engram, tokenizer, texts, pair, by="gate", k=2)
    np.testing.assert_allclose(of_gate.strength, of_gate.gate.mean(-1), rtol=1e-5)
    assert of_gate.strength[0, 0] >= found.gate[row].mean(-1).max() - 1e-6
    assert "mean gate" in of_gate.summary()


def test_states_of_parts_add_up(engram, tokenizer, texts, found):
    tables, settings = tables_of(engram), {"by": "contribution", "k": 4, "around": 2}
    settings["max_tokens"] = None
    pairs = list(zip(found.layers, found.slots.tolist(), strict=True))
    rows = Rows.of(tables, pairs, 5, 0)
    first, rest, whole = (
        read(tables, tokenizer, Documents(part), rows, settings, None)
        for part in (texts[:9], texts[9:], texts)
    )
    both = first + rest
    assert both.best == whole.best and both.ngrams == whole.ngrams
    assert (both.documents, both.tokens) == (whole.documents, whole.tokens)
    for name in ("reads", "sums", "control_reads", "control_sums"):
        assert len(getattr(both, name)) == BLOCKS
        np.testing.assert_allclose(getattr(both, name).sum(0), getattr(whole, name).sum(0))


def test_it_is_safe_to_save_and_draw(found, engram, tokenizer, tmp_path):
    again = ep.load_result(found.save(tmp_path))
    assert again.to_frame().equals(found.to_frame()) and again.summary() == found.summary()
    assert len(found.rows_frame()) == len(found.slots) and len(found.to_frame()) == 32
    assert found.figure().layout.meta["alt"].startswith("Points by row")
    marked = ep.row_contexts(engram, tokenizer, ["<b>x</b> <b>x</b> <b>x</b>"], k=3)
    labels = " ".join(marked.figure().data[0].customdata)
    assert "&lt;" in labels and "<b>x" not in labels.replace("<b>x</b>", "")


def test_a_bridge_is_measured_as_its_hooks_leave_it(engram, tokenizer, texts):
    bridge = em.hooked(engram, tokenizer)
    with bridge.hooks(fwd_hooks=[("blocks.2.engram.hook_gate", lambda gate, hook: gate * 0)]):
        shut = ep.row_contexts(bridge, tokenizer, texts)
    assert (shut.mean[np.array(shut.layers) == 2] == 0).all()
    assert (shut.mean[np.array(shut.layers) == 0] > 0).all()


def test_rows_that_are_never_read_have_no_numbers(engram, tokenizer, texts, found):
    read_rows = {r[0] for r in all_reads(engram, tokenizer, texts, 0, 0)}
    never = next(row for row in range(211) if row not in read_rows)
    silent = ep.row_contexts(engram, tokenizer, texts, {0: [never]})
    assert silent.reads[0] == 0 and np.isnan(silent.mean[0]) and silent.to_frame().empty
    assert silent.summary().startswith("None of the 1 rows is read") and silent.figure()


def test_wrong_use(engram, twin, make_model, tokenizer, texts):
    def call(model=engram, texts=texts, rows=None, **options):
        return ep.row_contexts(model, tokenizer, texts, rows, **options)

    for words, message in [
        (dict(model=twin), "has no memory"),
        (dict(by="size"), "by='size'"),
        (dict(rows=[3]), "say of which layer"),
        (dict(rows={1: [3]}), "layer 1 has no memory"),
        (dict(rows={0: [10**6]}), "row 1000000: the table of layer 0"),
        (dict(rows={0: []}), "at least one row"),
        (dict(rows={0: [1]}, ngram="a b"), "not both"),
        (dict(ngram="a"), "at least two"),
        (dict(texts=iter(texts)), "read once only"),
    ]:
        with pytest.raises(UsageError, match=message):
            call(**words)
    with pytest.raises(CorpusError, match="empty"):
        call(texts=[" "], rows={0: [1]})
    with pytest.raises(CorpusError, match="empty"):
        call(texts=[" "])
