"""Two models compared on the same documents and items, with several seeds of each.

The rule, fixed before any run: a difference is decided if its 95% interval leaves out zero. The
interval draws documents (or the people and phrases that items ask about) and seeds of both sides,
with replacement, the same documents for all. With three seeds a side it is still somewhat too
narrow: a spread over so few is found too small by a fifth.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engram_model.errors import UsageError
from engram_model.eval_folder import read_documents, read_folder
from engram_model.intervals import DRAWS

LABELS = ("tier", "asked", "hops", "relation", "split")
SAME = ("data", "suites", "facts", "items", "seed")  # options that must be equal


@dataclass(frozen=True)
class Difference:
    """Of one quantity, the first side minus the second.

    Attributes:
        what: the quantity: `loss`, nats a token, of a source or span; `accuracy` of a span's tokens
            or of a suite's items.
        first, second: means over seeds.
        difference, low, high: with its 95% interval.
        seeds_first, seeds_second: each seed's own value.
        units: documents, or people, phrases and documents that items ask about.
    """

    what: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    seeds_first: list[float]
    seeds_second: list[float]
    units: int

    @property
    def verdict(self) -> str:
        """`more`, `less` or `undecided`: whether the first side has more of it."""
        if self.low <= 0 <= self.high:
            return "undecided"
        return "more" if self.difference > 0 else "less"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True)
class _Sums:
    """Of one quantity in one evaluation: sums over the tokens or items of each unit."""

    units: list[str]
    sums: np.ndarray
    counts: np.ndarray


def compare(first: list[str | Path], second: list[str | Path], seed: int = 0) -> list[Difference]:
    """Every quantity that all evaluations have.

    Args:
        first, second: folders of `engram eval --out`, one a seed of the model.
        seed: of the draws.

    Raises:
        CheckpointError: a folder holds no finished evaluation.
        UsageError: they are not of the same documents, items and tokenizer.
    """
    sides = [[_quantities(folder) for folder in folders] for folders in (first, second)]
    _check([*first, *second], [found for side in sides for found in side])
    return [
        _difference(what, [[found[what] for found in side] for side in sides], seed)
        for what in sides[0][0]
    ]


def _check(folders: list[str | Path], found: list[dict[str, _Sums]]) -> None:
    options = [read_folder(folder)[0]["options"] for folder in folders]
    for folder, option, quantities in zip(folders, options, found, strict=True):
        for name in SAME:
            if option[name] != options[0][name]:
                raise UsageError(
                    f"{folder} was evaluated with {name} {option[name]}, "
                    f"{folders[0]} with {options[0][name]}"
                )
        for what, sums in found[0].items():
            other = quantities.get(what)
            if other is None or other.units != sums.units or (other.counts != sums.counts).any():
                raise UsageError(f"{folder} and {folders[0]} are not of the same texts: {what}")


def _quantities(folder: str | Path) -> dict[str, _Sums]:
    _, _, items = read_folder(folder)
    gathered: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for what, unit, total, count in [*_of_documents(folder), *_of_items(items)]:
        entry = gathered[what].setdefault(unit, [0.0, 0.0])
        entry[0] += total
        entry[1] += count
    return {
        what: _Sums(list(units), *np.array(list(units.values())).T)
        for what, units in gathered.items()
    }


Part = tuple[str, str, float, float]  # quantity, unit, sum, count


def _of_documents(folder: str | Path) -> Iterator[Part]:
    for number, document in enumerate(read_documents(folder)):
        unit = str(number)
        yield "loss, all", unit, document["loss"], document["tokens"]
        yield f"loss, {document['source']}", unit, document["loss"], document["tokens"]
        for field, names in document["spans"].items():
            for name, (tokens, right, loss) in names.items():
                yield f"loss, {field} {name}", unit, loss, tokens
                yield f"accuracy, {field} {name}", unit, right, tokens


def _of_items(items: list[dict[str, Any]]) -> Iterator[Part]:
    for item in items:
        what = f"accuracy, {item['suite']}"
        yield what, item["entity"], item["credit"], 1
        for label in LABELS:
            if item.get(label) is not None:
                yield f"{what}, {label} {item[label]}", item["entity"], item["credit"], 1


def _difference(what: str, sides: list[list[_Sums]], seed: int) -> Difference:
    values = [[float(sums.sums.sum() / sums.counts.sum()) for sums in side] for side in sides]
    drawn = [_draws(side, seed, which) for which, side in enumerate(sides)]
    low, high = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])
    first, second = (float(np.mean(of_side)) for of_side in values)
    size, interval = len(sides[0][0].units), (float(low), float(high))
    return Difference(what, first, second, first - second, *interval, values[0], values[1], size)


def _draws(side: list[_Sums], seed: int, which: int) -> np.ndarray:
    """[DRAWS] means over drawn seeds, each over the drawn units; the units are the same for both
    sides, the seeds are drawn for each."""
    size = len(side[0].units)
    units = np.random.default_rng(seed).integers(0, size, (DRAWS, size))
    seeds = np.random.default_rng([seed, which]).integers(0, len(side), (DRAWS, len(side)))
    counts = side[0].counts[units].sum(1)
    values = np.stack([sums.sums[units].sum(1) / counts for sums in side], 1)
    return np.take_along_axis(values, seeds, 1).mean(1)
