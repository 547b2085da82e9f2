"""Second opinions on the likeness of layers: nearest neighbours, orthogonal Procrustes and RSA.

Each sees something else. Neighbours are local; Procrustes weighs every direction by its size, where
CKA weighs it by the square; RSA (Kriegeskorte, Mur and Bandettini 2008) compares the order of the
dissimilarities only. None is debiased: what unrelated layers give is measured, with the samples of
the columns permuted, and it is far from zero for Procrustes unless samples are many times features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

from engram_probes.bootstrap import divide
from engram_probes.hsic import permuted_products
from engram_probes.neighbours import mutual_neighbours, neighbour_masks

PERMUTATIONS = 20  # the 95th percentile of so many is the largest but one
GROUPS = 10  # of samples, each left out once for the interval
LEAST = 40  # samples below which there is no interval
NORMAL = 1.96


@dataclass(frozen=True, eq=False)
class SecondOpinions:
    """In the order of `alignment.SECOND`.

    value, null_mean, null_high [measure, R, C]; parts [group, measure, R, C]: without a group of
    the samples, none where samples are few."""

    value: np.ndarray
    null_mean: np.ndarray
    null_high: np.ndarray
    parts: np.ndarray

    def above_chance(self) -> np.ndarray:
        return above_chance(self.value, self.null_mean)

    def soft(self, centre: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, ...]:
        """`centre` of what is above chance, [measure, C], with its 95% interval.

        The interval is the jackknife's over groups of documents: a bootstrap draws documents twice,
        and a document is its own nearest neighbour.
        """
        value = centre(self.above_chance())
        if not len(self.parts):
            return value, np.full(value.shape, np.nan), np.full(value.shape, np.nan)
        parts = np.stack([centre(above_chance(part, self.null_mean)) for part in self.parts])
        spread = (len(parts) - 1) * np.mean((parts - parts.mean(0)) ** 2, 0)
        reach = NORMAL * np.sqrt(spread)
        return value, value - reach, value + reach


def above_chance(value: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """0 where a likeness is what chance gives, 1 where it is whole."""
    return divide(value - chance, 1 - chance)


def second_opinions(
    rows: np.ndarray, columns: np.ndarray, k: int, generator: np.random.Generator
) -> SecondOpinions:
    """All three for all pairs of layers: rows [R, n, d], columns [C, n, d'] of the same samples."""
    samples = rows.shape[1]
    null = null_of(rows, columns, k, generator)
    groups = np.arange(samples) % GROUPS if samples >= LEAST else np.zeros(0, int)
    parts = [
        measures(rows[:, groups != group], columns[:, groups != group], k)
        for group in np.unique(groups)
    ]
    return SecondOpinions(
        measures(rows, columns, k),
        null.mean(0),
        np.percentile(null, 95, axis=0),
        np.array(parts),
    )


def measures(rows: np.ndarray, columns: np.ndarray, k: int) -> np.ndarray:
    """[measure, R, C]."""
    return np.stack(
        [mutual_neighbours(rows, columns, k), procrustes(rows, columns), rsa(rows, columns)]
    )


def null_of(
    rows: np.ndarray, columns: np.ndarray, k: int, generator: np.random.Generator
) -> np.ndarray:
    """The same with the samples of the columns permuted, [permutation, measure, R, C]."""
    size = rows.shape[1] * k
    near = permuted_products(
        neighbour_masks(rows, k), neighbour_masks(columns, k), PERMUTATIONS, generator
    )
    ranks = permuted_products(
        dissimilarity_ranks(rows), dissimilarity_ranks(columns), PERMUTATIONS, generator
    )
    first, second = unit_shapes(rows), unit_shapes(columns)
    shapes = (
        nuclear_norms(first, second[:, generator.permutation(rows.shape[1])])
        for _ in range(PERMUTATIONS)
    )
    return np.array([[n / size, s, r] for n, s, r in zip(near, shapes, ranks, strict=True)])


def procrustes(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Likeness after the best rotation, for all pairs of layers: [R, n, d], [C, n, d'] -> [R, C].

    The nuclear norm of X'Y for X, Y centred and of Frobenius norm 1, that is 1 less half of their
    squared Procrustes distance. 1: equal up to rotation, reflection, scale and shift.
    """
    return nuclear_norms(unit_shapes(rows), unit_shapes(columns))


def rsa(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Spearman correlation of the dissimilarities (1 less Pearson's correlation of two samples'
    features) over all pairs of samples: [R, n, d], [C, n, d'] -> [R, C]."""
    return _flat(dissimilarity_ranks(rows)) @ _flat(dissimilarity_ranks(columns)).T


def unit_shapes(features: np.ndarray) -> np.ndarray:
    """Features [layers, n, d] centred and of norm 1; turned into n dimensions where d is larger."""
    features = features.astype(np.float64)
    features = features - features.mean(1, keepdims=True)
    if features.shape[2] > features.shape[1]:
        values, vectors = np.linalg.eigh(features @ features.transpose(0, 2, 1))
        features = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
    return divide(features, np.linalg.norm(features, axis=(1, 2), keepdims=True))


def nuclear_norms(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Sum of the singular values of X'Y: [R, n, d], [C, n, d'] -> [R, C]; NaN of a constant one."""
    norms = np.full((len(rows), len(columns)), np.nan)
    for (i, x), (j, y) in product(enumerate(rows), enumerate(columns)):
        if np.isfinite(x[0, 0]) and np.isfinite(y[0, 0]):
            norms[i, j] = np.linalg.svd(x.T @ y, compute_uv=False).sum()
    return norms


def dissimilarity_ranks(features: np.ndarray) -> np.ndarray:
    """Ranks of all pairs' dissimilarities, centred and of norm 1, symmetric [layers, n, n]."""
    from scipy.stats import rankdata

    n = features.shape[1]
    upper = np.triu_indices(n, 1)
    ranks = np.zeros((len(features), n, n), dtype=np.float32)
    for layer, features_of_layer in zip(ranks, features, strict=True):
        with np.errstate(invalid="ignore", divide="ignore"):
            distances = 1 - np.corrcoef(features_of_layer)
        ranked = rankdata(distances[upper])
        ranked -= ranked.mean()
        # Each pair stands twice in the matrix.
        layer[upper] = divide(ranked, np.sqrt(2) * np.linalg.norm(ranked))
        layer += layer.T
    return ranks


def _flat(matrices: np.ndarray) -> np.ndarray:
    return matrices.reshape(len(matrices), -1).astype(np.float32)
