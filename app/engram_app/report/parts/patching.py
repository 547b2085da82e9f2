"""Which nodes carry an answer: patched one by one from one text into another."""

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from engram_app.opening import open_pairs
from engram_app.report.parts.base import (
    Count,
    Figure,
    Inputs,
    KeyNumber,
    Part,
    Results,
    Section,
    ends,
    table,
)
from engram_model.errors import UsageError
from engram_probes.patching import AttributionPatching

FEW_PAIRS = 20
MOST_CELLS = 20
GOOD = 0.8  # correlation of estimates with exact effects


@dataclass(frozen=True)
class Patching(Part):
    """Options as of `engram_probes.attribution_patching`: two texts, or pairs of questions about
    people of the world `data`, `items` at most. check: 0: every effect is measured."""

    name = "patching"
    title = "What carries an answer"
    question = "Which nodes, memories among them, bring an answer about if they are patched?"

    text: str = ""
    corrupted: str = ""
    target: str = ""
    against: str = ""
    data: str = "world:"
    items: Count = 12
    direction: Literal["denoising", "noising"] = "denoising"
    steps: Count = 4
    heads: bool = False
    check: int = 0
    draws: Count = 20

    def size(self, inputs: Inputs) -> str:
        pairs = "one pair of texts" if self.text else f"at most {self.items} pairs of {self.data}"
        exact = f"{2 * self.check} effects" if self.check else "every effect"
        return f"{pairs}; {exact} measured, gradients at {self.steps} points"

    def measure(self, inputs: Inputs) -> Results:
        from engram_probes import attribution_patching

        given = self._given(inputs)
        with inputs.bar("patching", "runs") as update:
            found = attribution_patching(
                inputs.model,
                inputs.tokenizer,
                *given,
                direction=self.direction,
                steps=self.steps,
                heads=self.heads,
                check=self.check or None,
                draws=self.draws,
                seed=inputs.seed,
                progress=update,
            )
        return {"patching": found}

    def _given(self, inputs: Inputs) -> list[Any]:
        if bool(self.text) != bool(self.corrupted):
            raise UsageError("text and corrupted go together, texts of as many tokens")
        if self.text:
            return [self.text, self.corrupted, self.target or None, self.against or None]
        if self.target or self.against:
            raise UsageError("target and against go with text and corrupted")
        return [open_pairs(self.data, inputs.tokenizer, self.items, inputs.seed)]

    def section(self, results: Results) -> Section:
        result = _patching(results)
        return Section(
            finding=result.summary(),
            method=(
                "Two texts of as many tokens differ in whom they ask about. A node at a place is "
                "given the value that it has in the other text's run; its effect is what that adds "
                "to the logit of the one answer less that of the other. Estimates take gradients "
                f"at {result.steps} points between the two runs. The null patches from a text "
                "about neither: what it does too is not due to what the text says of its subject. "
                "Intervals draw pairs."
            ),
            caveats=[
                "Effects are of one node at a time: they overlap along paths and do not sum to "
                "the change between the runs.",
                _kept(result),
            ],
            figures=[_bars(result), _nodes(result), _check(result)],
        )

    def key_numbers(self, results: Results) -> list[KeyNumber]:
        result = _patching(results)
        over = _over(result)
        agreement = result.agreement()
        numbers = [
            KeyNumber("patching.gap", "Between the runs", result.gap, "logits", over, None, None,
                      True, False),
            _effect(result, result.strongest(1)[0], over),
            *_memory(result, over),
        ]  # fmt: skip
        if np.isfinite(agreement["correlation"]):
            name, cells = "Estimates with exact effects", f"{agreement['cells']:,} cells"
            value = agreement["correlation"]
            numbers.append(
                KeyNumber("patching.correlation", name, value, "correlation", cells, headline=False)
            )
        return numbers

    def alerts(self, results: Results) -> list[str]:
        result, said = _patching(results), []
        if result.pairs < FEW_PAIRS:
            said.append(
                f"Patching is over {_over(result)} only, its null over {len(result.null_pairs)} "
                "texts: it shows where, not how much."
            )
        if result.pairs * 2 < result.tried:
            said.append(
                f"To only {result.pairs} of {result.tried} pairs does the model give the answers."
            )
        found = result.agreement()["correlation"]
        if result.best == "estimate" and not found >= GOOD:
            said.append(
                f"Effects of patching are estimates, which correlate {found:.2f} with exact ones."
            )
        if any(number.undecided for number in _memory(result, "") if number.difference):
            said.append(
                "What the memory brings about at its strongest place cannot be told from what a "
                "text about neither does."
            )
        return said


