"""The hash is exact: every published vector, any split of a text, every wrong use refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_model import NgramHasher
from engram_model.errors import UsageError

DATA = Path(__file__).parents[1] / "data"
VECTORS = json.loads((DATA / "hash_vectors.json").read_text())["vectors"]
V41 = json.loads((DATA / "v41_vectors.json").read_text())


def hasher_of(vector: dict) -> NgramHasher:
    return NgramHasher(
        layer_ids=vector["layer_ids"],
        max_ngram_size=vector["max_ngram"],
        n_heads=vector["heads_per_order"],
        vocab_sizes=vector["bases"],
        compressed_vocab_size=vector["compressed_vocab_size"],
        pad_id=vector["compressed_pad_id"],
        seed=vector["seed"],
    )


def v41_hasher() -> NgramHasher:
    return NgramHasher([1, 14], 4, 8, [16_000_000] * 3, 99_092, pad_id=2, seed=0)


def small_hasher() -> NgramHasher:
    return NgramHasher([1, 3], 3, 2, [101, 101], compressed_vocab_size=100, pad_id=2)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_hash_equals_published_vector(vector):
    hasher = hasher_of(vector)
    for layer, expected in vector["layers"].items():
        layer_id = int(layer)
        assert hasher.multipliers(layer_id).tolist() == expected["multipliers"]
        assert hasher.primes(layer_id).tolist() == expected["primes_by_order"]
        assert hasher.offsets(layer_id).tolist() == expected["offsets"]
        assert hasher.rows(layer_id) == expected["table_rows"]
        slots = hasher.slots(np.array(vector["compressed_ids"]), layer_id)
        hashes = slots - hasher.offsets(layer_id)
        assert hashes.tolist() == expected["hashes"]


def test_hash_equals_v41_tables():
    hasher = v41_hasher()
    assert [hasher.rows(1), hasher.rows(14)] == [384_006_168, 384_016_682]
    for layer in V41["layers"]:
        layer_id = layer["layer"]
        assert [str(m) for m in hasher.multipliers(layer_id)] == layer["multipliers"]
        assert hasher.primes(layer_id).tolist() == layer["primes"]
        assert hasher.offsets(layer_id).tolist() == layer["offsets"]


@pytest.mark.parametrize("vector", V41["slot_vectors"], ids=lambda vector: vector["name"])
def test_hash_equals_v41_slots(vector):
    history = np.array(vector["history_newest_first"][::-1], dtype=np.int64)
    for layer, expected in vector["layers"].items():
        ids = np.array(vector["compressed_ids"])
        assert v41_hasher().slots(ids, int(layer), history).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1, 99), min_size=2, max_size=24), st.integers(1, 23))
def test_hash_is_the_same_in_chunks(ids, cut):
    hasher, cut = small_hasher(), min(cut, len(ids) - 1)
    whole = hasher.slots(np.array(ids), 1)
    second = hasher.slots(np.array(ids[cut:]), 1, history=np.array(ids[:cut]))
    assert np.array_equal(whole[cut:], second)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 99_091), min_size=1, max_size=16))
def test_hash_never_wraps(ids):
    hasher = v41_hasher()
    multipliers = [int(m) for m in hasher.multipliers(14)]
    padded = [2, 2, 2, *ids]
    mix = 0
    for back in range(4):
        product = padded[-1 - back] * multipliers[back]
        assert product < 2**63
        mix ^= product
    expected = [mix % int(p) for p in hasher.primes(14)[2]]
    last = hasher.slots(np.array(ids), 14)[-1] - hasher.offsets(14)
    assert last[16:].tolist() == expected


def test_hash_in_torch_equals_numpy_for_any_batch():
    ids = np.random.default_rng(0).integers(-1, 100, size=(3, 2, 7))
    slots = small_hasher().slots(torch.from_numpy(ids), 3)
    assert isinstance(slots, torch.Tensor)
    assert np.array_equal(slots.numpy(), small_hasher().slots(ids, 3))


def test_hash_of_base_one_is_one_row_a_head():
    hasher = NgramHasher([1, 3], 3, 2, [1, 101], compressed_vocab_size=100, pad_id=2)
    assert hasher.primes(3)[0].tolist() == [1, 1]
    assert hasher.primes(1)[1].tolist() == small_hasher().primes(1)[0].tolist()
    slots = hasher.slots(np.arange(9), 3)
    assert (slots[:, :2] == [0, 1]).all() and (slots[:, 2:] >= 2).all()


def test_hash_of_no_positions():
    assert small_hasher().slots(np.empty((2, 0), dtype=np.int64), 1).shape == (2, 0, 4)


@pytest.mark.parametrize("bad", [[100], [-2], [5, 10**12]])
def test_hash_refuses_ids_out_of_range(bad):
    with pytest.raises(UsageError, match="outside the compressed vocabulary of 100"):
        small_hasher().slots(np.array(bad), 1)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layer_ids": [1, 1]}, "each layer once"),
        ({"layer_ids": [-1]}, "none negative"),
        ({"vocab_sizes": [101]}, "one base"),
        ({"vocab_sizes": [101, 0]}, "at least 1"),
        ({"pad_id": 100}, "pad_id 100"),
        ({"max_ngram_size": 1, "vocab_sizes": []}, "at least 2-grams"),
    ],
)
def test_hash_refuses_what_does_not_fit(change, message):
    given = dict(
        layer_ids=[1, 3],
        max_ngram_size=3,
        n_heads=2,
        vocab_sizes=[101, 101],
        compressed_vocab_size=100,
        pad_id=2,
    )
    with pytest.raises(UsageError, match=message):
        NgramHasher(**{**given, **change})


def test_hash_takes_any_array_of_integers():
    ids = np.arange(9)[::-1]  # a view with a negative stride
    ids.setflags(write=False)
    assert np.array_equal(small_hasher().slots(ids, 1), small_hasher().slots(ids.tolist(), 1))
    with pytest.raises(UsageError, match="give integers"):
        small_hasher().slots(np.array([1.5]), 1)


def test_hash_names_the_layers_that_have_a_memory():
    with pytest.raises(UsageError, match=r"layer 2 has no memory; layers with one: \[1, 3\]"):
        small_hasher().primes(2)
