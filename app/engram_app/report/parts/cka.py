"""Which layers of the model and of its twin are alike."""

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
    Table,
    ends,
    lowered,
)
from engram_probes.alignment import Alignment

FEW_BLOCKS = 8


@dataclass(frozen=True)
class Cka(Part):
    """Options as of `engram_probes.cka`; positions "auto": of entities where the corpus marks them,
    else sampled."""

    name = "cka"
    title = "Which layers are alike"
    question = "Does a layer of the model do what a deeper layer of its twin does?"
    needs = ("twin",)
    rank = 2

    positions: Literal["auto", "entity", "sampled"] = "auto"
    per_document: Count = 8
    k: Count = 5
    permutations: int = 100

    def size(self, inputs: Inputs) -> str:
        most = self.per_document * len(inputs.documents)
        return (
            f"at most {most:,} {self._positions(inputs)} positions of {inputs.size}, twice; "
            f"{self.permutations} permutations"
        )

    def _positions(self, inputs: Inputs) -> Literal["entity", "sampled"]:
        if self.positions != "auto":
            return self.positions
        return "entity" if inputs.documents[0].get("spans") else "sampled"

    def measure(self, inputs: Inputs) -> Results:
        from engram_probes import cka

        blocks = inputs.twin.config.num_hidden_layers
        with inputs.bar("alignment", "documents") as update:
            alignment = cka(
                inputs.model,
                inputs.twin,
                inputs.tokenizer,
                inputs.documents,
                positions=self._positions(inputs),
                per_document=self.per_document,
                k=min(self.k, blocks),
                permutations=self.permutations,
                seed=inputs.seed,
                progress=update,
            )
        return {"cka": alignment}

    def section(self, results: Results) -> Section:
        result = _alignment(results)
        entity = result.positions == "entity"
        chosen = "the last token of each entity" if entity else "sampled tokens"
        return Section(
            finding=f"By CKA, {lowered(result.summary())}",
            method=(
                f"Debiased CKA between the residuals after every block of both models, at {chosen},"
                f" at most {result.per_document} a document and never two of one document in a "
                "batch; numerators and denominators are summed over batches before the ratio. The "
                f"null permutes samples within batches ({result.permutations} times). The soft "
                f"alignment of a layer is the centre of the {result.k} most alike layers of the "
                "twin (arXiv 2601.07372, eq. 9). Intervals draw blocks of documents."
            ),
            caveats=[
                "CKA can move without a change of function; nearest neighbours, Procrustes and "
                "RSA, in the finding and in tables/cka.csv, are second opinions.",
                f"{result.samples:,} samples of {result.documents:,} documents, "
                f"{result.batches:,} batches.",
            ],
            figures=[_figure(result)],
        )

    def key_numbers(self, results: Results) -> list[KeyNumber]:
        alignment = _alignment(results)
        return [_shift(alignment)] if np.isfinite(alignment.soft_index).any() else []

    def alerts(self, results: Results) -> list[str]:
        alignment, said = _alignment(results), []
        if not np.isfinite(alignment.soft_index).any():
            return ["No layer of the twin is like any of the model's: there is no alignment."]
        shift = _shift(alignment)
        if shift.low is not None and shift.high is not None and shift.low <= 0 <= shift.high:
            said.append("The largest shift between layers cannot be told from none.")
        if alignment.blocks < FEW_BLOCKS:
            said.append(
                f"The intervals of the alignment draw from {alignment.blocks} blocks of documents "
                "only."
            )
        below = float(np.mean(alignment.matrix <= alignment.null_high))
        if below > 0.05:
            said.append(f"{below:.0%} of the layer pairs are no more alike than permuted samples.")
        bound = np.flatnonzero(~alignment.reachable)
        if bound.size:
            said.append(
                f"With k = {alignment.k} and even weights the soft alignment stays between "
                f"{alignment.soft_floor:g} and {alignment.soft_ceiling:g}: at the layers "
                f"{', '.join(map(str, bound))} a shift is partly the bound's."
            )
        return said


def _alignment(results: Results) -> Alignment:
    return cast(Alignment, results["cka"])


def _figure(result: Alignment) -> Figure:
    rows = [
        [str(row), *(f"{value:.2f}" for value in values)]
        for row, values in enumerate(result.matrix)
    ]
    header = [f"{result.model_b} \\ {result.model_a}", *map(str, range(result.matrix.shape[1]))]
    caption = (
        f"Left: rows are layers of {result.model_b}, columns those of {result.model_a}; the white "
        "line is the soft alignment, the dashed one the same layer. Right: the same samples "
        "permuted."
    )
    return Figure("cka", result.figure("cka"), caption, Table("Debiased CKA", header, rows))


def _shift(alignment: Alignment) -> KeyNumber:
    """Of the layers that the soft alignment can reach, the one that is shifted most."""
    column, shift = alignment.largest_shift
    return KeyNumber(
        "cka.shift",
        f"Largest shift, at layer {column}",
        shift,
        "layers",
        f"{alignment.samples:,} samples, {alignment.documents:,} documents",
        *ends(alignment.soft_low[column] - column, alignment.soft_high[column] - column),
        True,
    )
