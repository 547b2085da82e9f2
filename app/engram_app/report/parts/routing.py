"""Which experts are chosen, with the memory and with a changed one."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from engram_app.report.parts.base import (
    Count,
    Figure,
    Inputs,
    KeyNumber,
    Part,
    Results,
    Section,
    Tokens,
    ends,
    few_documents,
    frame_table,
    table,
)
from engram_probes.memory_changes import CHANGES, DEFAULT, Change
from engram_probes.routing import ALL, ExpertRouting


@dataclass(frozen=True)
class Routing(Part):
    """Options as of `engram_probes.expert_routing`; tokens: read at most, 0: all."""

    name = "routing"
    title = "Which experts are chosen"
    question = "Does the memory change which experts a token chooses, and do experts specialise?"
    needs = ("memory",)

    changes: tuple[Change, ...] = DEFAULT
    tokens: Tokens = 10_000
    permutations: Count = 100

    def size(self, inputs: Inputs) -> str:
        return f"{inputs.first(self.tokens)}, {1 + len(self.changes)} times"

    def measure(self, inputs: Inputs) -> Results:
        from engram_probes import expert_routing

        with inputs.bar("routing", "documents") as update:
            found = expert_routing(
                inputs.model,
                inputs.tokenizer,
                inputs.documents,
                changes=self.changes,
                max_tokens=self.tokens or None,
                permutations=self.permutations,
                seed=inputs.seed,
                progress=update,
            )
        return {"routing": found}

    def section(self, results: Results) -> Section:
        result = _routing(results)
        return Section(
            finding=result.summary(),
            method=(
                "The routers' choices are read at every ordinary token, with the memory and with "
                "each change of it. Kept is the share of a token's experts that it chooses under "
                "the change, too; by chance it is what choices by the loads alone would keep. "
                "Evenness is the entropy of the load over that of an even one. Expert and mechanism"
                " of the predicted token share information also by chance, so it stands beside "
                f"that of mechanisms shifted along their documents ({len(result.information_null)} "
                "times). Intervals draw documents."
            ),
            caveats=[
                "Any change of the streams changes choices: only what differs from changes as "
                "large that leave the memory as it is can be due to what it says.",
                "Later layers choose anew because their input did, through attention too.",
                f"{result.group_tokens[0]:,} tokens of {result.documents:,} documents.",
            ],
            figures=_figures(result),
        )

    def key_numbers(self, results: Results) -> list[KeyNumber]:
        result = _routing(results)
        tokens = f"{result.group_tokens[0]:,} tokens"
        over = f"{tokens}, layers from {min(result.memory_layers)} on"
        numbers = []
        for change, kept in zip(result.changes, result.kept[:, 0, result.after], strict=True):
            name, first = f"Experts kept when {CHANGES[change]}", change == result.changes[0]
            numbers.append(_share(f"routing.kept.{change}", name, kept, over, first))
        if result.changes:
            by_chance = result.chance[0, 0, result.after]
            name = "Experts kept by chance"
            numbers.append(_share("routing.chance", name, by_chance, over, False))
        least = int(np.argmin(result.evenness))
        evenness = KeyNumber(
            "routing.evenness",
            f"Evenness of the load, at layer {result.layers[least]}, the least",
            float(result.evenness[least]),
            "1 for an even load",
            tokens,
            *ends(result.evenness_low[least], result.evenness_high[least]),
            headline=False,
        )
        return [*numbers, evenness, *_information(result, tokens)]

    def alerts(self, results: Results) -> list[str]:
        result = _routing(results)
        said = few_documents(result.documents)
        low = result.difference_low[:, 0, result.after]
        high = result.difference_high[:, 0, result.after]
        for change, alike in zip(
            result.changes[1:], ((low <= 0) & (high >= 0)).sum(1), strict=True
        ):
            if alike:
                said.append(
                    f"In {alike} of {len(result.after)} layers as many experts are kept when "
                    f"{CHANGES[result.changes[0]]} as when {CHANGES[change]}."
                )
        return said


def _routing(results: Results) -> ExpertRouting:
    return cast(ExpertRouting, results["routing"])


def _share(name: str, said: str, values: np.ndarray, over: str, headline: bool) -> KeyNumber:
    """Mean over layers."""
    return KeyNumber(name, said, float(values.mean()), "share", over, headline=headline)


def _information(result: ExpertRouting, over: str) -> list[KeyNumber]:
    """What experts and mechanisms share beyond chance, where mechanisms are known."""
    excess = result.information - result.information_null.mean(0)
    if np.isnan(excess).any():
        return []
    name = "Information of expert and mechanism beyond chance, mean over layers"
    value = float(excess.mean())
    return [KeyNumber("routing.information", name, value, "nats", over, None, None, True, False)]


def _figures(result: ExpertRouting) -> list[Figure]:
    figures = [_load(result)]
    if np.isfinite(result.information).all():
        figures.append(_mechanisms(result))
    if result.changes:
        figures.insert(0, _kept(result))
        if result.group_tokens[1:].any():
            figures.insert(1, _groups(result))
    return figures


def _kept(result: ExpertRouting) -> Figure:
    frame = result.to_frame()
    frame = frame[frame["group"] == ALL].drop(columns=["group", "tokens"])
    columns = {"kept_low": "low", "kept_high": "high", "chance": "by chance"}
    numbers = frame_table("Share of a token's experts that are kept", frame.rename(columns=columns))
    caption = "Experts that a token keeps under each change of the memory. Bands: 95% intervals."
    return Figure("routing-kept", result.figure("kept"), caption, numbers)


def _groups(result: ExpertRouting) -> Figure:
    read = [g for g in range(len(result.groups)) if result.group_tokens[g]]
    columns: dict[str, Any] = {
        "tokens before": [result.groups[g] for g in read],
        "number": result.group_tokens[read],
        **{f"layer {n}": result.kept[0, read, i] for i, n in enumerate(result.layers)},
    }
    change = CHANGES[result.changes[0]]
    numbers = table(f"Share of experts that are kept when {change}", columns)
    caption = f"The same when {change}, by the mechanism of the token that is predicted."
    return Figure("routing-mechanism", result.figure("mechanism"), caption, numbers)


def _load(result: ExpertRouting) -> Figure:
    frame = result.layers_frame()
    columns = {
        "layer": "layer",
        "largest_load": "largest load",
        "smallest_load": "smallest load",
        "evenness": "evenness",
        "evenness_low": "low",
        "evenness_high": "high",
        "router_entropy": "router's entropy (nats)",
    }
    numbers = table("Loads by layer", {said: frame[name] for name, said in columns.items()})
    caption = (
        "Share of the tokens that choose each expert, those of a layer from the most chosen to "
        f"the least. Of an even load it is {result.chosen / result.experts:.2f}."
    )
    return Figure("routing-load", result.figure("load"), caption, numbers)


def _mechanisms(result: ExpertRouting) -> Figure:
    columns = {
        "layer": result.layers,
        "information": result.information,
        "low": result.information_low,
        "high": result.information_high,
        "shifted, mean": result.information_null.mean(0),
        "shifted, largest": result.information_null.max(0),
    }
    caption = "What the choice of an expert tells of the mechanism, and what it tells by chance."
    numbers = table("Information of expert and mechanism, nats", columns)
    return Figure("routing-information", result.figure("information"), caption, numbers)
