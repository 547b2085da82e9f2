"""The index of who hashes where, against counting by hand, and what is refused."""

import json
from collections import Counter, defaultdict

import numpy as np
import pytest

from engram_model.compression import compression_map
from engram_model.errors import CheckpointError, CorpusError, UsageError
from engram_probes.memory_tables import tables_of
from engram_probes.ngram_counts import count_ngrams, pad_documents
from engram_probes.slot_index import build_index, open_index


def counted_by_hand(tokenizer, texts, max_ngram_size=3):
    """Order -> Counter of n-grams of compressed ids that end at ordinary tokens."""
    compression = compression_map(tokenizer)
    pad = int(compression[tokenizer.pad_token_id])
    found = {order: Counter() for order in range(2, max_ngram_size + 1)}
    for text in texts:
        raw = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        ids = [pad] * (max_ngram_size - 1) + [int(compression[i]) for i in raw]
        for position, token in enumerate(raw):
            end = position + max_ngram_size
            if position == 0 or token in tokenizer.all_special_ids:
                continue
            for order, counts in found.items():
                counts[tuple(ids[end - order : end])] += 1
    return found


def rows_by_hand(hasher, found, layer):
    """Row -> {n-gram: count}, each n-gram hashed by itself."""
    rows = defaultdict(dict)
    for counts in found.values():
        for ngram, count in counts.items():
            for row in slots_by_hand(hasher, ngram, layer):
                rows[row][ngram] = count
    return rows


def slots_by_hand(hasher, ngram, layer):
    start = (len(ngram) - 2) * hasher.n_heads
    return hasher.slots(np.array(ngram), layer)[-1, start : start + hasher.n_heads].tolist()


@pytest.fixture(scope="module")
def by_hand(tokenizer, texts):
    return counted_by_hand(tokenizer, texts)


@pytest.fixture
def saved(engram, tokenizer, texts, tmp_path):
    build_index(engram, tokenizer, texts, tmp_path / "index")
    return tmp_path / "index"


def test_ngrams_are_counted_as_by_hand(slot_index, by_hand):
    for order, expected in by_hand.items():
        ngrams = [tuple(row) for row in slot_index.ngrams[order].T.tolist()]
        assert ngrams == sorted(expected)
        assert slot_index.counts[order].tolist() == [expected[ngram] for ngram in ngrams]
        assert all(slot_index.count(ngram) == count for ngram, count in expected.items())
        assert slot_index.corpus["tokens"] == expected.total()
    assert slot_index.find((0, 0, 0)) is None and slot_index.count((0, 0)) == 0


def test_every_row_has_the_tenants_found_by_hand(engram, slot_index, by_hand):
    hasher = tables_of(engram).hasher
    for layer in (0, 2):
        rows = rows_by_hand(hasher, by_hand, layer)
        offsets, primes = hasher.offsets(layer), hasher.primes(layer).reshape(-1)
        for column, (offset, prime) in enumerate(zip(offsets, primes, strict=True)):
            order, head = column // 2 + 2, column % 2
            for row in range(offset, offset + prime):
                found = slot_index.tenants(layer, order, head, row)
                counts = found.counts.tolist()
                assert (
                    dict(zip(map(tuple, found.ngrams.tolist()), counts, strict=True)) == rows[row]
                )
                assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("heads", [1, 2])
def test_who_is_found_as_by_hand(make_model, tokenizer, texts, by_hand, heads):
    model = make_model(engram_vocab_size=3)
    index, hasher = build_index(model, tokenizer, texts), tables_of(model).hasher
    slots = {ngram: slots_by_hand(hasher, ngram, 2) for ngram in by_hand[3]}
    seen = 0
    for ngram in sorted(by_hand[3])[::5]:
        expected = {}
        for other in by_hand[3]:
            same = sum(a == b for a, b in zip(slots[ngram], slots[other], strict=True))
            if other != ngram and same >= heads:
                expected[other] = (by_hand[3][other], same)
        found = index.who(ngram, 2, heads)
        numbers = zip(found.counts.tolist(), found.heads.tolist(), strict=True)
        assert dict(zip(map(tuple, found.ngrams.tolist()), numbers, strict=True)) == expected
        assert found.heads.tolist() == sorted(found.heads, reverse=True)
        seen += len(expected)
    assert seen >= 10


def test_who_takes_an_ngram_that_the_corpus_lacks(slot_index):
    assert slot_index.find((5, 5, 5)) is None
    assert (slot_index.who((5, 5, 5), 0).heads >= 1).all()


def test_ngrams_beyond_64_bits_are_counted():
    """99,092^4 > 2^63: packed ids would wrap."""
    vocabulary = 99_092
    ids = np.random.default_rng(0).choice([1, 7, 99_090, 99_091], 2000)
    padded, inside = pad_documents([ids[:900], ids[900:]], 2, 4)
    for order, (ngrams, counts) in enumerate(count_ngrams(padded, inside, 4, vocabulary), start=2):
        expected = Counter()
        for document in (ids[:900], ids[900:]):
            row = [2, 2, 2, *document.tolist()]
            expected.update(tuple(row[end - order : end]) for end in range(4, len(row) + 1))
        found = dict(zip(map(tuple, ngrams.T.tolist()), counts.tolist(), strict=True))
        assert found == expected


