"""CKA of all pairs of layers against the algorithm of `torch_cka`."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from engram_model.bench.measure import Machine, Row
from engram_probes.hsic import HsicSums, hsic

LAYERS, SAMPLES, WIDTH, BATCHES = 12, 256, 512, 4


def all_pairs(machine: Machine) -> Iterator[Row]:
    """12 x 12 layers, batches of 256 samples, on the CPU."""
    layers, samples, width = (3, 32, 16) if machine.quick else (LAYERS, SAMPLES, WIDTH)
    rng = np.random.default_rng(0)
    common = rng.standard_normal((BATCHES, 1, samples, width))
    pair = [
        (common + rng.standard_normal((BATCHES, layers, samples, width))).astype(np.float32)
        for _ in range(2)
    ]
    functions = {
        "ours": lambda: HsicSums.total(map(hsic, *pair)).cka(),
        "pair by pair": lambda: pair_by_pair(*map(torch.from_numpy, pair)).numpy(),
    }
    ours, theirs = (function() for function in functions.values())
    difference = float(np.abs(ours - theirs).max())
    assert difference < 1e-4, f"the sides differ by {difference:.1e}"
    case = f"{layers} x {layers} layers, {BATCHES} batches of {samples}, {width} wide"
    notes = [f"largest difference of a CKA: {difference:.1e}"]
    host = Machine("cpu", machine.name, quick=machine.quick)
    yield host.row("all_pairs", case, functions, notes=notes).faster("pair by pair", 15)


def pair_by_pair(rows: Tensor, columns: Tensor) -> Tensor:
    """[batches, layers, samples, d] twice -> CKA [layers, layers], as `torch_cka` computes it: both
    Gram matrices of a pair made for that pair, three HSICs each, by products of n x n matrices."""
    sums = torch.zeros(rows.shape[1], columns.shape[1], 3)
    for one, other in zip(rows, columns, strict=True):
        for i, x in enumerate(one):
            first = _gram(x)
            sums[i, :, 0] += _hsic(first, first)
            for j, y in enumerate(other):
                second = _gram(y)
                sums[i, j, 1] += _hsic(first, second)
                sums[i, j, 2] += _hsic(second, second)
    return sums[..., 1] / (sums[..., 0].sqrt() * sums[..., 2].sqrt())


def _gram(features: Tensor) -> Tensor:
    return (features @ features.T).fill_diagonal_(0)


def _hsic(first: Tensor, second: Tensor) -> float:
    """The estimator of Song et al. 2012 as it is written."""
    n = len(first)
    ones = torch.ones(n, 1)
    value = torch.trace(first @ second).item()
    value += (ones.T @ first @ ones @ ones.T @ second @ ones).item() / ((n - 1) * (n - 2))
    value -= (ones.T @ first @ second @ ones).item() * 2 / (n - 2)
    return value / (n * (n - 3))
