"""Who wrote the logit of a text's next token."""

from dataclasses import dataclass
from typing import cast

from engram_app.report.parts.base import (
    Count,
    Figure,
    Inputs,
    KeyNumber,
    Part,
    Results,
    Section,
    table,
)
from engram_probes.attribution import PARTS, Attribution


@dataclass(frozen=True)
class Attribute(Part):
    """text: whose next token is asked for; target, against: tokens; none: the likeliest, no
    other."""

    name = "attribute"
    title = "Who wrote a prediction"
    question = "How much of one logit did attention, the MLPs and the rows of the memory write?"
    rank = 8

    text: str = "The Battle of Waterloo was fought in 1815 between Napoleon Bonaparte and the Duke"
    target: str = ""
    against: str = ""
    draws: Count = 1000

    def size(self, inputs: Inputs) -> str:
        return f"one text, {self.draws:,} random rows for each row it reads"

    def measure(self, inputs: Inputs) -> Results:
        from engram_probes import attribute

        with inputs.bar("attribution", "texts") as update:
            found = attribute(
                inputs.model,
                inputs.tokenizer,
                self.text,
                self.target or None,
                self.against or None,
                draws=self.draws,
                seed=inputs.seed,
            )
            update(1, 1)
        return {"attribute": found}

    def section(self, results: Results) -> Section:
        result = _attribution(results)
        rows = {
            "component": result.components,
            "part": [PARTS[part] for part in result.parts],
            "logits": result.contribution,
            "random low": result.random_low,
            "random high": result.random_high,
        }
        caption = (
            f"Contributions to the logit of “{result.target}”, oldest on top; they sum to it. Lines"
            " at rows of the memory: what random rows of the same head would add."
        )
        numbers = table(f"Contributions to the logit of “{result.target}”", rows)
        return Section(
            finding=result.summary(),
            method=(
                "The residual is a sum of what each component wrote. With the final norm's scale "
                "and the streams' weights held at the values they had, so is the logit; the "
                f"remainder is {result.remainder:.1e}. The memory's value is split row by row."
            ),
            caveats=[
                "One text, as an example; it is no sample of anything.",
                "These are direct effects: what a component wrote for later ones to read is "
                "counted there.",
            ],
            figures=[Figure("attribute", result.figure(), caption, numbers)],
        )

    def key_numbers(self, results: Results) -> list[KeyNumber]:
        result = _attribution(results)
        over = f"the logit of “{result.target}”, {result.logit:.2f}"
        name = "Written by the memory, directly"
        memory = KeyNumber(
            "attribute.memory", name, result.memory, "logits", over, difference=True, headline=False
        )
        share = KeyNumber(
            "attribute.share",
            "The same, of all contributions' sizes",
            result.memory_share,
            "share",
            over,
            difference=True,
            headline=False,
        )
        return [memory, share]


def _attribution(results: Results) -> Attribution:
    return cast(Attribution, results["attribute"])
