"""Logistic regression under control: grouped cross-validation, a control task, an online code."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # C of scikit-learn: the inverse of the penalty
INNER_FOLDS = 3
CONTROLS = 3  # control tasks; their accuracies are averaged
# Shares of the data after which the online code learns anew (Voita and Titov 2020).
PORTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
ITERATIONS = 500


@dataclass(frozen=True, eq=False)
class Split:
    """Indices of one outer fold; `inner` splits of its training part choose the strength."""

    train: np.ndarray
    test: np.ndarray
    inner: list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Design:
    """What all feature sets are asked alike.

    labels: int64 [n]. controls: labels of each control task, int64 [n]. order: of the online code,
    whole groups one after the other. ends: positions in `order` at which a portion ends.
    """

    labels: np.ndarray
    controls: list[np.ndarray]
    classes: int
    splits: list[Split]
    order: np.ndarray
    ends: list[int]


@dataclass(eq=False)
class Reading:
    """What one feature set gave at each position.

    right: 0 or 1, out of fold, [n]. control_right: the mean over control tasks, [n]. bits: of the
    online code, [n]. strengths: C chosen in each outer fold. unconverged: fits that reached the
    limit of iterations.
    """

    right: np.ndarray
    control_right: np.ndarray
    bits: np.ndarray
    strengths: list[float] = field(default_factory=list)
    unconverged: int = 0


def make_design(
    labels: np.ndarray,
    groups: np.ndarray,
    token_ids: np.ndarray,
    classes: int,
    folds: int,
    seed: int,
) -> Design:
    """Splits, control labels and order, all from the seed."""
    generator = np.random.default_rng([seed, 3])
    order = _whole_groups(groups, generator)
    return Design(
        labels=labels,
        controls=[control_labels(labels, token_ids, generator) for _ in range(CONTROLS)],
        classes=classes,
        splits=make_splits(labels, groups, folds, seed),
        order=order,
        ends=_ends(groups[order]),
    )


def make_splits(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> list[Split]:
    """Outer folds, and inner ones within each training part; no group is on both sides of any."""
    splits = []
    for train, test in _folds(labels, groups, folds, seed):
        inner = _folds(labels[train], groups[train], INNER_FOLDS, seed)
        splits.append(Split(train, test, [(train[a], train[b]) for a, b in inner]))
    return splits


def _folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> list:
    from sklearn.model_selection import StratifiedGroupKFold

    folds = min(folds, len(np.unique(groups)))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a rare class need not be in every inner fold
        warnings.simplefilter("ignore", UserWarning)
        return list(splitter.split(labels, labels, groups))


def control_labels(
    labels: np.ndarray, token_ids: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """A random label for each word type, so that the classes are about as frequent as in `labels`.

    A word type is a token id. Common types are drawn first, each from what is left of the classes:
    independent draws would give a few common types, and with them half the positions, to one class.
    Source: Hewitt and Liang 2019, section 2.
    """
    types, which, counts = np.unique(token_ids, return_inverse=True, return_counts=True)
    left = np.bincount(labels).astype(np.float64)
    drawn = np.zeros(len(types), dtype=np.int64)
    for one in np.lexsort((generator.random(len(types)), -counts)):
        fits = left >= counts[one]
        weights = np.where(fits, left, 0) if fits.any() else left == left.max()
        drawn[one] = generator.choice(len(left), p=weights / weights.sum())
        left[drawn[one]] -= counts[one]
    return drawn[which]


def _whole_groups(groups: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    rank = generator.permutation(int(groups.max()) + 1)[groups]
    return np.argsort(rank, kind="stable")


def _ends(groups: np.ndarray) -> list[int]:
    """Where each portion ends, at the end of a group: what codes must not have seen the group."""
    last = np.flatnonzero(np.append(groups[1:] != groups[:-1], True)) + 1
    wanted = [min(len(groups), max(1, round(share * len(groups)))) for share in PORTIONS]
    return sorted({int(last[np.searchsorted(last, end)]) for end in wanted})


def read(features: Any, design: Design) -> Reading:
    """Cross-validate, do the same with control labels, and code the labels online.

    Args:
        features: [n, d], dense (then standardised) or a sparse one-hot (left as it is).
    """
    reading = Reading(*np.zeros((3, len(design.labels))))
    for split in design.splits:
        strength = _choose(features, design, split, reading)
        reading.strengths.append(strength)

        def right(labels: np.ndarray, split: Split = split, strength: float = strength):
            [p] = _fit(features, labels, split.train, split.test, [strength], design, reading)
            return p.argmax(-1) == labels[split.test]

        reading.right[split.test] = right(design.labels)
        reading.control_right[split.test] = np.mean([right(c) for c in design.controls], axis=0)
    reading.bits[design.order] = _online_bits(features, design, reading)
    return reading


def _choose(features: Any, design: Design, split: Split, reading: Reading) -> float:
    """The strength with the least cross-entropy in the inner folds."""
    losses = np.zeros(len(STRENGTHS))
    for train, test in split.inner:
        found = _fit(features, design.labels, train, test, STRENGTHS, design, reading)
        losses += [_bits(p, design.labels[test]).sum() for p in found]
    return STRENGTHS[int(np.argmin(losses))]


def _online_bits(features: Any, design: Design, reading: Reading) -> np.ndarray:
    """Bits of each label in the order of the code, [n].

    The first portion costs log2 K a label; each later one is coded by a probe that has learnt all
    before it. Its strength is the one that would have coded the past best, so nothing is known
    beforehand.
    """
    order, bits = design.order, np.zeros(len(design.order))
    bits[: design.ends[0]] = np.log2(design.classes)
    past = np.zeros(len(STRENGTHS))
    for start, end in zip(design.ends, design.ends[1:], strict=False):
        found = _fit(features, design.labels, order[:start], order[start:end], STRENGTHS, design,
                     reading)  # fmt: skip
        costs = np.stack([_bits(p, design.labels[order[start:end]]) for p in found])
        bits[start:end] = costs[int(np.argmin(past))]
        past += costs.sum(-1)
    return bits


def _bits(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -np.log2(probabilities[np.arange(len(labels)), labels])


def _fit(
    features: Any,
    labels: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    strengths: Any,
    design: Design,
    reading: Reading,
) -> list[np.ndarray]:
    """Probabilities of the test positions, [test, K], for each strength.

    They are smoothed as if each class had been seen once more by chance, (m p + 1) / (m + K) after
    m examples: a class that was not seen has a probability, and no label costs more than
    log2(m + K) bits.
    """
    from sklearn.linear_model import LogisticRegression

    seen, m = np.unique(labels[train]), len(train)
    x, unseen = _scaled(features[train], features[test])
    # Each strength begins where the one before it ended.
    model = LogisticRegression(max_iter=ITERATIONS, tol=1e-3, warm_start=True)
    found = []
    for strength in strengths:
        p = np.zeros((len(test), design.classes))
        if len(seen) == 1:
            p[:, seen] = 1
        else:
            model.C = strength
            with warnings.catch_warnings():  # counted instead
                warnings.simplefilter("ignore")
                model.fit(x, labels[train])
            reading.unconverged += int(model.n_iter_.max() >= ITERATIONS)
            p[:, seen] = model.predict_proba(unseen)
        found.append((m * p + 1) / (m + design.classes))
    return found


def _scaled(train: Any, test: Any) -> tuple[Any, Any]:
    """Standardised by the training part; a one-hot stays as it is: rare columns would explode."""
    from sklearn.preprocessing import StandardScaler

    if not isinstance(train, np.ndarray):
        return train, test
    scaler = StandardScaler().fit(train)
    return scaler.transform(train), scaler.transform(test)
