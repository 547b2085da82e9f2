"""Slot traces and the load of rows: against the model, counting by hand, planted hashes."""

from itertools import combinations
from math import exp, factorial, prod

import numpy as np
import pytest
import torch

import engram_model as em
import engram_probes as ep
from engram_model.errors import UsageError
from engram_probes.memory_tables import tables_of
from engram_probes.ngram_texts import NgramTexts
from engram_probes.slot_index import build_index
from engram_probes.slots_run import sharing_chance


def test_slots_rows_and_values_are_the_models(slots, gates, engram):
    """Slots are those the model looked up; the rows' shares of the value add up to its value."""
    np.testing.assert_array_equal(slots.slots, gates.slots)
    assert slots.tokens == gates.tokens and slots.layers == gates.layers
    tables = tables_of(engram)
    for index, layer in enumerate(slots.layers):
        memory = engram.model.layers[layer].engram
        rows = memory.embed.weight.detach()[torch.from_numpy(slots.slots[index].copy())]
        np.testing.assert_allclose(slots.row_norm[index], rows.norm(dim=-1), rtol=1e-5)
        shares = tables.value_shares(rows.numpy(), layer)
        np.testing.assert_allclose(slots.value_norm[index], shares.norm(dim=-1), rtol=1e-5)
        np.testing.assert_allclose(shares.sum(1).norm(dim=-1), gates.value_norm[index], rtol=1e-4)


def test_a_bridge_gives_the_same(slots, engram, tokenizer, texts):
    through = ep.inspect_slots(em.hooked(engram, tokenizer), tokenizer, texts[1])
    np.testing.assert_array_equal(through.slots, slots.slots)
    np.testing.assert_array_equal(through.says_ids, slots.says_ids)


def test_what_a_row_says_is_its_value_through_norm_and_head(slots, engram):
    memory = engram.model.layers[2].engram
    layer, position, column, width = 1, 5, 3, 8
    row = memory.embed.weight[slots.slots[layer, position, column]]
    block = memory.wkv.weight[-32:, column * width : (column + 1) * width]
    with torch.no_grad():
        logits = engram.lm_head(engram.model.norm(block @ row))
    above = (logits - logits.mean()).topk(5)
    assert slots.says_ids[layer, position, column].tolist() == above.indices.tolist()
    np.testing.assert_allclose(slots.says_logits[layer, position, column], above.values, rtol=1e-4)


def test_others_are_those_found_by_hand(slots, slot_index, engram):
    hasher, heads = tables_of(engram).hasher, slots.n_heads
    pads = [hasher.pad_id] * 2
    ids = pads + slots.compressed_ids.tolist()
    for (layer, position, column), slot in np.ndenumerate(slots.slots):
        order = column // heads + 2
        own = tuple(ids[position + 3 - order : position + 3])
        tenants = slot_index.tenants(slots.layers[layer], order, column % heads, int(slot))
        others = [n for n in map(tuple, tenants.ngrams.tolist()) if n != own]
        place = layer, position, column
        assert slots.tenants[place] == len(others)
        assert slots.row_reads[place] == tenants.counts.sum()
        assert slots.ngram_counts[order - 2, position] == slot_index.count(own)
        named = [slot_index.count(other) for other in others[:3]]
        assert slots.tenant_counts[place].tolist() == named + [0] * (3 - len(named))
        assert [bool(text) for text in slots.tenant_texts[layer][position][column]] == [
            bool(count) for count in slots.tenant_counts[place]
        ]


def test_sharing_is_that_of_all_pairs(make_model, tokenizer, texts):
    """Small tables of 4 heads, so that many n-grams share several rows."""
    model = make_model(engram_vocab_size=7, engram_n_heads=4)
    index, hasher = build_index(model, tokenizer, texts), tables_of(model).hasher
    found = ep.inspect_slots(model, tokenizer, texts[3], index)
    for layer, order, position in np.ndindex(found.shared.shape[:3]):
        columns = slice(order * 4, order * 4 + 4)
        own = found.slots[layer, position, columns]
        everyone = index.ngrams[order + 2].T
        shared = np.zeros(5, dtype=int)
        for other in everyone:
            rows = hasher.slots(other.astype(np.int64), found.layers[layer])[-1, columns]
            shared[(rows == own).sum()] += 1
        shared[4] -= found.ngram_counts[order, position] > 0  # itself
        assert found.shared[layer, order, position].tolist() == shared.tolist()
    assert found.shared[..., 3].sum() > 0
    observed, expected = found.shared_totals()
    assert observed.sum() == pytest.approx(expected.sum())
    assert observed[..., 1].sum() == pytest.approx(expected[..., 1].sum(), rel=0.1)


