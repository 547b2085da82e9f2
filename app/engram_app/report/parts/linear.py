"""What a linear probe reads from each depth."""

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

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
from engram_probes.linear import LinearProbe


@dataclass(frozen=True)
class Linear(Part):
    """Options as of `engram_probes.linear.probe`; no depths: all."""

    name = "linear"
    title = "What can be read from each depth"
    question = "What does the residual say to a linear probe, beyond what the tokens say?"
    rank = 6

    label: str = "mechanism"
    at: Literal["", "next", "entity"] = ""
    positions: Count = 300
    depths: tuple[int, ...] = ()
    folds: Count = 5
    classes: Count = 10

    def size(self, inputs: Inputs) -> str:
        models = "the model, its twin and an untrained one"
        models = models if inputs.twin is not None else "the model and an untrained one"
        return f"at most {self.positions:,} positions of {inputs.size}, at each depth of {models}"

    def measure(self, inputs: Inputs) -> Results:
        from engram_probes.linear import probe

        with inputs.bar(f"reading {self.label}", "probes") as update:
            found = probe(
                inputs.model,
                inputs.tokenizer,
                inputs.documents,
                label=self.label,
                at=self.at or None,
                depths=self.depths or None,
                twin=inputs.twin,
                positions=self.positions,
                most_classes=self.classes,
                folds=self.folds,
                seed=inputs.seed,
                progress=update,
            )
        return {"linear": found}

    def section(self, results: Results) -> Section:
        result = _probe(results)
        return Section(
            finding=result.summary(),
            method=(
                f"Logistic regression of the {result.label} on the residual after each block, "
                f"{result.folds}-fold over groups: no document and no person is in two folds; the "
                "penalty is chosen inside the training folds. Beside it the majority class, the "
                "identity of the last tokens, the memory's rows alone and the same model untrained;"
                " the control task gives each token type a random label, and selectivity is the "
                "accuracy less that on it. Intervals draw groups, the fitted probes given."
            ),
            caveats=[
                "That something can be read does not say that the model uses it.",
                f"{result.positions:,} positions of {result.groups:,} groups.",
            ],
            figures=[_figure(result)],
        )

    def key_numbers(self, results: Results) -> list[KeyNumber]:
        """At the depth where most is read."""
        result = _probe(results)
        depths, accuracy, low, high = result.curve()
        best = int(np.argmax(accuracy))
        over = f"{result.positions:,} positions, {result.groups:,} groups"
        where = f"after {depths[best]} blocks"
        numbers = [
            KeyNumber(
                f"linear.{result.label}.accuracy",
                f"The {result.label} read right {where}",
                float(accuracy[best]),
                f"of {len(result.classes)} classes",
                over,
                *ends(low[best], high[best]),
            )
        ]
        for metric, name, unit in (
            ("selectivity", "Selectivity of it", "difference of shares"),
            ("bits", "Online code length of it", "bits a label"),
        ):
            _, value, low, high = result.curve(metric)
            numbers.append(
                KeyNumber(
                    f"linear.{result.label}.{metric}",
                    f"{name} {where}",
                    float(value[best]),
                    unit,
                    over,
                    *ends(low[best], high[best]),
                    metric == "selectivity",
                    False,
                )
            )
        return numbers

    def alerts(self, results: Results) -> list[str]:
        result = _probe(results)
        best = int(np.argmax(result.curve()[1]))
        others = [
            name
            for name in (*result.baselines, *result.by_depth[1:])
            if name != result.twin and result.difference(name)[2][best] <= 0
        ]
        if not others:
            return []
        return [
            f"The {result.label} is not clearly read better than from {', '.join(others)}: the "
            "linear probe shows nothing that those do not."
        ]


def _probe(results: Results) -> LinearProbe:
    return cast(LinearProbe, results["linear"])


def _figure(result: LinearProbe) -> Figure:
    frame = result.to_frame()
    accuracy = frame[frame["metric"] == "accuracy"]
    depths = ["–" if depth < 0 else str(depth) for depth in accuracy["depth"]]
    numbers = table(
        f"Share of the {result.label} read right",
        {
            "read from": accuracy["source"],
            "blocks": depths,
            **{name: accuracy[name] for name in ("value", "low", "high")},
        },
    )
    caption = "Accuracy by depth, with 95% interval; baselines across."
    return Figure("linear", result.figure("accuracy"), caption, numbers)
