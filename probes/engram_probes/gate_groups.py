"""Groups of tokens that gates are averaged over: by their text, and by the n-grams that end there.

A group has a kind; groups of a kind stand in order, and a token is in one of them at most.
"""

from typing import NamedTuple

import numpy as np

from engram_probes.ngram_use import FIFTHS, LOADS, TextUse
from engram_probes.strata import MECHANISMS

TIERS = (0, 1, 4, 16, 64, 256)
SURPRISALS = ((0.0, 0.1), (0.1, 1.0), (1.0, 4.0), (4.0, np.inf))  # nats
COUNTS = (0, 1, 2, 4, 16, 64, 256)  # the least of each band
SHARES = (0.0, 0.001, 0.01, 0.1, 0.5)
LOADED = {"tenants": "other n-grams in its rows", "reads": "others' reads of its rows"}


class Group(NamedTuple):
    kind: str
    name: str


def _surprisal(low: float, high: float) -> str:
    return f"{low:g} to {high:g}" if high < np.inf else f"over {low:g}"


TEXT_GROUPS = (
    *(Group("mechanism", f"mechanism {name}") for name in MECHANISMS),
    *(Group("name", f"end of a name, tier {tier}") for tier in TIERS),
    *(Group("surprisal", f"next token's surprisal {_surprisal(*band)}") for band in SURPRISALS),
)


def ngram_groups(orders: tuple[int, ...]) -> tuple[Group, ...]:
    """Of each order: bands of the count, of the own share, and fifths of each load."""
    found: list[Group] = []
    for order in orders:
        bands = {
            "count": [f"seen {band}" for band in _bands(COUNTS)],
            "own share": [
                f"own share {low:g} to {high:g}"
                for low, high in zip(SHARES, (*SHARES[1:], 1), strict=True)
            ],
            **{
                load: [f"{LOADED[load]}: fifth {n + 1} of {FIFTHS}" for n in range(FIFTHS)]
                for load in LOADS
            },
        }
        for kind, names in bands.items():
            found += [Group(f"{order}-gram {kind}", f"{order}-gram, {name}") for name in names]
    return tuple(found)


def _bands(least: tuple[int, ...]) -> list[str]:
    ends = (*(low - 1 for low in least[1:]), None)
    names = []
    for low, high in zip(least, ends, strict=True):
        names.append(
            f"{low} on" if high is None else f"{low}" if low == high else f"{low} to {high}"
        )
    return names


def text_members(mechanisms: list, tiers: list, surprisal: np.ndarray) -> np.ndarray:
    """bool [TEXT_GROUPS, p]."""
    return np.array(
        [
            *(np.array(mechanisms, dtype=object) == name for name in MECHANISMS),
            *(np.array(tiers, dtype=object) == tier for tier in TIERS),
            *((surprisal >= low) & (surprisal < high) for low, high in SURPRISALS),
        ]
    )


def ngram_members(use: TextUse, fifths: np.ndarray) -> np.ndarray:
    """bool [groups, L, p] in the order of `ngram_groups`.

    Args:
        fifths: inner edges, [load, O, L, FIFTHS - 1].
    """
    members: list[np.ndarray] = []
    for order, counts in enumerate(use.counts):
        share, seen = use.own_share[order], counts > 0
        band = np.broadcast_to(np.digitize(counts, COUNTS[1:]), share.shape)
        members += [band == n for n in range(len(COUNTS))]
        band = np.where(seen, np.digitize(share, SHARES[1:]), -1)
        members += [band == n for n in range(len(SHARES))]
        for loads, edges in zip(use.loads[:, order], fifths[:, order], strict=True):
            pairs = zip(loads, edges, strict=True)
            band = np.stack([np.digitize(load, edge) for load, edge in pairs])
            members += [band == n for n in range(FIFTHS)]
    return np.array(members)
