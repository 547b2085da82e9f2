"""Example texts, token by token."""

from dataclasses import dataclass
from typing import cast

import numpy as np

from engram_app.colours import Scale
from engram_app.measures import memory_values, strip_tokens
from engram_app.report.parts.base import (
    Figure,
    Inputs,
    KeyNumber,
    Part,
    Results,
    Section,
    Strip,
    table,
)
from engram_model.errors import UsageError
from engram_probes.gates import GateMap


@dataclass(frozen=True)
class Gates(Part):
    """texts: to show; none: the examples that come with the project."""

    name = "gates"
    title = "Where the memory speaks"
    question = "On which tokens does the memory add something, and how much?"
    needs = ("memory",)
    rank = 3

    texts: tuple[str, ...] = ()

    def size(self, inputs: Inputs) -> str:
        return f"{len(self._texts())} texts"

    def _texts(self) -> dict[str, str]:
        from engram_app.examples import examples

        if not self.texts:
            return examples()
        return {f"Text {number}": text for number, text in enumerate(self.texts, 1)}

    def measure(self, inputs: Inputs) -> Results:
        from engram_probes import gate_map

        texts, results = self._texts(), Results()
        with inputs.bar("gates", "texts") as update:
            for done, (name, text) in enumerate(texts.items(), 1):
                try:
                    gates = gate_map(inputs.model, inputs.tokenizer, text)
                except UsageError as error:  # the context of a small model
                    if self.texts:
                        raise
                    inputs.notes.append(f"Gates of the text “{name}”: {error}.")
                else:
                    corpus = {**gates.provenance.corpus, "name": name}
                    results[f"gates-{len(results) + 1}"] = gates.with_provenance(corpus=corpus)
                update(done, len(texts))
        return results

    def section(self, results: Results) -> Section:
        maps = _maps(results)
        name, first = next(iter(maps.items()))
        layers = ", ".join(map(str, first.layers))
        reads = f"Layers {layers} look" if len(first.layers) > 1 else f"Layer {layers} looks"
        return Section(
            finding=self._finding(maps),
            method=(
                f"{reads} up rows of a table by the last tokens; a gate, "
                "one for each residual stream, lets part of the value into the stream. "
                "Colour is the norm of what was added over the norm of the residual it entered, "
                "all streams together: a gate alone is not a contribution."
            ),
            caveats=[
                f"Texts were chosen as examples (n = {len(maps)}); they are no sample of anything.",
                "That something is added says nothing about whether it is used: this is a "
                "reading, not an intervention.",
            ],
            strips=_strips(maps),
            figures=[_figure(name, first)],
        )

    def _finding(self, maps: dict[str, GateMap]) -> str:
        """What the memory does on an average token of the texts."""
        gate, added = (_mean(maps, what) for what in ("gate", "added"))
        over = f"{len(maps)} texts" if len(maps) > 1 else "one text"
        return (
            f"Over {over} the mean gate is {gate:.2f} (0.5 is neutral) and the memory adds "
            f"{added:.2f} of the residual it enters on an average token."
        )

    def key_numbers(self, results: Results) -> list[KeyNumber]:
        maps = _maps(results)
        over = f"{len(maps)} texts"
        gate, added = (_mean(maps, what) for what in ("gate", "added"))
        return [
            KeyNumber("gates.mean", "Mean gate", gate, "0.5 is neutral", over),
            KeyNumber("gates.added", "Added by the memory", added, "of the residual", over),
        ]


def _maps(results: Results) -> dict[str, GateMap]:
    """Name of the text -> its gates."""
    maps = cast(dict[str, GateMap], results)
    return {str(gates.provenance.corpus["name"]): gates for gates in maps.values()}


def _mean(maps: dict[str, GateMap], what) -> float:
    """Over all ordinary tokens, layers and streams."""
    values = [gates.values(what)[:, ~gates.special] for gates in maps.values()]
    return float(np.concatenate(values, axis=1).mean())


def _strips(maps: dict[str, GateMap]) -> list[Strip]:
    """All texts on one scale, the widest."""
    measured = {name: memory_values(gates, "added") for name, gates in maps.items()}
    scale = max((scale for _, scale in measured.values()), key=lambda scale: scale.high)
    return [_strip(name, maps[name], values, scale) for name, (values, _) in measured.items()]


def _strip(name: str, gates: GateMap, values: np.ndarray, scale: Scale) -> Strip:
    tokens = strip_tokens(gates.tokens, values, gates.special, scale, "added")
    return Strip(name, gates.summary(), scale.title, "0", f"{scale.high:.2g}", tokens)


def _figure(name: str, gates: GateMap) -> Figure:
    values = {what: gates.values(what).mean(0) for what in ("added", "gate", "score")}
    numbers = table(
        f"Numbers of the text “{name}”, means over layers",
        {"position": range(len(gates.tokens)), "token": gates.tokens, **values},
    )
    layer = gates.layers[0] if len(gates.layers) == 1 else None
    caption = f"Gates of the text “{name}”, stream by stream; 0.5 is neutral."
    return Figure("gates", gates.figure("gate", layer), caption, numbers)