def test_sharing_chance_is_the_sum_over_sets_of_heads():
    primes = np.array([[5, 7, 11], [2, 3, 13]])
    for row, chance in zip(primes, sharing_chance(primes), strict=True):
        for k in range(4):
            expected = sum(
                prod(1 / p if h in hit else 1 - 1 / p for h, p in enumerate(row.tolist()))
                for hit in combinations(range(3), k)
            )
            assert chance[k] == pytest.approx(expected)


def test_expected_tenants_leave_out_the_ngram_itself(slots):
    inside = np.argwhere(slots.in_corpus)[3]
    order, position = inside
    for layer, head in np.ndindex(2, 2):
        column = order * 2 + head
        others, rows = slots.distinct[order] - 1, slots.table_rows[layer, column]
        assert slots.tenants_expected[layer, position, column] == pytest.approx(others / rows)


def test_a_large_table_is_nearly_collision_free(make_model, tokenizer, texts):
    """Planted: far fewer n-grams than rows, so a row is its n-gram's own."""
    model = make_model(engram_vocab_size=200_003, engram_head_dim=2)
    index = build_index(model, tokenizer, texts)
    found, load = ep.inspect_slots(model, tokenizer, texts[1], index), ep.row_load(index, tokenizer)
    assert load.load.max() < 0.01 and (load.unused > 0.99 * load.table_rows).all()
    ordinary = ~found.special
    assert found.tenants[:, ordinary].mean() < 0.05
    alone = (found.tenants == 0) & (found.row_reads > 0)
    assert (found.own_share[alone] == 1).all()
    assert load.hot_share == pytest.approx(load.hot_floor, abs=0.01)


def test_rows_that_no_two_ngrams_share_are_their_ngrams_own(make_model, tokenizer, texts):
    """Planted: two documents in a table so large that nothing collides; less than one a row."""
    model = make_model(engram_vocab_size=2_000_003, engram_head_dim=1, engram_n_heads=2)
    index = build_index(model, tokenizer, texts[1:3])
    assert all((np.diff(row_map.offsets) == 1).all() for row_map in index.layers.values())
    found, load = ep.inspect_slots(model, tokenizer, texts[1], index), ep.row_load(index, tokenizer)
    ordinary = ~found.special
    assert (found.tenants[:, ordinary] == 0).all() and (found.own_share[:, ordinary] == 1).all()
    assert (found.tenants_expected < 0.01).all() and (load.load < 1).all()
    assert (found.shared[..., 1:][:, :, ordinary] == 0).all() and (load.largest == 1).all()


def test_one_row_holds_everything(make_model, tokenizer, texts):
    """Planted: capacity 1, the control; all n-grams of an order are in one row."""
    model = make_model(engram_vocab_size=1)
    index = build_index(model, tokenizer, texts)
    found, load = ep.inspect_slots(model, tokenizer, texts[1], index), ep.row_load(index, tokenizer)
    known = found.in_corpus[found.order_of_column].T
    assert (found.tenants[0] == found.distinct[found.order_of_column] - known).all()
    assert (found.row_reads == index.corpus["tokens"]).all()
    assert (load.unused == 0).all() and (load.hot_share == 1).all() and (load.dispersion == 0).all()
    assert load.figure().layout.meta["alt"] and load.summary()


