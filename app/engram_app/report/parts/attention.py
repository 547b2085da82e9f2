"""What the heads look at, with the memory, with a changed one, and beside a twin."""

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
    table,
)
from engram_probes.attention import NEAR, AttentionPatterns
from engram_probes.memory_changes import CHANGES, Change


@dataclass(frozen=True)
class Attention(Part):
    """Options as of `engram_probes.attention_patterns`; tokens: read at most, 0: all."""

    name = "attention"
    title = "What the heads look at"
    question = "Does the memory relieve the heads of looking at what is near?"

    changes: tuple[Change, ...] = ("zero", "noise")
    tokens: Tokens = 10_000
    sequences: Count = 20
    length: Count = 50

    def size(self, inputs: Inputs) -> str:
        twice = ", and once with the twin" if inputs.twin is not None else ""
        times = f"{1 + len(self.changes)} times{twice}"
        return f"{inputs.first(self.tokens)}, {times}; {self.sequences} random sequences"

    def measure(self, inputs: Inputs) -> Results:
        from engram_probes import attention_patterns

        with inputs.bar("attention", "documents") as update:
            found = attention_patterns(
                inputs.model,
                inputs.tokenizer,
                inputs.documents,
                twin=_comparable(inputs),
                changes=self.changes,
                max_tokens=self.tokens or None,
                sequences=self.sequences,
                length=self.length,
                seed=inputs.seed,
                progress=update,
            )
        return {"attention": found}

    def section(self, results: Results) -> Section:
        result = _patterns(results)
        settings = result.provenance.settings
        return Section(
            finding=result.summary(),
            method=(
                "Scores are means over ordinary queries, the first two positions left out. Each "
                "head is read with the memory and with each change of it. Induction is attention "
                "to what followed this token when it last occurred, on "
                f"{settings['sequences']} sequences of {settings['length']} random tokens that are "
                "repeated; its chance level is attention to the same positions where others "
                "follow. Intervals draw documents, or sequences."
            ),
            caveats=[
                "Heads of two models do not correspond, so that only means over heads are "
                "compared with the twin's.",
                "Where a head looks does not say what it moves.",
                f"{result.queries:,} queries of {result.documents:,} documents.",
            ],
            figures=[
                _near(result),
                _heads(result, "previous", "Attention of each head to the token before."),
                _heads(result, "repeated", "Induction of each head on repeated random tokens."),
            ],
        )

    def key_numbers(self, results: Results) -> list[KeyNumber]:
        result = _patterns(results)
        return [*_near_numbers(result), _induction(result)]

    def alerts(self, results: Results) -> list[str]:
        result = _patterns(results)
        said = few_documents(result.documents)
        twins = [number for number in _near_numbers(result) if number.id.endswith(".twin")]
        if any(number.undecided for number in twins):
            said.append("The twin's attention to what is near cannot be told from the model's.")
        if not (result.repeated_low[0] > result.fresh_high[0]).any():
            said.append("No head looks to what followed a token before more than at chance.")
        return said


def _comparable(inputs: Inputs) -> Any:
    """The twin, if its layers correspond to the model's."""
    twin, depth = inputs.twin, inputs.model.config.num_hidden_layers
    if twin is None or twin.config.num_hidden_layers == depth:
        return twin
    inputs.notes.append("Attention of the twin: the models have other numbers of blocks.")
    return None


def _patterns(results: Results) -> AttentionPatterns:
    return cast(AttentionPatterns, results["attention"])


def _near_numbers(result: AttentionPatterns) -> list[KeyNumber]:
    """Attention to what is near: of the model, less the twin's, and what each change does."""
    place, said = result.score("near"), f"Attention to the {NEAR} tokens before"
    over, unit = f"{result.queries:,} queries, all layers", "share"
    value = float(result.layer_mean[0, place].mean())
    numbers = [KeyNumber("attention.near", said, value, unit, over, headline=False)]
    if result.overall is not None:
        assert result.overall_low is not None and result.overall_high is not None
        interval = ends(result.overall_low[place], result.overall_high[place])
        name, value = f"{said}, less that of {result.twin}", float(result.overall[place])
        numbers.append(KeyNumber("attention.near.twin", name, value, unit, over, *interval, True))
    for change, values in zip(result.changes, result.layer_change[:, place], strict=True):
        over = f"{result.queries:,} queries, layers from {min(result.memory_layers)} on"
        value, name = float(values[result.after].mean()), f"Its change when {CHANGES[change]}"
        numbers.append(
            KeyNumber(f"attention.near.{change}", name, value, unit, over, None, None, True, False)
        )
    return numbers


def _induction(result: AttentionPatterns) -> KeyNumber:
    """Of the head that has most."""
    layer, head = np.unravel_index(int(np.argmax(result.repeated[0])), result.repeated[0].shape)
    return KeyNumber(
        "attention.induction",
        f"Induction of head {head} of layer {result.layers[layer]}, the most",
        float(result.repeated[0, layer, head]),
        "share",
        f"random sequences; chance {result.fresh[0, layer, head]:.2f}",
        *ends(result.repeated_low[0, layer, head], result.repeated_high[0, layer, head]),
    )


def _near(result: AttentionPatterns) -> Figure:
    place = result.score("near")
    names = list(result.conditions)
    shares = {
        "share": [*result.layer_mean[:, place]],
        "low": [*result.layer_low[:, place]],
        "high": [*result.layer_high[:, place]],
    }
    twin = (result.twin_layer, result.twin_layer_low, result.twin_layer_high)
    if result.twin:
        names.append(result.twin)
        for curves, array in zip(shares.values(), twin, strict=True):
            assert array is not None
            curves.append(array[place])
    columns: dict[str, Any] = {
        "memory": np.repeat(names, len(result.layers)),
        "layer": result.layers * len(names),
        **{said: np.concatenate(curves) for said, curves in shares.items()},
    }
    caption = (
        f"Attention to the {NEAR} tokens before, mean of a layer's heads, with 95% intervals. "
        "Blocks with a memory are shaded."
    )
    numbers = table(f"Attention to the {NEAR} tokens before, by layer", columns)
    return Figure("attention-near", result.figure("layers", "near"), caption, numbers)


def _heads(result: AttentionPatterns, score: str, caption: str) -> Figure:
    """A row a layer, a column a head."""
    repeated = score == "repeated"
    values = result.repeated[0] if repeated else result.mean[0, result.score(score)]
    heads = {f"head {head}": values[:, head] for head in range(values.shape[1])}
    numbers = table(f"{caption[:-1]}, share", {"layer": result.layers, **heads})
    return Figure(f"attention-{score}", result.figure("heads", score), caption, numbers)
