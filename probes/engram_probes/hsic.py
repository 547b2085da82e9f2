"""Debiased linear CKA, whole or in minibatches.

CKA(X, Y) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X', L = Y Y'. HSIC is the unbiased
estimator of Song et al. 2012: with K~, L~ the Gram matrices without their diagonals,

    HSIC_1 = [tr(K~L~) + (1'K~1)(1'L~1) / ((n-1)(n-2)) - 2/(n-2) 1'K~L~1] / (n (n-3)),

computed here as the mean product of the two U-centred matrices (Székely and Rizzo 2014), which is
the same number and makes many pairs one matrix product. In minibatches the three HSICs are summed
over batches before the ratio is taken (Nguyen, Raghu and Kornblith 2021). Ratios of batches are
never averaged; that would be biased. The debiased number can be slightly negative.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from engram_model.errors import UsageError
from engram_probes.bootstrap import divide

MIN_SAMPLES = 4


def linear_cka(x, y, batch_size: int | None = None) -> float:
    """Debiased linear CKA of two sets of features of the same samples.

    Args:
        x, y: arrays [samples, features]; the numbers of features may differ.
        batch_size: samples a batch; None: all at once. In batches the same number is estimated;
            a last batch of fewer than 4 samples is dropped.

    Returns:
        1 for features equal up to rotation and scale, about 0 for independent ones (it may be
        slightly negative), NaN where a set of features is constant.

    Raises:
        UsageError: shapes that do not fit, or fewer than 4 samples in all or in a batch.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise UsageError(
            f"x has shape {x.shape} and y {y.shape}; give two arrays [samples, features] of the "
            "same samples"
        )
    size = len(x) if batch_size is None else batch_size
    if min(size, len(x)) < MIN_SAMPLES:
        raise UsageError(
            f"{len(x)} samples in batches of {size}: debiased CKA needs {MIN_SAMPLES} a batch"
        )
    starts = range(0, len(x) - MIN_SAMPLES + 1, size)
    sums = HsicSums.total(hsic(x[None, i : i + size], y[None, i : i + size]) for i in starts)
    return float(sums.cka()[0, 0])


@dataclass(frozen=True)
class HsicSums:
    """HSICs of R row layers with C column layers, summed over batches.

    cross: [R, C]; rows: of each row layer with itself, [R]; columns: [C].
    """

    cross: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    @classmethod
    def total(cls, parts: Iterable["HsicSums"]) -> "HsicSums":
        first, *rest = parts
        for part in rest:
            first = first + part
        return first

    def __add__(self, other: "HsicSums") -> "HsicSums":
        return HsicSums(
            self.cross + other.cross, self.rows + other.rows, self.columns + other.columns
        )

    def cka(self) -> np.ndarray:
        """[R, C], NaN where a layer does not vary."""
        return cka_ratio(self.cross, self.rows, self.columns)


def cka_ratio(cross: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Summed HSICs [..., R, C], [..., R], [..., C] -> CKA [..., R, C]."""
    rows, columns = np.sqrt(np.maximum(rows, 0)), np.sqrt(np.maximum(columns, 0))
    return divide(cross, rows[..., :, None] * columns[..., None, :])


def hsic(rows: np.ndarray, columns: np.ndarray) -> HsicSums:
    """HSICs of one batch: rows [R, n, d], columns [C, n, d'] of the same n samples."""
    return hsic_of_centred(u_centred(rows), u_centred(columns))


def hsic_of_centred(rows: np.ndarray, columns: np.ndarray) -> HsicSums:
    """The same of what `u_centred` gives, [R, n, n] and [C, n, n]."""
    n = rows.shape[1]
    scale = n * (n - 3)
    return HsicSums(
        _products(rows, columns) / scale,
        np.array([_products(one[None], one[None])[0, 0] for one in rows]) / scale,
        np.array([_products(one[None], one[None])[0, 0] for one in columns]) / scale,
    )


def _products(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Sums of products [R, C], of [R, n, n] and [C, n, n]: a sample at a time in their own
    precision, over samples in float64."""
    rows, columns = rows.transpose(1, 0, 2), columns.transpose(1, 2, 0)
    return (rows @ columns).sum(0, dtype=np.float64)


def u_centred(features: np.ndarray) -> np.ndarray:
    """Features [layers, n, d] -> U-centred Gram matrices [layers, n, n].

    K~ less its row and column means plus its overall mean, with the divisors n-2 and (n-1)(n-2)
    that make the products unbiased; the diagonal is zero. Features of float32 stay so (half the
    time, an error of some 1e-7 in CKA); means are of float64. Layer by layer, so that a matrix
    stays in the cache.
    """
    features = features.astype(np.result_type(features, np.float32), copy=False)
    n = features.shape[1]
    centred = np.empty((len(features), n, n), features.dtype)
    for layer, gram in zip(features, centred, strict=True):
        layer = layer - layer.mean(0)  # changes nothing but the rounding
        np.matmul(layer, layer.T, out=gram)
        np.fill_diagonal(gram, 0)
        sums = gram.sum(1, dtype=np.float64)
        means = sums / (n - 2) - sums.sum() / (2 * (n - 1) * (n - 2))
        means = means.astype(gram.dtype)
        gram -= means[:, None]
        gram -= means
        np.fill_diagonal(gram, 0)
    return centred


def permuted(
    rows: np.ndarray, columns: np.ndarray, permutations: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Null of a batch: HSIC [R, C] with the column samples in random order, `permutations` times.

    U-centring commutes with a permutation of the samples, so only rows and columns are reordered.
    """
    n = rows.shape[1]
    for products in permuted_products(rows, columns, permutations, generator):
        yield products / (n * (n - 3))


def permuted_products(
    rows: np.ndarray, columns: np.ndarray, permutations: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Sums of products [R, C] of matrices of pairs of samples, [R, n, n] and [C, n, n], with the
    samples of the columns in random order. In float32: chance needs no more."""
    n = rows.shape[1]
    flat = rows.reshape(len(rows), -1).astype(np.float32)
    # Pairs first: what is gathered for one pair lies together.
    pairs = np.ascontiguousarray(columns.reshape(len(columns), -1).T, dtype=np.float32)
    for _ in range(permutations):
        order = generator.permutation(n)
        shuffled = pairs[(order[:, None] * n + order).ravel()]
        yield (flat @ shuffled).astype(np.float64)