def test_load_is_counted_as_by_hand(row_load, slot_index, engram):
    hasher = tables_of(engram).hasher
    for (layer, column), rows in np.ndenumerate(row_load.table_rows):
        name, order, head = row_load.layers[layer], column // 2 + 2, column % 2
        first = hasher.offsets(name)[column]
        tenants = [slot_index.tenants(name, order, head, first + r) for r in range(rows)]
        loads = np.array([len(t.counts) for t in tenants])
        reads = np.array([t.counts.sum() for t in tenants])
        place = layer, column
        assert row_load.unused[place] == (loads == 0).sum()
        assert row_load.largest[place] == loads.max()
        assert row_load.dispersion[place] == pytest.approx(loads.var() / loads.mean())
        assert row_load.load[place] == pytest.approx(loads.mean())
        assert row_load.hottest_share[place] == pytest.approx(reads.max() / reads.sum())
        assert reads[row_load.hottest[place] - first] == reads.max()
        hot = np.sort(reads)[::-1][: round(rows / 100)]
        assert row_load.hot_share[place] == pytest.approx(hot.sum() / reads.sum())
        by_load = [(loads == n).sum() for n in row_load.edges[:-1]]
        assert row_load.rows_by_load[place].tolist() == by_load


def test_expected_rows_follow_poissons_law(row_load):
    expected = row_load.rows_expected()
    rate, rows = row_load.load[1, 2], row_load.table_rows[1, 2]
    by_hand = [rows * exp(-rate) * rate**n / factorial(n) for n in row_load.edges[:-1].tolist()]
    np.testing.assert_allclose(expected[1, 2], by_hand)
    np.testing.assert_allclose(expected[..., 0], row_load.unused_expected)


@pytest.fixture(scope="module")
def numbers():
    """Documents of many different n-grams."""
    return [" ".join(f"{i * j % 997}" for j in range(1, 60)) for i in range(1, 60)]