def test_an_opened_index_is_the_one_that_was_built(slot_index, saved):
    opened = open_index(saved)
    for (name, array), (_, expected) in zip(opened._files(), slot_index._files(), strict=True):
        assert isinstance(array, np.memmap), name
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected, err_msg=name)
    assert (opened.hash, opened.corpus) == (slot_index.hash, slot_index.corpus)
    for ngram in opened.ngrams[3].T:
        for found, expected in zip(opened.who(ngram, 0), slot_index.who(ngram, 0), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_corpus_may_be_a_spec_or_a_dataset(engram, tokenizer, texts, slot_index, tmp_path):
    from datasets import Dataset

    for number, text in enumerate(texts):
        (tmp_path / f"{number:02}.txt").write_text(text)
    seen = []
    spec = f"text:{tmp_path}/*.txt"
    of_spec = build_index(engram, tokenizer, spec, progress=lambda *done: seen.append(done))
    of_dataset = build_index(engram, tokenizer, Dataset.from_dict({"text": texts}))
    for index in (of_spec, of_dataset):
        np.testing.assert_array_equal(index.layers[2].ids, slot_index.layers[2].ids)
    assert of_spec.corpus["spec"] == "text:*.txt" and of_spec.corpus["fingerprint"]
    assert seen[-1] == (24, None)


def test_damage_is_noticed(saved):
    with pytest.raises(CheckpointError, match="no index in"):
        open_index(saved / "elsewhere")
    file = saved / "layer2-ids.npy"
    content = file.read_bytes()
    for broken in (content[:-4], content[:-1] + b"\xff"):
        file.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"layer2-ids.npy is damaged: its checksum"):
            open_index(saved)
    file.unlink()
    with pytest.raises(CheckpointError, match="is damaged: FileNotFoundError"):
        open_index(saved)
    document = json.loads((saved / "index.json").read_text())
    for text in ("{", "[]", json.dumps({**document, "schema": 9}), json.dumps({"schema": 1})):
        (saved / "index.json").write_text(text)
        with pytest.raises(CheckpointError) as error:
            open_index(saved)
        assert "\n" not in str(error.value)


def test_half_an_index_is_none(engram, tokenizer, texts, saved, monkeypatch):
    """A build that breaks off leaves no index, not even the old one with a part of the new."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space"):
        build_index(engram, tokenizer, texts, saved)
    with pytest.raises(CheckpointError, match="no index in"):
        open_index(saved)
    assert not [file for file in saved.iterdir() if file.name.startswith(".")]


def test_an_index_of_others_is_refused(engram, make_model, tokenizer, texts, slot_index, tmp_path):
    import engram_probes as ep
    from engram_model.bpe import train_bpe

    other = train_bpe(["an entirely other text of other words"] * 20, 400)
    with pytest.raises(UsageError, match="another tokenizer"):
        ep.inspect_slots(engram, other, "text", slot_index)
    with pytest.raises(UsageError, match="another tokenizer"):
        ep.row_load(slot_index, other)
    for fields, name in ((dict(engram_seed=5), "seed"), (dict(engram_vocab_size=99), "vocab_size")):
        with pytest.raises(UsageError, match=f"another hash.*{name}"):
            ep.inspect_slots(make_model(**fields), tokenizer, "text", slot_index)


def test_what_is_no_row_or_corpus_is_refused(engram, twin, tokenizer, slot_index):
    for place, message in [
        ((1, 2, 0, 0), "layer 1 has no memory"),
        ((0, 4, 0, 0), "4-grams are not hashed"),
        ((0, 2, 2, 0), "heads 0 to 1"),
        ((0, 2, 1, 0), "row 0: order 2, head 1 of layer 0 has the rows 211 to 433"),
    ]:
        with pytest.raises(UsageError, match=message):
            slot_index.tenants(*place)
    with pytest.raises(UsageError, match="1-grams"):
        slot_index.who((3,), 0)
    with pytest.raises(UsageError, match="has no memory"):
        build_index(twin, tokenizer, ["text"])
    with pytest.raises(CorpusError, match="empty"):
        build_index(engram, tokenizer, [" "])
    with pytest.raises(CorpusError, match="special tokens only"):
        build_index(engram, tokenizer, [tokenizer.eos_token])
    with pytest.raises(CorpusError, match="has no text"):
        build_index(engram, tokenizer, [{"words": "a"}])


def test_rows_ranked_by_reads(slot_index):
    hasher = slot_index.hasher
    for layer, order, head in ((0, 2, 0), (2, 3, 1)):
        first = int(hasher.offsets(layer)[(order - 2) * 2 + head])
        size = int(hasher.primes(layer)[order - 2, head])
        tenants = (slot_index.tenants(layer, order, head, first + row) for row in range(size))
        reads = np.array([one.counts.sum() for one in tenants])
        hot = slot_index.ranked(layer, order, head, 5) - first
        assert reads[hot].tolist() == np.sort(reads)[::-1][:5].tolist()
        cold = slot_index.ranked(layer, order, head, size, coldest=True) - first
        assert sorted(cold) == list(range(size))
        assert reads[cold].tolist() == np.sort(reads).tolist()
    with pytest.raises(UsageError, match="heads 0 to 1"):
        slot_index.ranked(0, 2, 2, 1)