def _patching(results: Results) -> AttributionPatching:
    return cast(AttributionPatching, results["patching"])


def _over(result: AttributionPatching) -> str:
    return f"{result.pairs} pair{'' if result.pairs == 1 else 's'}"


def _kept(result: AttributionPatching) -> str:
    if result.pairs == result.tried == 1:
        return "One pair, as an example; it is no sample of anything."
    return (
        f"{result.pairs} of {result.tried} pairs: those to both of whose texts the model prefers "
        "the right answer."
    )


def _effect(result: AttributionPatching, cell: tuple[int, int], over: str) -> KeyNumber:
    """Of the node and place that have most."""
    node, place = cell
    low, high = result.interval(result.best)
    return KeyNumber(
        "patching.strongest",
        f"Effect of {result.nodes[node]} at {result.places[place]}, the largest",
        float(result.mean(result.best)[cell]),
        "logits",
        over,
        *ends(low[cell], high[cell]),
        True,
    )


def _memory(result: AttributionPatching, over: str) -> list[KeyNumber]:
    """The memory's share of all, and what its strongest place does beyond a text about neither."""
    share = result.shares().get("memory")
    if share is None:
        return []
    means = np.abs(np.nan_to_num(result.mean(result.best)))
    means[np.array(result.kinds) != "memory"] = -1
    cell = np.unravel_index(int(np.argmax(means)), means.shape)
    beyond, low, high = (array[cell] for array in result.beyond_null(result.best))
    name = f"Effect of {result.nodes[cell[0]]} at {result.places[cell[1]]}, beyond the null"
    return [
        KeyNumber("patching.memory", "Memories, of all effects' size", share, "share", over),
        KeyNumber("patching.memory.beyond", name, float(beyond), "logits", over, *ends(low, high),
                  True, False),
    ]  # fmt: skip


def _bars(result: AttributionPatching) -> Figure:
    cells = tuple(np.array(result.strongest(MOST_CELLS)).T)
    what, nodes, places = result.best, *cells
    low, high = result.interval(what)
    beyond, beyond_low, beyond_high = result.beyond_null(what)
    columns = {
        "node": [result.nodes[n] for n in nodes],
        "place": [result.places[p] for p in places],
        "effect": result.mean(what)[cells],
        "low": low[cells],
        "high": high[cells],
        "null": result.null(what)[0][cells],
        "beyond the null": beyond[cells],
        "beyond: low": beyond_low[cells],
        "beyond: high": beyond_high[cells],
    }
    caption = (
        f"The {len(nodes)} largest effects of nodes that do not nest, with 95% intervals, and "
        "(diamonds) what a text about neither does there."
    )
    numbers = table("Largest effects, logits", columns)
    return Figure("patching", result.figure("bars"), caption, numbers)


def _nodes(result: AttributionPatching) -> Figure:
    shown = [i for i, kind in enumerate(result.kinds) if kind != "row"]
    means = result.mean(result.best)[shown]
    columns = dict(zip(_apart(result.places), means.T, strict=True))
    caption = "Effect of patching each node, oldest at the bottom, at each place, logits."
    nodes = {"node": [result.nodes[i] for i in shown]}
    numbers = table("Effect by node and place, logits", {**nodes, **columns})
    return Figure("patching-nodes", result.figure("heatmap"), caption, numbers)


def _apart(places: tuple[str, ...]) -> list[str]:
    """Places as names of columns: equal tokens with their number."""
    twice = len(set(places)) < len(places)
    return [f"{i}: {place}" if twice else place for i, place in enumerate(places)]


def _check(result: AttributionPatching) -> Figure:
    """By kind of node how far estimates are from what was measured."""
    columns: dict[str, list] = {
        name: [] for name in ("nodes", "cells", "exact, mean size", "error, mean", "error, largest")
    }
    for kind in dict.fromkeys(result.kinds):
        of = np.array(result.kinds) == kind
        exact, estimate = result.exact[:, of], result.estimate[:, of]
        known = np.isfinite(exact)
        if not known.any():
            continue
        error = np.abs(estimate - exact)[known]
        values = (kind, int(known.sum()), np.abs(exact[known]).mean(), error.mean(), error.max())
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    caption = "Each measured effect of every pair, and its estimate from gradients."
    numbers = table("Estimates against exact effects, logits", columns)
    return Figure("patching-check", result.figure("check"), caption, numbers)
