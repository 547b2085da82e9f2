"""What a part of a report is: one probe, measured, and then told from its results alone.

A part is a frozen dataclass whose fields are its options in a config. All that it says comes from
saved results, so that a report can be told again, or compared with another, without a model.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from engram_app.console import progress
from engram_probes.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

Results = dict[str, Result]  # by the name of their folder
Tokens = Annotated[int, "tokens"]  # an option that may be written "4K"; 0: all
Count = Annotated[int, "count"]  # an option that is 1 or more
Interval = tuple[float, float, float]  # estimate, low, high
FEW_DOCUMENTS = 30


@dataclass(frozen=True)
class Inputs:
    """What all parts measure with.

    Attributes:
        model, twin, tokenizer: opened; twin is None if there is none.
        checkpoints: what the model, and the twin, were opened from.
        documents: what the corpus probes read, whole documents.
        tokens: how many tokens they have.
        seed: of every random choice.
        notes: a part adds what it had to leave out, and why.
    """

    model: Any
    twin: Any
    tokenizer: Any
    checkpoints: tuple[str, ...]
    documents: list[dict]
    tokens: int
    seed: int
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> str:
        return f"{self.tokens:,} tokens of {len(self.documents):,} documents"

    def first(self, most: int) -> str:
        """As `size`, of those that read `most` tokens; 0: all."""
        if not most or most >= self.tokens:
            return self.size
        return f"about the first {most:,} of {self.size}"

    @property
    def names(self) -> list[str]:
        """How the models are called."""
        from engram_probes.provenance import model_name

        return [model_name(model) for model in (self.model, self.twin) if model is not None]

    def bar(self, what: str, unit: str) -> AbstractContextManager[Callable[..., None]]:
        return progress(what, unit)


@dataclass(frozen=True)
class KeyNumber:
    """A number of the header: what it is, with its interval and what it is over.

    id: its name in checks, see docs/report.md.
    difference: whether its sign is what matters.
    headline: whether it stands at the top of the page; all stand in the table of numbers.
    """

    id: str
    name: str
    value: float
    unit: str
    over: str
    low: float | None = None
    high: float | None = None
    difference: bool = False
    headline: bool = True

    @property
    def undecided(self) -> bool:
        """Whether its interval holds zero."""
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high


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
        return self.figure.layout.meta["alt"]


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
    """What the page tells of a part. The id is the part's name."""

    finding: str
    method: str
    caveats: list[str]
    figures: list[Figure]
    strips: list[Strip] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """Base of the parts. A subclass sets the class attributes, has its options as fields with
    defaults, and defines `size`, `measure` and `section`.

    Attributes:
        name: in `probes` and as a table of the config.
        title, question: of the section.
        needs: what it cannot do without: "memory", "twin".
        rank: of its sentence among the findings, the smallest first.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    rank: ClassVar[int] = 9

    def unfit(self, inputs: Inputs) -> str:
        """Why it does not apply to these models; "" if it does."""
        from engram_model.memories import memories_of

        if "memory" in self.needs and not memories_of(inputs.model):
            return "the model has no memory"
        if "twin" in self.needs and inputs.twin is None:
            return "it compares two models and no twin was given"
        return ""

    def depends(self, inputs: Inputs) -> list[str]:
        """Checksums of what it reads besides the models and the corpus."""
        return []

    def size(self, inputs: Inputs) -> str:
        """What will be read, in words."""
        raise NotImplementedError

    def measure(self, inputs: Inputs) -> Results:
        """Run the probe.

        Raises:
            UsageError, CorpusError: it cannot be done on these models or texts.
        """
        raise NotImplementedError

    def section(self, results: Results) -> Section:
        raise NotImplementedError

    def key_numbers(self, results: Results) -> list[KeyNumber]:
        return []

    def alerts(self, results: Results) -> list[str]:
        """What weakens its numbers, for the top of the page."""
        return []

    def paired(self, first: Results, second: Results, seed: int) -> dict[str, Interval]:
        """First less second by id of the key number, where both runs read the same texts and what
        they have in common cancels."""
        return {}

    def overlaid(self, first: Results, second: Results) -> list[Figure]:
        """Figures with both runs in them; without any, those of each stand side by side."""
        return []


def few_documents(documents: int) -> list[str]:
    """An alert where intervals draw from few; in the same words from every part."""
    if documents >= FEW_DOCUMENTS:
        return []
    return [f"Little text: intervals draw from {documents:,} documents only."]


def ends(low: float, high: float) -> tuple[float | None, float | None]:
    """An interval, or None twice where there is none."""
    return (float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else (None, None)


def cell(value: Any) -> str:
    """Of a table: numbers to three places, a dash for what is not there."""
    if value is None:
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:.3f}" if np.isfinite(value) else "–"
    if isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_):
        return f"{value:,}"
    return str(value)


def table(title: str, columns: Mapping[str, Iterable[Any]]) -> Table:
    """From columns of equal length."""
    return Table(
        title,
        list(columns),
        [[cell(value) for value in row] for row in zip(*columns.values(), strict=True)],
    )


def frame_table(title: str, frame: Any) -> Table:
    """From a pandas table."""
    rows: Iterator[tuple] = frame.itertuples(index=False, name=None)
    return Table(title, list(map(str, frame.columns)), [[cell(v) for v in row] for row in rows])


def lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
