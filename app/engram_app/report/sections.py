"""The sections of a report: of each probe its question, method, figures, tables and caveats."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from engram_app.colours import Scale
from engram_app.measures import memory_values, strip_tokens
from engram_app.report.findings import gate_finding
from engram_app.report.measure import Measured
from engram_probes.gate_profiles import GateProfile
from engram_probes.gates import GateMap

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Table:
    """Header and rows of text."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Figure:
    """A figure with its caption, its description in words, and its numbers as a table."""

    name: str
    figure: "go.Figure"
    caption: str
    table: Table

    @property
    def alt(self) -> str:
        return (self.figure.layout.meta or {}).get("alt", self.caption)


@dataclass(frozen=True)
class Strip:
    """A text coloured token by token; tokens as of `strip_tokens`."""

    name: str
    summary: str
    scale: str
    low: str
    high: str
    tokens: list[dict[str, Any]]


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    question: str
    method: str
    finding: str
    caveats: list[str]
    figures: list[Figure] = field(default_factory=list)
    strips: list[Strip] = field(default_factory=list)


def sections(found: Measured) -> list[Section]:
    """One section a probe that was run, in the order of the text."""
    parts = [
        _gates(found) if found.gates else None,
        _gate_profile(found.gate_profile) if found.gate_profile is not None else None,
        _lens(found),
        _alignment(found) if found.alignment is not None else None,
    ]
    return [part for part in parts if part is not None]


def _gates(found: Measured) -> Section:
    first = next(iter(found.gates.values()))
    layers = ", ".join(map(str, first.layers))
    return Section(
        id="gates",
        title="Where the memory speaks",
        question="On which tokens does the memory add something, and how much?",
        method=(
            f"Each text is run once. At layer {layers} the n-grams of orders 2 to "
            f"{first.max_ngram_size} that end at a token are hashed to rows of a table; the rows "
            "give keys and a value, and a gate, one for each residual stream, lets part of the "
            "value into the stream. Colour is the norm of what was added over the norm of the "
            "residual it entered, all streams together: a gate alone is not a contribution."
        ),
        finding=gate_finding(found),
        caveats=[
            f"Texts were chosen as examples (n = {len(found.gates)}); they are no sample of "
            "anything.",
            "That something is added says nothing about whether it is used: this is a reading, "
            "not an intervention.",
        ],
        strips=_strips(found),
        figures=[_gate_figure(first, next(iter(found.gates)))],
    )


def _gate_profile(profile: GateProfile) -> Section:
    rows = [
        [
            name,
            f"{profile.group_tokens[g].max():,}",
            *(_number(v) for v in profile.group_mean[g].mean((1, 2))),
        ]
        for g, name in enumerate(profile.groups)
        if profile.group_tokens[g].any()
    ]
    frame = profile.to_frame()
    labelled = frame[frame["auc"].notna()]
    figures = [
        Figure(
            "gate-groups",
            profile.figure("groups"),
            "Mean gate by kind of token, a point for each layer and stream.",
            Table(
                "Means over layers and streams", ["tokens that", "number", *profile.measures], rows
            ),
        )
    ]
    if len(labelled):
        cells = [
            [str(v) if not isinstance(v, float) else _number(v) for v in row]
            for row in labelled.itertuples(index=False, name=None)
        ]
        table = Table("AUC of each layer and stream", list(labelled.columns), cells)
        caption = "How well each gate tells where a name or a set phrase ends."
        figures.append(Figure("gate-auc", profile.figure("auc"), caption, table))
    return Section(
        id="gate-profile",
        title="What opens the gates",
        question="Do the gates open where names and set phrases end, or for something else?",
        method=(
            "Over the corpus, every layer and stream; none is picked. The AUC is the probability "
            "that a gate is larger at the last token of a name or phrase than at a token of no "
            "such span, of like frequency and alike in whether it begins a word. Groups are by "
            "mechanism of the span, by how often training told of the name that ends, and by the "
            "surprisal of the next token."
        ),
        finding=profile.summary(),
        caveats=[
            "With several gates a token, one will fit any story; read all of them.",
            "Spans are known for corpora that have them, such as the synthetic world.",
        ],
        figures=figures,
    )


def _strips(found: Measured) -> list[Strip]:
    """All texts on one scale, the widest."""
    measured = {name: memory_values(gates, "added") for name, gates in found.gates.items()}
    scale = max((scale for _, scale in measured.values()), key=lambda scale: scale.high)
    return [
        _strip(name, found.gates[name], values, scale) for name, (values, _) in measured.items()
    ]


