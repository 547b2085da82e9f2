"""What a CPU does differently for speed changes nothing: long lines of tokens, huge pages."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engram_kernels import gather, lookup, ngram_slots
from engram_kernels.gather import lookup_unique
from engram_kernels.pages import advise
from engram_model.bench.cpu import numpy_slots
from engram_model.hashing import NgramHasher


@pytest.mark.parametrize("shape", [(1, 1), (1, 63), (1, 64), (3, 64), (2, 96), (0, 64), (5, 7)])
def test_slots_of_any_number_of_tokens(shape):
    """In lines of 64 tokens or one by one: as the public demo's NumPy code."""
    hasher = NgramHasher([4], 4, 3, [97, 1009, 2_262_000], 500, pad_id=2)
    made = (hasher.multipliers(4), hasher.primes(4).copy(), hasher.offsets(4))
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 500, shape))
    window = F.pad(ids, (3, 0), value=-1)
    slots = ngram_slots(window, *map(torch.as_tensor, made), 2)
    assert slots.is_contiguous()
    assert slots.tolist() == numpy_slots(ids.numpy(), *made, 2).tolist()
    assert torch.equal(slots, ngram_slots(window.int(), *map(torch.as_tensor, made), 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_large_results_on_huge_pages(dtype, index, monkeypatch):
    monkeypatch.setattr(gather, "MAPPED_BYTES", 1)
    advised = []
    monkeypatch.setattr(gather, "advise", lambda rows, how: advised.append(advise(rows, how)))
    table = torch.randn(70, 24).to(dtype)
    slots = torch.randint(0, 70, (3, 41, 5)).to(index)
    assert torch.equal(lookup(table, slots), F.embedding(slots, table)) and len(advised) == 1
    assert torch.equal(lookup_unique(table, slots), F.embedding(slots, table))
    assert lookup(table, slots[:0]).shape == (0, 41, 5, 24)
    with pytest.raises((IndexError, RuntimeError), match="range"):
        lookup(table, slots + 70)


def test_gradients_are_as_ever(monkeypatch):
    monkeypatch.setattr(gather, "MAPPED_BYTES", 1)
    table = torch.randn(9, 4, requires_grad=True)
    slots = torch.tensor([[1, 1, 8]])
    lookup(table, slots).sum().backward()
    assert table.grad.sum(-1).tolist() == [0, 8, 0, 0, 0, 0, 0, 0, 4]
    with torch.no_grad():
        assert not lookup(table, slots).requires_grad


def test_advice_the_system_does_not_know_is_not_given():
    advise(torch.zeros(3), "MADV_NOTHING")
    advise(torch.zeros(3), "MADV_HUGEPAGE")  # less than a page
