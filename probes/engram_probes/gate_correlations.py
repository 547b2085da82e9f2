"""Rank correlations of the gates with count, load and surprisal, each given the others."""

from typing import Any

import numpy as np

from engram_probes.bootstrap import interval
from engram_probes.gate_profiles import MEASURES, VARIABLES
from engram_probes.ngram_use import LOADS, TextUse
from engram_probes.rank_correlation import (
    TokenSample,
    centred_ranks,
    correlation,
    moments,
    partial,
)

PAIRS = ((1, 2), (0, 2), (0, 1))  # of VARIABLES: those held fixed for each


def features(values: np.ndarray, surprisal: np.ndarray, use: TextUse) -> np.ndarray:
    """What is kept of tokens: values [measure, L, M, p] and what may explain them, [p, F]."""
    parts = (values, surprisal, use.counts, use.loads, use.control)
    return np.concatenate([np.reshape(part, (-1, len(surprisal))) for part in parts]).T.astype(
        np.float32
    )


def correlations(
    sample: TokenSample, shape: tuple[int, int], orders: int, controls: int, blocks: int, seed: int
) -> dict[str, Any]:
    """Fields of a `GateProfile`: of each order and load, plain and partial, with their controls.

    Ranks are those among all tokens of the sample; a draw of the bootstrap does not rank anew.

    Args:
        shape: memory layers and streams.
    """
    layers, streams = shape
    of_block, kept = sample.features()
    sizes = (len(MEASURES) * layers * streams, 1, orders, len(LOADS) * orders * layers)
    ranks = centred_ranks(kept.T)
    values, surprisal, counts, loads, control = np.split(ranks, np.cumsum(sizes))
    values = values.reshape(len(MEASURES), layers, streams, -1)
    loads = loads.reshape(len(LOADS), orders, layers, -1)
    control = control.reshape(controls, *loads.shape)
    members = [of_block == block for block in range(blocks)]
    found = np.full((6, orders, len(LOADS), len(VARIABLES), len(MEASURES), *shape), np.nan)
    chance = np.full((2, orders, len(LOADS), len(MEASURES), *shape), np.nan)
    for order, load, layer in np.ndindex(orders, len(LOADS), layers):
        measured = values[:, layer].reshape(-1, len(of_block))
        columns = np.stack([*measured, counts[order], loads[load, order, layer], surprisal[0]])
        numbers = _with_interval(np.stack([moments(columns[:, m]) for m in members]), seed)
        place = (slice(None), order, load, slice(None), slice(None), layer)
        found[place] = numbers.reshape(6, len(VARIABLES), len(MEASURES), streams)
        if controls:
            others = [_partial_of_load(columns, other) for other in control[:, load, order, layer]]
            ends = np.percentile(others, [2.5, 97.5], axis=0)
            chance[:, order, load, :, layer] = ends.reshape(2, len(MEASURES), streams)
    names = ("spearman", "partial", "spearman_low", "partial_low", "spearman_high", "partial_high")
    fields = dict(zip(names, found, strict=True))
    return {**fields, "control_low": chance[0], "control_high": chance[1], "sampled": len(of_block)}


def _partial_of_load(columns: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Partial correlations [measured] with another load in the place of the load."""
    at = VARIABLES.index("load")
    replaced = columns.copy()
    replaced[at - len(VARIABLES)] = other
    return _both(moments(replaced))[1, at]


def _with_interval(sums: np.ndarray, seed: int) -> np.ndarray:
    """Sums by block -> plain and partial, their lows, their highs: [6, variable, measured]."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        return _both(np.tensordot(weights, sums, 1))

    low, high = interval(statistic, len(sums), seed)
    return np.concatenate([_both(sums.sum(0)), low, high])


def _both(sums: np.ndarray) -> np.ndarray:
    """Plain and partial correlations, [2, variable, measured]."""
    matrix = correlation(sums)
    first = len(matrix) - len(VARIABLES)  # columns: what was measured, then the variables
    which = [[column, *range(first, len(matrix))] for column in range(first)]
    apart = np.stack([matrix[np.ix_(columns, columns)] for columns in which])
    given = [tuple(1 + other for other in pair) for pair in PAIRS]
    partials = [partial(apart, 0, 1 + v, held) for v, held in enumerate(given)]
    return np.stack([matrix[first:, :first], np.stack(partials)])
