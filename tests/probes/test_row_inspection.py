"""Single rows: against the model's weights, the index, a slot trace; planted norms."""

import numpy as np
import pytest

import engram_probes as ep
from engram_model.errors import UsageError
from engram_probes.memory_tables import tables_of


def test_rows_of_an_ngram_are_those_of_the_slot_trace(slots, rows_of_ngram):
    found = rows_of_ngram
    position = 6
    np.testing.assert_array_equal(found.slots, slots.slots[:, position].ravel())
    np.testing.assert_allclose(found.row_norm, slots.row_norm[:, position].ravel(), rtol=1e-5)
    np.testing.assert_allclose(found.value_norm, slots.value_norm[:, position].ravel(), 1e-5)
    np.testing.assert_array_equal(found.says_ids, slots.says_ids[:, position].reshape(-1, 5))
    np.testing.assert_array_equal(found.reads, slots.row_reads[:, position].ravel())
    np.testing.assert_allclose(found.own_share, slots.own_share[:, position].ravel())
    known = slots.in_corpus[:, position][slots.order_of_column]
    others = found.tenants - np.tile(known, len(slots.layers))
    np.testing.assert_array_equal(others, slots.tenants[:, position].ravel())
    texts = [slots.ngram_texts[order - 2][position] for order in found.orders]
    assert list(found.ngram_texts) == texts


def test_tenants_are_the_index_own(rows_of_ngram, slot_index):
    found = rows_of_ngram
    for row, layer in enumerate(found.layers):
        order, head = found.orders[row], found.heads[row]
        tenants = slot_index.tenants(layer, order, head, int(found.slots[row]))
        kept = found.tenant_counts[row]
        assert kept[kept > 0].tolist() == tenants.counts[:3].tolist()
        own = found.own_tenant[row]
        assert own == -1 or kept[own] == found.own_reads[row]
    frame = found.tenants_frame()
    assert frame["count"].sum() == found.tenant_counts.sum()
    assert frame.own.sum() == (found.own_tenant >= 0).sum() > 0


def test_a_planted_row_is_the_longest_of_its_head(make_model, tokenizer, texts):
    import torch

    model = make_model()
    hasher = tables_of(model).hasher
    slot, size = int(hasher.offsets(2)[3]), int(hasher.primes(2)[1, 1])
    weight = model.model.layers[2].engram.embed.weight
    with torch.no_grad():
        weight[slot] = 100.0
        weight[slot + 1] = 0.0
    found = ep.inspect_rows(model, tokenizer, {2: [slot, slot + 1]}, controls=size, corpus=texts)
    assert (found.orders, found.heads) == ((3, 3), (1, 1))
    assert found.row_norm.tolist() == pytest.approx([100 * weight.shape[1] ** 0.5, 0])
    assert found.shorter.tolist() == [(size - 1) / size, 0]
    assert found.table_rows.tolist() == [size, size]
    others = np.linalg.norm(weight.detach().numpy()[slot : slot + size], axis=1)
    np.testing.assert_allclose(found.control_norm[0], np.quantile(others, [0.025, 0.5, 0.975]))
    assert found.ngram_texts == ("", "") and np.isnan(found.own_share).all()
    assert found.says_logits[1].tolist() == pytest.approx([0] * 8)


def test_an_ngram_that_the_corpus_lacks(engram, tokenizer, slot_index):
    found = ep.inspect_rows(engram, tokenizer, ngram="qxqxqxqx", corpus=slot_index)
    assert found.own_reads.sum() == 0 and "The corpus does not have it." in found.summary()
    assert (found.own_tenant == -1).all()


def test_an_unread_row(engram, tokenizer, slot_index):
    rows = slot_index.layers[0].rows
    never = next(slot for slot in range(10_000) if slot not in rows)
    found = ep.inspect_rows(engram, tokenizer, {0: [never]}, corpus=slot_index)
    assert "No n-gram of the corpus reads it" in found.summary()
    assert len(found.figure(0).data) == 1  # what it says
    silent = ep.inspect_rows(engram, tokenizer, {0: [never]}, corpus=slot_index, topk=0)
    assert "no n-gram of the corpus reads it" in silent.figure(0).layout.meta["alt"]
    assert found.tenants_frame().empty


def test_it_is_saved_and_drawn(rows_of_ngram, tmp_path):
    found = rows_of_ngram
    found.save(tmp_path)
    again = ep.load_result(tmp_path)
    assert again.summary() == found.summary()
    assert again.to_frame().equals(found.to_frame())
    bars = again.figure(0).data
    np.testing.assert_allclose(bars[1].x, found.says_logits[0], rtol=1e-6)
    assert len(bars[0].x) == (found.tenant_counts[0] > 0).sum()
    norms = again.figure().data[1]
    np.testing.assert_allclose(norms.x, found.row_norm)


def test_markup_in_names_is_no_markup(engram, tokenizer):
    found = ep.inspect_rows(engram, tokenizer, ngram="<b>x</b>", corpus=["<b>x</b> <b>x</b>"])
    names = [name for bar in found.figure(0).data for name in bar.customdata]
    assert names and not any("<" in name for name in names)


def test_without_a_corpus(engram, tokenizer):
    found = ep.inspect_rows(engram, tokenizer, {0: [1]})
    assert found.reads is None and "corpus" not in found.summary()
    assert len(found.figure(0).data) == 1
    with pytest.raises(UsageError, match="without one"):
        found.tenants_frame()
    silent = ep.inspect_rows(engram, tokenizer, {0: [1]}, topk=0)
    with pytest.raises(UsageError, match="needs a corpus"):
        silent.figure(0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "rows or ngram"),
        (dict(rows={0: [1]}, ngram="a b"), "rows or ngram"),
        (dict(rows={1: [1]}), "layer 1 has no memory"),
        (dict(rows={0: [10**9]}), "has rows 0 to"),
        (dict(rows=[1]), "say of which layer"),
        (dict(ngram="a"), "at least two"),
        (dict(ngram=[1, 10**7]), "vocabulary"),
        (dict(rows={0: [1]}, controls=0), "controls"),
    ],
)
def test_wrong_use(engram, tokenizer, options, said):
    with pytest.raises(UsageError, match=said):
        ep.inspect_rows(engram, tokenizer, **options)


def test_no_memory_and_no_such_row(twin, rows_of_ngram, tokenizer):
    found = rows_of_ngram
    with pytest.raises(UsageError, match="no memory"):
        ep.inspect_rows(twin, tokenizer, ngram="a b")
    with pytest.raises(UsageError, match="none of the"):
        found.figure(99)