def _strip(name: str, gates: GateMap, values: np.ndarray, scale: Scale) -> Strip:
    tokens = strip_tokens(gates.tokens, values, gates.special, scale, "added")
    return Strip(name, gates.summary(), scale.title, "0", f"{scale.high:.2g}", tokens)


def _gate_figure(gates: GateMap, name: str) -> Figure:
    layer = gates.layers[0] if len(gates.layers) == 1 else None
    values = {what: gates.values(what, layer) for what in ("added", "gate", "score")}
    if layer is None:
        values = {what: array.mean(0) for what, array in values.items()}
    rows = [
        [str(position), token, *(_number(values[what][position]) for what in values)]
        for position, token in enumerate(gates.tokens)
    ]
    table = Table(
        f"Numbers of the text “{name}”", ["position", "token", "added", "gate", "score"], rows
    )
    return Figure(
        "gates",
        gates.figure("gate", layer),
        f"Gates of the text “{name}”, stream by stream; 0.5 is neutral.",
        table,
    )


def _lens(found: Measured) -> Section | None:
    lens, difference = found.lens, found.difference
    if lens is None:
        return None
    result = difference or lens
    caption = (
        "Above: mean KL divergence from the final prediction after each block. Below: the "
        "difference, with documents drawn together for both. Bands are 95% intervals."
        if difference
        else "Mean KL divergence from the final prediction after each block, with 95% interval."
    )
    figure = difference.figure("kl") if difference else lens.figure("kl", view="curve")
    return Section(
        id="lens",
        title="When the prediction is settled",
        question="How early does the model predict what it ends up predicting?",
        method=(
            "After every block the residual is read as if it were the last: streams collapsed by "
            "the model's own head, the final norm recomputed, the unembedding applied. KL(final || "
            "layer) is in nats. A token is settled at the first depth from which its top "
            "prediction stays the final one. Position 0 and special tokens are left out; intervals "
            "are bootstrapped over documents. The last depth differs from the model's logits by "
            f"{lens.max_difference:.1g} at most."
        ),
        finding=result.summary(),
        caveats=[
            "The lens reads early layers in the final layer's basis; a high KL there may be a "
            "change of basis and not ignorance.",
            f"{lens.positions:,} tokens of {lens.documents:,} documents.",
        ],
        figures=[Figure("lens", figure, caption, _lens_table(found))],
    )


def _lens_table(found: Measured) -> Table:
    lens, difference = found.lens, found.difference
    assert lens is not None
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
    rows = [
        [str(depth), *(_number(column[depth]) for column in columns.values())]
        for depth in range(lens.depths)
    ]
    return Table("KL(final || layer) in nats, by blocks run", ["blocks", *columns], rows)


def _alignment(found: Measured) -> Section:
    result = found.alignment
    assert result is not None
    rows = [
        [str(row), *(f"{value:.2f}" for value in values)]
        for row, values in enumerate(result.matrix)
    ]
    header = [f"{result.model_b} \\ {result.model_a}", *map(str, range(result.matrix.shape[1]))]
    chosen = "the last token of each entity" if result.positions == "entity" else "sampled tokens"
    return Section(
        id="alignment",
        title="Which layers are alike",
        question="Does a layer of the model do what a deeper layer of its twin does?",
        method=(
            f"Debiased CKA between the residuals after every block of both models, at {chosen}, at "
            f"most {result.per_document} a document and never two of one document in a batch; "
            "numerators and denominators are summed over batches before the ratio. The null "
            f"permutes samples within batches ({result.permutations} times). The soft alignment of "
            f"a layer is the centre of the {result.k} most alike layers of the twin (arXiv "
            "2601.07372, eq. 9). Intervals draw blocks of documents."
        ),
        finding=result.summary(),
        caveats=[
            "CKA can move without a change of function; the overlap of nearest neighbours, in "
            "tables/cka.csv, is a second, local measure.",
            f"{result.samples:,} samples of {result.documents:,} documents, "
            f"{result.batches:,} batches.",
        ],
        figures=[
            Figure(
                "alignment",
                result.figure("cka"),
                f"Left: rows are layers of {result.model_b}, columns those of {result.model_a}; "
                "the white line is the soft alignment, the dashed one the same layer. Right: the "
                "same samples permuted.",
                Table("Debiased CKA", header, rows),
            )
        ],
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "–"
