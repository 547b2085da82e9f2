"""The logit lens over the corpus, of the model and of its twin."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from engram_app.report.parts.base import (
    FEW_DOCUMENTS,
    Count,
    Figure,
    Inputs,
    Interval,
    KeyNumber,
    Part,
    Results,
    Section,
    Table,
    Tokens,
    ends,
    table,
)
from engram_model.errors import EngramError, UsageError
from engram_probes.bootstrap import divide, interval
from engram_probes.lens import LogitLens
from engram_probes.lens_difference import LensDifference

if TYPE_CHECKING:
    from engram_probes import TunedLens

FEW_POSITIONS = 2000


@dataclass(frozen=True)
class Lens(Part):
    """positions: drawn from all; 0: all. by: curves apart, see `logit_lens`. topk: of the overlap
    of the likeliest tokens. tuned: through the tuned lens that is saved with each checkpoint."""

    name = "lens"
    title = "When the prediction is settled"
    question = "How early does the model predict what it ends up predicting?"
    rank = 1

    positions: Tokens = 4000
    by: Literal["", "mechanism", "frequency", "position"] = ""
    topk: Count = 5
    tuned: bool = False

    def unfit(self, inputs: Inputs) -> str:
        try:
            self._translators(inputs)
        except EngramError as error:
            return str(error)
        return super().unfit(inputs)

    def depends(self, inputs: Inputs) -> list[str]:
        return [tuned.sha256 for tuned in self._translators(inputs) if tuned is not None]

    def _translators(self, inputs: Inputs) -> "list[TunedLens | None]":
        """The tuned lens of the model and of its twin; None: the plain one.

        Raises:
            CheckpointError, UsageError: a checkpoint has none, or one of other weights.
        """
        from engram_model.checkpoint import find_checkpoint
        from engram_probes import TunedLens

        if not self.tuned:
            return [None, None]
        found: list[TunedLens | None] = []
        for model, name in zip((inputs.model, inputs.twin), inputs.checkpoints, strict=False):
            tuned = TunedLens.load(find_checkpoint(name))
            tuned.check(model)
            found.append(tuned)
        return found

    def _share(self, inputs: Inputs) -> float:
        return min(1.0, self.positions / inputs.tokens) if self.positions else 1.0

    def size(self, inputs: Inputs) -> str:
        share = self._share(inputs)
        twice = ", for the model and for its twin" if inputs.twin is not None else ""
        through = ", through tuned lenses" if self.tuned else ""
        if share == 1:
            return f"{inputs.size}{twice}{through}"
        return f"about {self.positions:,} positions drawn from {inputs.size}{twice}{through}"

    def measure(self, inputs: Inputs) -> Results:
        translators = self._translators(inputs)
        lens = self._lens(inputs, inputs.model, translators[0], "the model")
        if inputs.twin is None:
            return {"lens": lens}
        twin = self._lens(inputs, inputs.twin, translators[1], "its twin")
        if twin.depths != lens.depths:
            inputs.notes.append(
                "Difference of the lenses: the models have other numbers of blocks."
            )
            return {"lens": lens, "lens-twin": twin}
        return {"lens": lens, "lens-twin": twin, "lens-difference": lens.minus(twin, inputs.seed)}

    def _lens(
        self, inputs: Inputs, model: Any, translators: "TunedLens | None", what: str
    ) -> LogitLens:
        from engram_probes import logit_lens

        with inputs.bar(f"lens of {what}", "documents") as update:
            return logit_lens(
                model,
                inputs.tokenizer,
                inputs.documents,
                topk=self.topk,
                share=self._share(inputs),
                by=self.by or None,
                translators=translators,
                seed=inputs.seed,
                progress=update,
            )

    def section(self, results: Results) -> Section:
        lens, difference = _lens(results), _difference(results)
        return Section(
            finding=(difference or lens).summary(),
            method=(
                f"After every block the residual is {_read(lens)}: streams collapsed "
                "by the model's own head, the final norm recomputed, the unembedding applied. "
                "KL(final || layer) is in nats. A token is settled at the first depth from which "
                "its top prediction stays the final one. Position 0 and special tokens are left "
                "out; intervals are bootstrapped over documents. The last depth differs from the "
                f"model's logits by {lens.max_difference:.1g} at most."
            ),
            caveats=[
                _caveat(lens),
                f"{lens.positions:,} tokens of {lens.documents:,} documents"
                + (
                    f", {lens.provenance.settings['share']:.0%} of their positions drawn by seed."
                    if lens.provenance.settings["share"] < 1
                    else "."
                ),
            ],
            figures=[_curves(lens, difference), *([_strata(lens)] if lens.strata else [])],
        )

    def key_numbers(self, results: Results) -> list[KeyNumber]:
        lens, difference = _lens(results), _difference(results)
        over = f"{lens.positions:,} tokens, {lens.documents:,} documents"
        half = lens.depths // 2
        value, low, high = (float(curve[half]) for curve in lens.curve("kl"))
        through = " (tuned lens)" if lens.translators else ""
        name = f"KL to the final prediction after {half} blocks{through}"
        numbers = [KeyNumber("lens.kl", name, value, "nats", over, *ends(low, high))]
        value, low, high = _settling(lens, lens.provenance.seed or 0)
        name = f"Settling depth of {lens.model}{through}"
        of_ends = ends(low, high)
        numbers.append(
            KeyNumber("lens.depth", name, value, "blocks", over, *of_ends, headline=False)
        )
        if difference is not None:
            value, low, high = (float(number) for number in difference.settling)
            name = f"Settling depth, less that of {difference.other}{through}"
            of_ends = ends(low, high)
            numbers.append(KeyNumber("lens.settling", name, value, "blocks", over, *of_ends, True))
        return numbers

    def alerts(self, results: Results) -> list[str]:
        lens, difference = _lens(results), _difference(results)
        said = []
        if lens.documents < FEW_DOCUMENTS or lens.positions < FEW_POSITIONS:
            said.append(
                f"Little text: the lens is over {lens.positions:,} tokens of {lens.documents:,} "
                "documents. Give more with --tokens."
            )
        if lens.cut:
            said.append(f"{lens.cut:,} documents were longer than the context and were cut.")
        if difference is not None:
            _, low, high = difference.settling
            if low <= 0 <= high:
                said.append("The difference in settling depth cannot be told from none.")
        return said

    def paired(self, first: Results, second: Results, seed: int) -> dict[str, Interval]:
        ours, theirs = ([run.get("lens"), run.get("lens-twin")] for run in (first, second))
        try:
            difference = _lens(first).minus(_lens(second), seed)
        except UsageError:  # other texts, or another number of blocks
            return {}
        half, kl = difference.means.shape[-1] // 2, difference.metrics.index("kl")
        values = (difference.difference, difference.low, difference.high)
        estimate, low, high = (float(array[kl, half]) for array in values)
        settling = cast(Interval, tuple(float(number) for number in difference.settling))
        found = {"lens.kl": (estimate, low, high), "lens.depth": settling}
        lenses = cast(list[LogitLens], [*ours, *theirs])
        if all(lenses) and _same_texts(lenses):
            found["lens.settling"] = _settling_of(lenses, (1, -1, -1, 1), seed)
        return found

    def overlaid(self, first: Results, second: Results) -> list[Figure]:
        from engram_probes.figures.lens import curve_figure

        lenses = [_lens(first), _lens(second)]
        if lenses[0].depths != lenses[1].depths:
            return []
        columns: dict[str, Any] = {"blocks": range(lenses[0].depths)}
        for which, lens in zip(("first", "second"), lenses, strict=True):
            mean, low, high = lens.curve("kl")
            columns |= {f"{which}: {lens.model}": mean, f"{which} low": low, f"{which} high": high}
        caption = "Mean KL divergence from the final prediction after each block, of both runs."
        numbers = table("KL(final || layer) in nats, by blocks run", columns)
        return [Figure("lens", curve_figure(lenses, "kl"), caption, numbers)]


def _lens(results: Results) -> LogitLens:
    return cast(LogitLens, results["lens"])


def _read(lens: LogitLens) -> str:
    """How a residual is made one that the head can read."""
    if lens.translators is None:
        return "read as if it were the last"
    return "translated by the tuned lens (an affine map trained for its depth) and then read"


def _caveat(lens: LogitLens) -> str:
    if lens.translators is None:
        return (
            "The lens reads early layers in the final layer's basis; a high KL there may be a "
            "change of basis and not ignorance."
        )
    return (
        "A tuned lens is trained to predict what the model will: it tells what can be read at a "
        "depth, and not that the model reads it there."
    )


def _difference(results: Results) -> LensDifference | None:
    return cast(LensDifference | None, results.get("lens-difference"))


def _settling(lens: LogitLens, seed: int) -> Interval:
    """Mean settling depth with its interval."""
    return _settling_of([lens], (1,), seed)


def _settling_of(lenses: list[LogitLens], signs: tuple[int, ...], seed: int) -> Interval:
    """Sum of signed mean settling depths, documents drawn together for all lenses."""
    settled = lenses[0].metrics.index("settled")

    def depth(lens: LogitLens, weights: np.ndarray) -> np.ndarray:
        sums = np.tensordot(weights, lens.document_sums[:, settled], 1)
        return (1 - divide(sums, weights @ lens.document_counts[:, settled])).sum()

    def statistic(weights: np.ndarray) -> np.ndarray:
        each = [sign * depth(lens, weights) for sign, lens in zip(signs, lenses, strict=True)]
        return np.sum(each)

    documents = lenses[0].documents
    low, high = interval(statistic, documents, seed)
    return float(statistic(np.ones(documents, dtype=np.int64))), float(low), float(high)


def _same_texts(lenses: list[LogitLens]) -> bool:
    return all(
        np.array_equal(lens.document_counts, lenses[0].document_counts) for lens in lenses[1:]
    )


def _curves(lens: LogitLens, difference: LensDifference | None) -> Figure:
    if difference is None:
        caption = (
            "Mean KL divergence from the final prediction after each block, with 95% interval."
        )
        return Figure("lens", lens.figure("kl", view="curve"), caption, _numbers(lens, None))
    caption = (
        "Above: mean KL divergence from the final prediction after each block. Below: the "
        "difference, with documents drawn together for both. Bands are 95% intervals."
    )
    return Figure("lens", difference.figure("kl"), caption, _numbers(lens, difference))


def _numbers(lens: LogitLens, difference: LensDifference | None) -> Table:
    kl = lens.metrics.index("kl")
    if difference is None:
        columns = {"KL": lens.mean[kl], "low": lens.low[kl], "high": lens.high[kl]}
    else:
        columns = {
            difference.model: difference.means[0, kl],
            difference.other: difference.means[1, kl],
            "difference": difference.difference[kl],
            "low": difference.low[kl],
            "high": difference.high[kl],
        }
    title = "KL(final || layer) in nats, by blocks run"
    return table(title, {"blocks": range(lens.depths), **columns})


def _strata(lens: LogitLens) -> Figure:
    curves = lens.stratum_curves("kl")
    columns = {f"{name} ({tokens:,} tokens)": mean for name, tokens, mean, _, _ in curves}
    return Figure(
        "lens-strata",
        lens.figure("kl", view="strata"),
        f"The same for tokens apart by {lens.by}.",
        table(f"KL in nats by {lens.by}", {"blocks": range(lens.depths), **columns}),
    )
