"""What brings an answer about: nodes patched from one text into another, memories among them."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engram_model.errors import UsageError
from engram_probes.bootstrap import divide, ratio_interval
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

DIRECTIONS = ("denoising", "noising")
STEPS = 8
DRAWS = 20
WRITERS = ("embed", "attention", "mlp", "memory")  # kinds of nodes that do not nest
ROLES = ("inside", "end of change", "between", "last")
WHATS = ("exact", "estimate")
NOTHING = 1e-4  # logits; rounding of a patch that changes nothing
VIEWS = ("heatmap", "bars", "check")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AttributionPatching(Result):
    """Pairs I, nodes N, places P, draws D of the null.

    Attributes:
        clean, corrupted: tokens of the two texts as shown, for one pair; () for several.
        target, against: what follows each of them as shown, for one pair; "" for several.
        direction: `denoising`: from the clean run into the corrupted; `noising`: the reverse.
        steps: points at which gradients are taken; 1: at the patched run alone.
        nodes, kinds, layers: label, kind and layer of each node; -1 is the embedding's layer.
            Nodes nest: `row` in `rows`, these and `gate` act through `memory`, `head` through
            `attention`. `WRITERS` do not.
        places: for one pair the tokens from the first that differs on; else `ROLES`.
        positions: of each place, for one pair; -1 for several pairs.
        metric: [I, 2] logit of target less logit of against, in the clean and the corrupted run.
        estimate, exact: what patching a node at a place adds to the metric, [I, N, P]; NaN where a
            pair has no such place, and in `exact` where it was not measured.
        null_estimate, null_exact: the same from texts that are about neither, [D, N, P].
        null_pairs: [D] the pair whose run was patched.
        chosen: why the exact effect was measured, [N, P]: 0 it was not, 1 the estimate is among
            the largest, 2 drawn at random, 3 all were.
        tried: pairs that were read; those with an answer the model does not give are left out.
    """

    kind: ClassVar[str] = "patch"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "layers": ("node",),
        "positions": ("place",),
        "metric": ("pair", "run"),
        "estimate": ("pair", "node", "place"),
        "exact": ("pair", "node", "place"),
        "null_estimate": ("draw", "node", "place"),
        "null_exact": ("draw", "node", "place"),
        "null_pairs": ("draw",),
        "chosen": ("node", "place"),
    }
    units: ClassVar[dict[str, str]] = {
        name: "logits" for name in ("metric", "estimate", "exact", "null_estimate", "null_exact")
    }

    clean: tuple[str, ...]
    corrupted: tuple[str, ...]
    target: str
    against: str
    direction: str
    steps: int
    nodes: tuple[str, ...]
    kinds: tuple[str, ...]
    places: tuple[str, ...]
    tried: int
    layers: np.ndarray
    positions: np.ndarray
    metric: np.ndarray
    estimate: np.ndarray
    exact: np.ndarray
    null_estimate: np.ndarray
    null_exact: np.ndarray
    null_pairs: np.ndarray
    chosen: np.ndarray

    @property
    def pairs(self) -> int:
        return len(self.metric)

    @property
    def gap(self) -> float:
        """Mean change of the metric if everything is patched; its sign is the direction's."""
        gap = float((self.metric[:, 0] - self.metric[:, 1]).mean())
        return gap if self.direction == "denoising" else -gap

    def mean(self, what: str = "exact") -> np.ndarray:
        """[N, P]: mean over pairs, logits."""
        self._check(what)
        return _mean(getattr(self, what))

    def interval(self, what: str = "exact") -> tuple[np.ndarray, np.ndarray]:
        """95% interval of `mean`, low and high [N, P], by drawing pairs; NaN for one pair."""
        self._check(what)
        return self._intervals[what]

    def null(self, what: str = "exact") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean and interval [N, P] from texts about neither.

        Of several pairs the interval of the mean; of one pair where 95% of the draws are.
        """
        self._check(what)
        return _mean(getattr(self, f"null_{what}")), *self._intervals[f"null_{what}"]

    def beyond_null(self, what: str = "exact") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Effect less that of the null, pair by pair: mean and interval [N, P], as `null`'s.

        What is left is due to what the text says of its own subject.
        """
        self._check(what)
        return _mean(self._beyond(what)), *self._intervals[f"beyond_{what}"]

    @cached_property
    def _intervals(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        found = {}
        for what in WHATS:
            found[what] = self._drawn(getattr(self, what))
            found[f"null_{what}"] = self._drawn(getattr(self, f"null_{what}"))
            found[f"beyond_{what}"] = self._drawn(self._beyond(what))
        return found

    def _drawn(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.pairs == 1 and len(values) > 1:  # draws of the null
            low, high = np.percentile(values, [2.5, 97.5], axis=0)
            return low, high
        known = np.isfinite(values)
        return ratio_interval(np.where(known, values, 0), known, self.provenance.seed or 0)

    def _beyond(self, what: str) -> np.ndarray:
        return getattr(self, what)[self.null_pairs] - getattr(self, f"null_{what}")

    def agreement(self) -> dict[str, Any]:
        """How good the estimate is, cell by cell (node and place) of every pair.

        `correlation` (Pearson), `rank_correlation` and `slope` of exact on estimate are of the
        cells drawn at random, or of all if all were measured: of the largest alone they would
        flatter. Cells that hold the same in both runs are left out. `largest_error` is of all
        measured, in logits, at `where`. `missing` is by how much the estimates of all inputs,
        embedding and rows, miss the change of the metric if all are patched, as a share of it;
        integrated gradients bring it to zero.
        """
        from scipy.stats import pearsonr, spearmanr

        patched = (self.estimate != 0) | (np.abs(self.exact) > NOTHING)
        fair = (self.chosen >= 2) & np.isfinite(self.exact) & patched
        estimate, exact = self.estimate[fair], self.exact[fair]
        varied = len(exact) > 2 and np.ptp(estimate) > 0 and np.ptp(exact) > 0
        error = np.where(np.isfinite(self.exact), np.abs(self.estimate - self.exact), -1)
        pair, node, place = np.unravel_index(np.argmax(error), error.shape)
        square = float((estimate**2).sum())
        return {
            "cells": len(exact),
            "correlation": float(pearsonr(estimate, exact)[0]) if varied else np.nan,
            "rank_correlation": float(spearmanr(estimate, exact)[0]) if varied else np.nan,
            "slope": float((estimate * exact).sum()) / square if square else np.nan,
            "largest_error": float(error[pair, node, place]),
            "where": f"{self.nodes[node]} at {self.places[place]}",
            "missing": self._missing(),
        }

    def _missing(self) -> float:
        inputs = np.isin(self.kinds, ("embed", "rows"))
        return float(np.nansum(self.estimate[:, inputs]) / self.pairs / self.gap - 1)

    def shares(self) -> dict[str, float]:
        """Of the sizes of the mean effects of all `WRITERS` at all places, each kind's part.

        Exact where all were measured, else estimated. Effects are of one node at a time: they
        overlap along paths and do not sum to the gap.
        """
        sizes = np.abs(np.nan_to_num(self.mean(self.best)))
        kinds = np.array(self.kinds)
        total = sizes[np.isin(kinds, WRITERS)].sum()
        return {
            kind: float(sizes[kinds == kind].sum() / total) if total else 0.0
            for kind in WRITERS
            if kind in self.kinds
        }

    @property
    def best(self) -> str:
        """`exact` where every effect was measured, else `estimate`."""
        return "exact" if (self.chosen == 3).all() else "estimate"

    def strongest(self, most: int = 5, what: str | None = None) -> list[tuple[int, int]]:
        """Node and place of the largest mean effects of `WRITERS`, the largest first."""
        values = np.abs(np.nan_to_num(self.mean(what or self.best)))
        values[~np.isin(self.kinds, WRITERS)] = -1
        order = np.argsort(-values, axis=None, kind="stable")[:most]
        nodes, places = np.unravel_index(order, values.shape)
        return list(zip(nodes.tolist(), places.tolist(), strict=True))

    def facts(self) -> dict:
        agreement = self.agreement()
        found = agreement["correlation"]
        return {
            "model": self.provenance.models[0]["name"],
            "pairs": self.pairs,
            "gap": round(self.gap, 3),
            "memory": round(self.shares().get("memory", 0.0), 3),
            **({"correlation": round(found, 3)} if np.isfinite(found) else {}),
            "largest_error": round(agreement["largest_error"], 3),
        }

    def summary(self) -> str:
        values = self.mean(self.best)
        told = "measured" if self.best == "exact" else "estimated"
        null = self.null(self.best)[0]
        largest = ", ".join(
            f"{self.nodes[n]} at {self.places[p]} {values[n, p]:+.2f} ({null[n, p]:+.2f})"
            for n, p in self.strongest(3)
        )
        of = "one pair" if self.pairs == 1 else f"{self.pairs} of {self.tried} pairs"
        share = self.shares().get("memory")
        memory = "" if share is None else f"; memories have {share:.0%} of all effects' size"
        return (
            f"Patched one by one ({self.direction}, {of}), nodes {told} to do most of the "
            f"{self.gap:+.2f} logits between the runs, and in brackets what a text about neither "
            f"does there: {largest}{memory}. {self._checked()}."
        )

    def _checked(self) -> str:
        found = self.agreement()
        error = f"off by {found['largest_error']:.2f} logits at most ({found['where']})"
        if not np.isfinite(found["correlation"]):
            return f"Estimates from gradients are {error}"
        return (
            f"Estimates from gradients correlate {found['correlation']:.2f} with exact effects of "
            f"{found['cells']:,} cells and are {error}"
        )

    def to_frame(self) -> "pandas.DataFrame":
        """A row for each node and place: means, intervals and null, in logits."""
        import pandas as pd

        nodes, places = np.indices(self.chosen.shape).reshape(2, -1)
        columns: dict[str, Any] = {
            "node": np.array(self.nodes)[nodes],
            "kind": np.array(self.kinds)[nodes],
            "layer": self.layers[nodes],
            "place": np.array(self.places)[places],
            "position": self.positions[places],
        }
        for what in WHATS:
            low, high = self.interval(what)
            beyond, beyond_low, beyond_high = self.beyond_null(what)
            columns |= {
                what: self.mean(what).ravel(),
                f"{what}_low": low.ravel(),
                f"{what}_high": high.ravel(),
                f"{what}_null": self.null(what)[0].ravel(),
                f"{what}_beyond": beyond.ravel(),
                f"{what}_beyond_low": beyond_low.ravel(),
                f"{what}_beyond_high": beyond_high.ravel(),
            }
        return pd.DataFrame({**columns, "chosen": self.chosen.ravel()})

    def figure(
        self, view: str = "heatmap", what: str | None = None, rows: bool = False
    ) -> "plotly.graph_objects.Figure":
        """Nodes by places, the strongest cells as bars, or estimates against exact effects.

        Args:
            view: `heatmap`, `bars` or `check`.
            what: `exact` or `estimate`; None: exact where all were measured.
            rows: the heatmap has a row for each of a memory's rows, too.
        """
        from engram_probes.figures.patching import patching_figure

        if view not in VIEWS:
            raise UsageError(f"no view {view!r}; there are {', '.join(VIEWS)}")
        self._check(what or self.best)
        return patching_figure(self, view, what or self.best, rows)

    def _check(self, what: str) -> None:
        if what not in WHATS:
            raise UsageError(f"no values {what!r}; there are {' and '.join(WHATS)}")


def _mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return divide(np.where(known, values, 0).sum(0), known.sum(0))


def attribution_patching(
    model,
    tokenizer,
    clean: Any,
    corrupted: str | None = None,
    target: str | int | None = None,
    against: str | int | None = None,
    *,
    direction: str = "denoising",
    steps: int = STEPS,
    heads: bool = False,
    check: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    progress: Any = None,
) -> AttributionPatching:
    """Which nodes carry what makes one text go on otherwise than another, memories among them.

    A node is patched: it is given the value it has in the other text's run. The effect on the
    metric, logit of target less logit of against at the last position, is estimated for all nodes
    by gradients (attribution patching, EAP-IG) and measured by doing it.

    Args:
        model: an `EngramForCausalLM`, a bridge of one, or another model that TransformerLens knows.
        tokenizer: its tokenizer.
        clean: a text, or several pairs: records with `clean`, `corrupted`, `target` and `against`,
            or what `engram_model.tasks.world_pairs` gives.
        corrupted: as many tokens as `clean`.
        target, against: how each goes on, as text or token id; where several tokens begin alike,
            these are read and the first that differs counts. None: the likeliest next token.
        direction: `denoising`: values of the clean run go into the corrupted one, and what is
            enough to bring the answer back has a large effect; `noising`: the reverse, and what
            the answer cannot do without has.
        steps: points of the integrated gradient; 1: the gradient at the patched run.
        heads: attention by its heads, too.
        check: the exact effect of so many cells with the largest estimates and of as many drawn at
            random; None: of all.
        draws: random texts of the null of one pair.
        seed: of draws, of cells that are checked, and of intervals.
        progress: called with (pairs done, total).

    Raises:
        UsageError: texts of different lengths or without a difference, equal answers, no pair
            whose answers the model gives.
    """
    from engram_probes.patching_run import run

    if direction not in DIRECTIONS:
        raise UsageError(f"no direction {direction!r}; there are {' and '.join(DIRECTIONS)}")
    for name, value, least in (("steps", steps, 1), ("draws", draws, 2), ("check", check, 1)):
        if value is not None and value < least:
            raise UsageError(f"{name}={value}: give {least} or more")
    if isinstance(clean, str) != isinstance(corrupted, str):
        raise UsageError("give two texts, clean and corrupted, or a list of pairs alone")
    given = (corrupted, target, against)
    return run(
        model, tokenizer, clean, given, direction, steps, heads, check, draws, seed, progress
    )
