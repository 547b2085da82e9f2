import numpy as np
import pytest

from engram_model.collisions import colliding_ngrams
from engram_model.errors import UsageError
from engram_model.hashing import NgramHasher


@pytest.fixture(scope="module")
def hasher():
    return NgramHasher(
        [1], 3, n_heads=2, vocab_sizes=[7, 5], compressed_vocab_size=200, pad_id=0, seed=3
    )


@pytest.fixture(scope="module")
def ids():
    ids = np.random.default_rng(0).integers(1, 200, 400)
    ids[100] = -1
    return ids


@pytest.mark.parametrize(("order", "heads"), [(2, 1), (2, 2), (3, 1), (3, 2)])
def test_collisions_are_those_of_the_hasher(hasher, ids, order, heads):
    ngram = tuple(ids[10 : 10 + order].tolist())
    columns = slice(2 * (order - 2), 2 * (order - 1))
    slots = lambda gram: hasher.slots(np.array(gram), 1)[-1, columns]  # noqa: E731
    found = colliding_ngrams(hasher, ids, ngram, 1, heads)
    for collision in found:
        end = collision.position + 1
        assert collision.ngram == tuple(ids[end - order : end].tolist()) != ngram
        same = np.flatnonzero(slots(collision.ngram) == slots(ngram))
        assert collision.heads == tuple(same) and len(same) >= heads
    others = {tuple(ids[i : i + order].tolist()) for i in range(len(ids) - order + 1)} - {ngram}
    expected = {o for o in others if -1 not in o and (slots(o) == slots(ngram)).sum() >= heads}
    assert {c.ngram for c in found} == expected and len(found) == len(expected) > 0
    assert [len(c.heads) for c in found] == sorted((len(c.heads) for c in found), reverse=True)


def test_wrong_use_gets_one_line(hasher, ids):
    for ngram, heads in (((1,), 1), ((1, 2, 3, 4), 1), ((1, 2), 3), ((1, 2), 0)):
        with pytest.raises(UsageError, match="the hasher has orders 2 to 3 and 2 heads"):
            colliding_ngrams(hasher, ids, ngram, 1, heads)