def test_wide_loads_are_binned(make_model, tokenizer, numbers):
    """More than 200 n-grams a row: bins of equal width hold every row."""
    load = ep.row_load(build_index(make_model(engram_vocab_size=2), tokenizer, numbers), tokenizer)
    assert load.largest.max() > 200 and len(load.edges) <= 203
    assert set(np.diff(load.edges).tolist()) == {load.edges[1]} == {load.largest.max() // 200 + 1}
    np.testing.assert_array_equal(load.rows_by_load.sum(-1), load.table_rows)


def test_a_uniform_hash_is_told_from_an_uneven_one(make_model, tokenizer, numbers):
    """3-grams, some five a row. Planted: a hash that reads every eighth row only."""
    model = make_model()
    even = ep.row_load(build_index(model, tokenizer, numbers), tokenizer)
    low, high = even.dispersion_band
    assert ((even.dispersion > low) & (even.dispersion < high))[:, 2:].all()

    class Uneven(type(tables_of(model).hasher)):
        def slots(self, compressed_ids, layer_id, history=None):
            slots, offsets = (
                super().slots(compressed_ids, layer_id, history),
                self.offsets(layer_id),
            )
            return offsets + (slots - offsets) // 8 * 8

    tables = tables_of(model)
    tables.hasher = Uneven(**tables.hasher.arguments())
    uneven = ep.row_load(build_index(tables, tokenizer, numbers), tokenizer)
    assert (uneven.dispersion > 2 * high)[:, 2:].all()
    assert (uneven.unused > 5 * uneven.unused_expected)[:, 2:].all()


class Bare:
    """Tables without a model."""

    def __init__(self, tables):
        self.hasher, self.compression, self.rows = tables.hasher, tables.compression, tables.rows

    def describe(self):
        return {"name": "bare tables"}


def test_tables_without_a_model_can_be_inspected(slots, engram, tokenizer, texts):
    found = ep.inspect_slots(Bare(tables_of(engram)), tokenizer, texts[1], texts)
    for name in ("slots", "row_norm", "tenants", "shared", "row_reads"):
        np.testing.assert_array_equal(getattr(found, name), getattr(slots, name))
    assert found.says_ids is None and found.facts()["tables"] == "bare tables"
    assert "says" not in found.to_frame() and found.figure().layout.meta["alt"]
    with pytest.raises(UsageError, match="needs a model"):
        found.figure("value_norm")
    with pytest.raises(UsageError, match="outside the tables' vocabulary"):
        bare = Bare(tables_of(engram))
        bare.compression = bare.compression[:50]
        ep.inspect_slots(bare, tokenizer, texts[1])


def test_without_a_corpus_nothing_is_said_of_others(engram, tokenizer, tmp_path):
    found = ep.inspect_slots(engram, tokenizer, "The miller of Ostrava", topk=0)
    assert found.tenants is None and found.own_share is None and found.says_ids is None
    assert "tenants" not in found.to_frame() and "a corpus would tell" in found.summary()
    with pytest.raises(UsageError, match="needs a corpus"):
        found.figure("tenants")
    assert ep.load_result(found.save(tmp_path)).tenants is None


def test_ngrams_are_shown_by_the_commonest_token():
    """Raw tokens 1, 2 and 3 share a compressed id."""
    tokens = {0: "<s>", 1: "The", 2: "the", 3: "Ġthe", 4: "."}

    class Tokenizer:
        all_special_tokens = ("<s>",)

        def convert_ids_to_tokens(self, ids):
            return [tokens[i] for i in ids]

    compression = np.array([0, 1, 1, 1, 2])
    assert NgramTexts(Tokenizer(), compression)([0, 1, 2]) == "<s>the."
    assert NgramTexts(Tokenizer(), compression, np.array([0, 4, 2, 9, 1]))([1, 2]) == "·the."
    assert NgramTexts(Tokenizer(), compression, np.array([0, 4, 2, 3, 1]))([1, 2]) == "The."
    assert NgramTexts(Tokenizer(), compression, np.array([0, 0, 0, 0, 1]))([1, 2]) == "the."


def test_the_text_is_shown_as_ngrams(slots, tokenizer):
    assert slots.ngram_texts[1][0] == 2 * tokenizer.pad_token + tokenizer.bos_token
    assert slots.ngram_texts[0][1].startswith(tokenizer.bos_token)
    plain = [text.replace("·", " ").lower() for text in slots.tokens]
    assert slots.ngram_texts[1][4].replace("·", " ").lower().split() == "".join(plain[2:5]).split()


def test_the_frame_is_long_and_complete(slots):
    frame = slots.to_frame()
    assert len(frame) == slots.slots.size
    row = frame[
        (frame.layer == 2) & (frame.position == 4) & (frame.order == 3) & (frame["head"] == 1)
    ]
    assert row.slot.item() == slots.slots[1, 4, 3]
    assert row.tenants.item() == slots.tenants[1, 4, 3]
    assert row.ngram.item() == slots.ngram_texts[1][4]
    assert row.ngram_count.item() == slots.ngram_counts[1, 4]
    assert row.says.item() == ", ".join(slots.says_texts[1][4][3])


@pytest.mark.parametrize("what", ["tenants", "own_share", "row_norm", "value_norm"])
def test_trace_figure(slots, what):
    figure = slots.figure(what)
    (trace,) = figure.data
    expected = np.concatenate([layer.T for layer in slots.values(what)])
    np.testing.assert_allclose(np.array(trace.z, dtype=float), expected, rtol=1e-5)
    assert figure.layout.yaxis.ticktext[5] == "L2 2-gram h1"
    assert "Heatmap of 8 orders and heads" in figure.layout.meta["alt"]
    one = slots.figure(what, layer=2)
    np.testing.assert_allclose(np.array(one.data[0].z, dtype=float), expected[4:], rtol=1e-5)
    assert f"row {slots.slots[1, 3, 2]}" in one.data[0].customdata[2][3]


def test_load_figure(row_load):
    figure = row_load.figure(layer=2)
    bars, line = figure.data[2:]
    np.testing.assert_array_equal(np.array(bars.y), row_load.rows_by_load[1, 2:].sum(0))
    expected = row_load.rows_expected()[1, 2:].sum(0)
    np.testing.assert_allclose(np.array(line.y, dtype=float), expected, rtol=1e-4)
    assert figure.layout.xaxis.title.text == "distinct n-grams in the row"
    assert "Poisson" in figure.layout.meta["alt"]


def test_wrong_use_is_refused(engram, twin, make_model, tokenizer, slots, row_load):
    for model, text, message in [
        (engram, " ", "the text is empty"),
        (engram, "boats " * 5000, "reads"),
        (engram, ["a", "b"], "reads one text, not list"),
        (twin, "boats", "has no memory"),
        (make_model(engram_hash="position"), "boats", "hashes the position"),
        (object(), "boats", "not a causal language model"),
    ]:
        with pytest.raises(UsageError, match=message):
            ep.inspect_slots(model, tokenizer, text)
    with pytest.raises(UsageError, match="not in a slot trace"):
        slots.figure("size")
    for result in (slots, row_load):
        with pytest.raises(UsageError, match="layer 1 has no memory; layers with one: 0, 2"):
            result.figure(layer=1)
