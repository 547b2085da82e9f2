"""Debiased CKA: known values, another implementation, and what it must not depend on."""

from itertools import permutations

import numpy as np
import pytest

from engram_model.errors import UsageError
from engram_probes import linear_cka
from engram_probes.hsic import hsic, permuted, u_centred


def plain_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. 2012, as printed, by sums over indices."""
    n = len(k)
    k, m = k * (1 - np.eye(n)), m * (1 - np.eye(n))
    trace = sum(k[i, j] * m[j, i] for i in range(n) for j in range(n))
    total = k.sum() * m.sum() / ((n - 1) * (n - 2))
    both = sum(k[:, j].sum() * m[j, :].sum() for j in range(n))
    return (trace + total - 2 / (n - 2) * both) / (n * (n - 3))


def quadruples(k: np.ndarray, m: np.ndarray) -> float:
    """HSIC as the U-statistic it is: the mean over ordered quadruples of different samples."""
    terms = [
        k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(len(k)), 4)
    ]
    return float(np.mean(terms))


def plain_cka(x: np.ndarray, y: np.ndarray, size: int) -> float:
    kl = kk = ll = 0.0
    for start in range(0, len(x), size):
        a, b = x[start : start + size], y[start : start + size]
        if len(a) < 4:
            continue
        k, m = a @ a.T, b @ b.T
        kl, kk, ll = kl + plain_hsic(k, m), kk + plain_hsic(k, k), ll + plain_hsic(m, m)
    return kl / np.sqrt(kk * ll)


def related(samples: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features that share part of what they hold."""
    draw = np.random.default_rng(seed).normal
    shared = draw(size=(samples, 8))
    return tuple(
        shared @ draw(size=(8, width)) + 1.5 * draw(size=(samples, width)) for _ in range(2)
    )


def test_independent_features_are_not_alike():
    draw = np.random.default_rng(0).normal
    x, y = draw(size=(256, 1024)), draw(size=(256, 1024))
    assert abs(linear_cka(x, y)) < 0.02


@pytest.mark.parametrize(("samples", "size"), [(24, 24), (24, 8), (27, 8), (26, 8)])
def test_equals_the_printed_formula(samples, size):
    x, y = related(samples, 12)
    assert linear_cka(x, y, batch_size=size) == pytest.approx(plain_cka(x, y, size), abs=1e-10)


def test_equals_the_mean_over_quadruples():
    x, y = related(9, 5)
    found, k, m = hsic(x[None], y[None]), x @ x.T, y @ y.T
    assert found.cross[0, 0] == pytest.approx(quadruples(k, m), rel=1e-9)
    assert found.rows[0] == pytest.approx(quadruples(k, k), rel=1e-9)


def test_float32_features_lose_nothing_that_matters():
    """With an offset and one wide direction, as residual streams have."""
    x, y = (one + 50 for one in related(256, 64))
    x[:, 0] *= 30
    found = hsic(x.astype(np.float32)[None], y.astype(np.float32)[None]).cka()[0, 0]
    assert found == pytest.approx(linear_cka(x, y), abs=1e-6)


def test_batches_estimate_the_same_number():
    x, y = related(4096, 32)
    whole = linear_cka(x, y)
    assert 0.2 < whole < 0.9
    for size in (64, 256):
        assert linear_cka(x, y, batch_size=size) == pytest.approx(whole, abs=0.01)


def test_a_short_last_batch_is_dropped():
    x, y = related(35, 12)
    assert linear_cka(x, y, batch_size=16) == linear_cka(x[:32], y[:32], batch_size=16)
    assert linear_cka(x, y, batch_size=15) != linear_cka(x[:30], y[:30], batch_size=15)


def test_rotation_scale_and_shift_change_nothing():
    x, y = related(64, 16)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(16, 16)))
    assert linear_cka(3.5 * x @ turn + 7, 0.01 * y) == pytest.approx(linear_cka(x, y), abs=1e-9)
    assert linear_cka(x, x @ turn) == pytest.approx(1)


def test_shared_sink_rows_fake_likeness():
    """Why position 0 and special tokens are left out: debiasing does not help against them."""
    draw = np.random.default_rng(0).normal
    x, y = draw(size=(512, 64)), draw(size=(512, 64))
    x[:16] += 100
    y[:16] += 100
    assert linear_cka(x, y) > 0.95
    assert abs(linear_cka(x[16:], y[16:])) < 0.02


def test_null_is_the_hsic_of_permuted_samples():
    x, y = related(16, 6)
    drawn = next(permuted(u_centred(x[None]), u_centred(y[None]), 1, np.random.default_rng(5)))
    order = np.random.default_rng(5).permutation(16)
    expected = hsic(x[None], y[None, order]).cross
    np.testing.assert_allclose(drawn, expected, rtol=1e-5)


def test_features_that_do_not_vary_have_no_likeness():
    x, _ = related(16, 6)
    assert np.isnan(linear_cka(x, np.ones((16, 3))))


@pytest.mark.parametrize(
    ("x", "y", "size", "message"),
    [
        (np.ones((3, 2)), np.ones((3, 2)), None, "3 samples"),
        (np.ones((8, 2)), np.ones((8, 2)), 3, "batches of 3"),
        (np.ones((8, 2)), np.ones((7, 2)), None, "(7, 2)"),
        (np.ones(8), np.ones(8), None, "[samples, features]"),
    ],
)
def test_errors(x, y, size, message):
    with pytest.raises(UsageError) as error:
        linear_cka(x, y, batch_size=size)
    assert message in str(error.value) and "\n" not in str(error.value)
