"""Figures of the paper (arXiv 2601.07372) as numbers read off them, to lay beside ours.

They are in docs/results/paper, each with how it was read, what it says, and which of our results
measures the same.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engram_model.errors import CheckpointError
from engram_probes.records import FAULTS

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

SCHEMA = "engram.paper-figure/1"
LISTS, ARRAYS = ("lines", "bars", "ours"), ("matrix", "soft")


@dataclass(frozen=True)
class PaperFigure:
    """One figure of the paper: lines, bars, or a matrix with its soft alignment line.

    Attributes:
        number: of the figure in the paper.
        read: how the numbers were read off, and how exactly.
        says: what it shows, and with how much evidence.
        lines: each with a name, x and y.
        bars: each with a name, a value, and a group where the paper has groups.
        matrix, soft: CKA by row (layer of the baseline) and column, [R, C]; soft alignment, [C].
        ours: our results that measure the same, relative to docs/results; empty: none yet.
        ours_says: what ours show beside it.
    """

    source: str
    number: str
    title: str
    read: str
    says: str
    y: str
    x: str = ""
    log_x: bool = False
    lines: tuple[dict[str, Any], ...] = ()
    bars: tuple[dict[str, Any], ...] = ()
    matrix: np.ndarray | None = None
    soft: np.ndarray | None = None
    ours: tuple[str, ...] = ()
    ours_says: str = ""

    def summary(self) -> str:
        return f"The paper's figure {self.number}. {self.says}"

    def to_frame(self) -> "pandas.DataFrame":
        """The numbers as read off: one row a point, bar or cell."""
        import pandas as pd

        if self.matrix is not None:
            row, column = (index.ravel() for index in np.indices(self.matrix.shape))
            return pd.DataFrame({self.y: row, self.x: column, "CKA": self.matrix.ravel()})
        if self.bars:
            return pd.DataFrame(list(self.bars))
        points = [
            {"line": line["name"], self.x: x, self.y: y}
            for line in self.lines
            for x, y in zip(line["x"], line["y"], strict=True)
        ]
        return pd.DataFrame(points)

    def figure(self) -> "plotly.graph_objects.Figure":
        """Drawn anew from the numbers."""
        from engram_probes.figures.paper import paper_figure

        return paper_figure(self)


def read_paper_figure(file: Path) -> PaperFigure:
    """One of docs/results/paper.

    Raises:
        CheckpointError: it is no such file, or damaged.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if document.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        read: dict[str, Any] = {name: tuple(document.get(name, ())) for name in LISTS}
        read |= {n: np.array(document[n], dtype=float) for n in ARRAYS if n in document}
        return PaperFigure(**{**document, **read})
    except (*FAULTS, RecursionError) as error:
        raise CheckpointError(f"{file} holds no figure of the paper: {error}") from error
