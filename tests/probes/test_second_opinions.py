"""Second opinions against SciPy, known features, and what chance gives."""

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes as scipy_procrustes
from scipy.spatial.distance import pdist
from scipy.stats import ortho_group, spearmanr

import engram_probes as ep
from engram_model.errors import UsageError
from engram_probes.alignment import soft_alignment
from engram_probes.second_opinions import measures, procrustes, rsa, second_opinions


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def graded(layers, samples, width, seed=0):
    """Layers of which neighbours are alike: each is the one before, a little of it redrawn."""
    generator = np.random.default_rng(seed)
    made = [generator.normal(size=(samples, width))]
    for _ in range(layers - 1):
        made.append(0.8 * made[-1] + 0.6 * generator.normal(size=(samples, width)))
    return np.stack(made)


@pytest.mark.parametrize("width", [7, 60])
def test_procrustes_is_scipys(width):
    x, y = drawn(30, 7), drawn(30, width, seed=1)
    unit = [one - one.mean(0) for one in (x, y)]
    first, second = (one / np.linalg.norm(one) for one in unit)
    wide = max(first.shape[1], second.shape[1])
    first, second = (np.pad(one, ((0, 0), (0, wide - one.shape[1]))) for one in (first, second))
    found = procrustes(x[None], y[None])[0, 0]
    assert found == pytest.approx(orthogonal_procrustes(first, second)[1], abs=1e-9)
    # SciPy's disparity lets one set be scaled, which leaves 1 less the square.
    assert 1 - found**2 == pytest.approx(scipy_procrustes(first, second)[2], abs=1e-9)


def test_rsa_is_scipys():
    x, y = graded(2, 40, 9)
    expected = spearmanr(pdist(x, "correlation"), pdist(y, "correlation")).statistic
    assert rsa(x[None], y[None])[0, 0] == pytest.approx(expected, abs=1e-5)


def test_all_are_one_for_a_turned_copy():
    """RSA compares a sample's features with their mean, which a rotation moves."""
    x = drawn(60, 12)
    turned = 3 * x @ ortho_group.rvs(12, random_state=0)
    near, shape, _ = measures(x[None], turned[None], 5)[:, 0, 0]
    assert (near, shape) == pytest.approx((1, 1), abs=1e-6)
    assert rsa(x[None], (3 * x + 1)[None])[0, 0] == pytest.approx(1, abs=1e-6)


def test_chance_is_measured_where_it_is_far_from_zero():
    """Independent features: Procrustes of 64 samples of 64 features is high, and so is its null."""
    found = second_opinions(drawn(1, 64, 64), drawn(1, 64, 64, seed=1), 8, np.random.default_rng(0))
    near, shape, ranks = found.value[:, 0, 0]
    assert shape > 0.6 and found.null_mean[1, 0, 0] == pytest.approx(shape, abs=0.02)
    assert near == pytest.approx(8 / 63, abs=0.03) and found.null_mean[0, 0, 0] == pytest.approx(
        8 / 63, abs=0.02
    )
    assert abs(ranks) < 0.1 and abs(found.null_mean[2, 0, 0]) < 0.03
    assert (found.null_high >= found.null_mean).all()
    np.testing.assert_allclose(found.above_chance(), 0, atol=0.1)


def test_a_planted_shift_is_found_by_each_with_an_interval():
    """Columns are the rows two layers on."""
    rows = graded(7, 120, 10)
    columns = rows[2:] + 0.3 * drawn(5, 120, 10, seed=3)
    found = second_opinions(rows, columns, 10, np.random.default_rng(0))
    value, low, high = found.soft(lambda matrix: soft_alignment(matrix, 1))
    np.testing.assert_allclose(value, np.broadcast_to(np.arange(2, 7), (3, 5)))
    value, low, high = found.soft(lambda matrix: soft_alignment(matrix, 3))
    assert (low < value).all() and (value < high).all() and (high - low < 0.5).all()
    assert (np.abs(value[:, 1:-1] - [3, 4, 5]) < 0.3).all()


def test_few_samples_have_no_interval():
    found = second_opinions(drawn(2, 20, 5), drawn(2, 20, 5), 3, np.random.default_rng(0))
    value, low, _ = found.soft(lambda matrix: soft_alignment(matrix, 1))
    assert np.isfinite(value).all() and np.isnan(low).all()


def test_a_layer_that_does_not_vary_is_like_none():
    constant = np.ones((1, 20, 5))
    _, shape, ranks = measures(drawn(1, 20, 5), constant, 3)[:, 0, 0]
    assert np.isnan(shape) and np.isnan(ranks)


def test_they_can_be_left_out(engram, twin, tokenizer, texts, alignment, tmp_path):
    result = ep.cka(
        engram, twin, tokenizer, texts, k=2, batch_size=8, permutations=0, second=False, sinks=False
    )
    opened = ep.load_result(result.save(tmp_path))
    assert "rsa" not in opened.to_frame() and "rsa" in alignment.to_frame()
    assert opened.rsa is None and "rsa" not in opened.summary()
    for what, message in (("rsa", "left out"), ("sinks", "left out"), ("cca", "has cka, ")):
        with pytest.raises(UsageError, match=message):
            opened.figure(what)
    assert np.isnan(opened.sink_change)


def test_a_model_is_itself_by_all_of_them(engram, tokenizer, texts):
    result = ep.cka(engram, engram, tokenizer, texts, k=1, batch_size=8, permutations=0)
    for name in ("neighbours", "procrustes", "rsa"):
        np.testing.assert_allclose(np.diag(getattr(result, name)), 1, atol=1e-5)
    np.testing.assert_allclose(result.second_soft, [[0, 1, 2]] * 3)
    assert "procrustes" in result.summary()
