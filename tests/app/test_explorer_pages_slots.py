"""Slots and Gates, well, empty and in error, run without a browser."""

import numpy as np
import pytest
from explorer_page import figures
from explorer_page import texts as said

import engram_model as em
import engram_probes as ep

CORPUS = "world:?seed=0&split=valid&tokens=20K"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Folder of the indexes; none is in memory."""
    import streamlit as st

    st.cache_resource.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "engram-workbench" / "indexes"


@pytest.fixture
def memory(pair):
    return em.load(pair / "memory")


def test_slots_of_the_token_looked_at(explorer, memory, cache):
    at = explorer("slots", pos="5", slots_corpus=CORPUS)
    model, tokenizer = memory
    gates = ep.gate_map(model, tokenizer, at.text_area(key="text").value)
    rows = at.dataframe[0].value
    np.testing.assert_array_equal(rows.slot, gates.slots[:, 5].ravel())
    expected = ep.inspect_rows(model, tokenizer, ngram=gates.token_ids[3:6], corpus=CORPUS)
    assert expected.summary() in said(at)
    assert rows.tenants.tolist() == expected.tenants.tolist()
    assert "No n-gram" in said(at) or "It is read" in said(at)
    assert len([*cache.iterdir()]) == 1  # the index, and nothing half made


def test_the_index_is_built_once(explorer, cache, monkeypatch):
    explorer("slots", slots_corpus=CORPUS)
    [folder] = cache.iterdir()
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    explorer("gates", slots_corpus=CORPUS)
    assert before == {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_a_damaged_index_is_built_anew(pair, cache):
    from engram_app.explorer import cached, indexes

    one = cached.Held(*em.load(pair / "memory"))
    folder = cache / indexes._name(one, CORPUS)
    built = indexes._build(one, CORPUS, folder, None).raw_counts.tolist()
    (folder / "raw-counts.npy").write_bytes(b"x")
    assert indexes._kept(folder) is None
    again = indexes._build(one, CORPUS, folder, None)
    assert again.raw_counts.tolist() == built
    assert indexes._kept(folder) is not None and [*cache.iterdir()] == [folder]


def test_an_index_that_cannot_be_kept_stays_in_memory(pair, tmp_path):
    from engram_app.explorer import cached, indexes

    one, file = cached.Held(*em.load(pair / "memory")), tmp_path / "file"
    file.write_text("in the way")
    assert indexes._build(one, CORPUS, file / "index", None).corpus["documents"] > 0


def test_a_typed_ngram(explorer, memory):
    at = explorer("slots", slots_ngram=" of the boats", slots_corpus=CORPUS)
    model, tokenizer = memory
    expected = ep.inspect_rows(model, tokenizer, ngram=" of the boats", corpus=CORPUS)
    assert at.dataframe[0].value.slot.tolist() == expected.slots.tolist()
    assert "--ngram ' of the boats'" in at.code[0].value


def test_a_row_from_the_address(explorer, memory):
    model, tokenizer = memory
    at = explorer("slots", slots_row="2:17", slots_corpus=CORPUS)
    expected = ep.inspect_rows(model, tokenizer, {2: [17]}, corpus=CORPUS)
    assert expected.about(0) in said(at)
    logits = figures(at)[0]["data"][-1]["x"]
    assert len(logits["bdata"] if isinstance(logits, dict) else logits) > 0
    other = explorer("slots", slots_row="2:x", slots_corpus=CORPUS)
    assert expected.about(0) not in said(other) and not other.error


def test_a_row_that_is_none(explorer):
    at = explorer("slots", slots_row="1:17", slots_corpus=CORPUS)
    assert "layer 1 has no memory" in at.error[0].value


def test_another_row_by_the_selector(explorer):
    at = explorer("slots", slots_corpus=CORPUS)
    chooser = at.selectbox(key="slots_chosen")
    layer, row = at.dataframe[0].value[["layer", "slot"]].iloc[3].tolist()
    chooser.set_value((layer, row)).run()
    assert f"Row {row:,} (layer" in said(at) and not at.exception


def test_contexts_on_request(explorer):
    at = explorer("slots", slots_corpus=CORPUS)
    [button] = [one for one in at.button if one.label == "Find its contexts"]
    button.click().run()
    assert "documents row" in said(at) or "None of the 1 rows" in said(at)
    assert not at.exception and not at.error


def test_saved_contexts_need_no_asking(explorer, memory, tmp_path):
    model, tokenizer = memory
    saved = ep.row_contexts(model, tokenizer, ["The boats at dusk."] * 3, {2: [17], 0: [3]}, k=2)
    folder = saved.save(tmp_path / "contexts")
    at = explorer("slots", results=[folder], slots_row="2:17", slots_corpus=CORPUS)
    assert "From a saved result, over" in said(at)
    assert not [one for one in at.button if one.label == "Find its contexts"]


def test_map_of_the_text(explorer, memory):
    at = explorer("slots", slots_corpus=CORPUS)
    assert "Other n-grams in the row, by order, head and position" in said(at)
    at.button_group(key="slots_colour").set_value("row_norm").run()
    heatmap = next(f["data"][0] for f in figures(at) if f["data"][0]["type"] == "heatmap")
    assert len(heatmap["customdata"]) == 8 and not at.exception  # layers, orders, heads


def test_hot_and_cold_rows(explorer):
    at = explorer("slots", slots_corpus=CORPUS)
    hot = at.dataframe[1].value.reads
    assert hot.is_monotonic_decreasing and hot.iloc[0] > 0
    at.button_group(key="slots_which").set_value("cold").run()
    cold = at.dataframe[1].value.reads
    assert cold.is_monotonic_increasing and cold.iloc[0] < hot.iloc[0]


def test_the_start_ends_no_ngram(explorer):
    for page in ("slots", "gates"):
        at = explorer(page, pos="0", slots_corpus=CORPUS)
        assert "No n-gram ends at" in at.info[0].value.replace("\\", "") and not at.error


@pytest.mark.parametrize("page", ["slots", "gates"])
def test_a_model_without_a_memory(explorer, page):
    at = explorer(page, models=("plain",))
    assert at.info[0].value.startswith("plain has no memory") and not at.error


@pytest.mark.parametrize("page", ["slots", "gates"])
def test_wrong_corpus_and_empty_text(explorer, page):
    at = explorer(page, slots_corpus="json:/nowhere/at/all.jsonl")
    assert len(at.error) == 1 and "\n" not in at.error[0].value
    at = explorer(page, text=" ")
    assert "the text is empty" in at.error[0].value


def test_an_ngram_of_one_token(explorer):
    at = explorer("slots", slots_ngram="a", slots_corpus=CORPUS)
    assert "at least two" in at.error[0].value


def test_what_a_token_looked_up_and_what_it_is_worth(explorer, memory):
    at = explorer("gates", pos="5", slots_corpus=CORPUS)
    model, tokenizer = memory
    text = at.text_area(key="text").value
    lost = ep.intervene(model, tokenizer, text, ("zero@pos=5",))
    assert at.metric[0].value == f"{lost.kl[5]:.3f} nats"
    after = np.where(lost.special, -np.inf, lost.helped)
    after[:6] = -np.inf
    place = int(np.argmax(after))
    assert f"position {place}" in at.metric[1].label
    table = at.dataframe[0].value
    assert table.order.tolist() == [2, 3, 2, 3] and table.layer.tolist() == [0, 0, 2, 2]
    slots = ep.gate_map(model, tokenizer, text).slots[0, 5]
    assert table["rows, by head"].iloc[0] == ", ".join(map(str, slots[:2]))
