"""Mutual nearest neighbours: a local likeness that outliers and scale do not move."""

import numpy as np


def neighbour_masks(features: np.ndarray, k: int) -> np.ndarray:
    """Features [layers, n, d] -> who the k nearest others of each sample are, bool [layers, n, n].

    Near means a large cosine.
    """
    features = features.astype(np.float32)
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    unit = features / np.maximum(norms, np.finfo(np.float32).tiny)
    masks = np.zeros((len(features), features.shape[1], features.shape[1]), dtype=bool)
    for mask, layer in zip(masks, unit, strict=True):
        cosine = layer @ layer.T
        np.fill_diagonal(cosine, -np.inf)
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        np.put_along_axis(mask, nearest, True, axis=1)
    return masks


def mutual_neighbours(rows: np.ndarray, columns: np.ndarray, k: int) -> np.ndarray:
    """Mean share of k nearest neighbours that two layers have in common.

    Args:
        rows, columns: [R, n, d] and [C, n, d'] features of the same n samples.
        k: neighbours of each sample, fewer than n.

    Returns:
        [R, C]; k / (n - 1) is what unrelated layers have. After Huh et al. 2024.
    """
    n = rows.shape[1]
    first = neighbour_masks(rows, k).reshape(len(rows), -1).astype(np.float32)
    second = neighbour_masks(columns, k).reshape(len(columns), -1).astype(np.float32)
    return first @ second.T / (n * k)
