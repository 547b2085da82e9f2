"""Compression: the published normaliser vectors, and a map that any tokenizer gives."""

import json
from pathlib import Path

import numpy as np
import pytest

import engram_model as em
from engram_model.compression import compression_sha256, normalise

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "v41_vectors.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["normaliser_vectors"], ids=lambda v: repr(v["text"]))
def test_normaliser_equals_published(vector):
    assert (normalise(vector["text"]) or vector["text"]) == vector["key"]


def test_map_merges_what_reads_alike_and_nothing_else(tokenizer):
    table = em.compression_map(tokenizer)
    assert table.dtype == np.int64 and table.shape == (len(tokenizer),)
    by_token = {token: table[i] for token, i in tokenizer.get_vocab().items()}
    assert by_token["T"] == by_token["t"] and by_token["a"] != by_token["b"]
    assert len({int(table[i]) for i in (0, 1, 2)}) == 3  # specials stay apart
    assert sorted(set(table.tolist())) == list(range(table.max() + 1))
    first = [int(np.flatnonzero(table == new)[0]) for new in range(table.max() + 1)]
    assert first == sorted(first)  # ids in order of first use


def test_bytes_of_a_character_stay_apart(tokenizer):
    """Every raw byte of UTF-8 is its own token: none may fall together as 'undecodable'."""
    table = em.compression_map(tokenizer)
    vocabulary = tokenizer.get_vocab()
    high = [vocabulary[token] for token in ("Ã", "Ä", "Å") if token in vocabulary]
    assert len({int(table[i]) for i in high}) == len(high) > 1


def test_checksum_does_not_depend_on_storage():
    table = np.arange(9)
    assert compression_sha256(table) == compression_sha256(table.astype(np.int32))
    assert compression_sha256(table) != compression_sha256(table[::-1].copy())
