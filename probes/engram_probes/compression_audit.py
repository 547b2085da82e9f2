"""Which raw tokens a memory cannot tell apart: those that share a compressed id."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engram_model.errors import UsageError
from engram_probes.bootstrap import divide
from engram_probes.provenance import Provenance, versions
from engram_probes.results import Result
from engram_probes.text import token_texts

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CompressionAudit(Result):
    """Compressed ids C, those that most raw tokens share first.

    Attributes:
        texts: of each id its raw tokens as shown, commonest first.
        compressed_ids: [C].
        raw_tokens: how many share the id, [C].
        occurrences: of these raw tokens in the corpus, [C]; None without one.
        lost: of them, those that are not the commonest raw token's, [C]; None without.
    """

    kind: ClassVar[str] = "compression"
    axes: ClassVar[dict[str, tuple[str, ...]]] = dict.fromkeys(
        ("compressed_ids", "raw_tokens", "occurrences", "lost"), ("id",)
    )
    units: ClassVar[dict[str, str]] = {"raw_tokens": "raw tokens", "occurrences": "tokens"}

    texts: tuple[str, ...]
    compressed_ids: np.ndarray
    raw_tokens: np.ndarray
    occurrences: np.ndarray | None = None
    lost: np.ndarray | None = None

    @property
    def merged(self) -> np.ndarray | None:
        """Share of an id's occurrences that are not the commonest raw token's, [C]; 0 for none."""
        if self.occurrences is None or self.lost is None:
            return None
        return np.nan_to_num(divide(self.lost, self.occurrences))

    def facts(self) -> dict[str, Any]:
        return {
            "raw tokens": int(self.raw_tokens.sum()),
            "compressed ids": len(self.compressed_ids),
            "shared": int((self.raw_tokens > 1).sum()),
        }

    def summary(self) -> str:
        raw, ids = int(self.raw_tokens.sum()), len(self.compressed_ids)
        shared = self.raw_tokens > 1
        said = (
            f"{raw:,} raw tokens have {ids:,} compressed ids ({1 - ids / raw:.1%} fewer); "
            f"{shared.sum():,} ids are shared, one by {self.raw_tokens.max()} tokens"
        )
        if self.occurrences is None or self.lost is None:
            return f"{said}."
        total = max(int(self.occurrences.sum()), 1)
        concerned = self.occurrences[shared].sum() / total
        return (
            f"{said}. Of {total:,} tokens of the corpus {concerned:.1%} have a shared id, and "
            f"{self.lost.sum() / total:.1%} are not the commonest of theirs."
        )

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each compressed id."""
        import pandas as pd

        frame = pd.DataFrame(
            {
                "compressed_id": self.compressed_ids,
                "raw_tokens": self.raw_tokens,
                "texts": self.texts,
            }
        )
        if self.occurrences is not None:
            frame["occurrences"], frame["merged"] = self.occurrences, self.merged
        return frame

    def figure(self, most: int = 20) -> "plotly.graph_objects.Figure":
        """The ids that lose most: occurrences that no row can tell from another token's.

        Without a corpus: those that most raw tokens share.
        """
        from engram_probes.figures.compression_audit import audit_figure

        return audit_figure(self, most)


def audit_compression(
    tokenizer: Any, compression: np.ndarray | None = None, raw_counts: np.ndarray | None = None
) -> CompressionAudit:
    """Which raw tokens share a compressed id, and how much of a corpus that concerns.

    Args:
        compression: raw id -> compressed id, int [vocabulary]; None: the map of this tokenizer.
        raw_counts: occurrences of each raw token, int [vocabulary], as `SlotIndex.raw_counts`.

    Raises:
        UsageError: counts of another vocabulary.
    """
    from engram_model.compression import compression_map, tokenizer_sha256

    compression = compression_map(tokenizer) if compression is None else compression
    counts = np.zeros(len(compression), np.int64) if raw_counts is None else np.asarray(raw_counts)
    if counts.shape != compression.shape:
        raise UsageError(f"counts of {counts.size} tokens for a vocabulary of {compression.size}")
    texts = np.array(token_texts(tokenizer, range(len(compression))), dtype=object)
    by = np.lexsort((-counts, compression))
    first = np.flatnonzero(np.diff(compression[by], prepend=-1))
    groups = np.split(by, first[1:])
    number = np.diff(np.append(first, len(by)))
    order = np.argsort(-number, kind="stable")
    total = np.add.reduceat(counts[by], first)[order]
    counted = raw_counts is not None
    return CompressionAudit(
        provenance=Provenance(
            models=[],
            tokenizer_sha256=tokenizer_sha256(tokenizer),
            corpus={"tokens": int(counts.sum())} if counted else {},
            versions=versions(),
        ),
        texts=tuple(" ".join(texts[groups[i]]) for i in order),
        compressed_ids=np.asarray(compression[by][first][order], dtype=np.int64),
        raw_tokens=number[order],
        occurrences=total if counted else None,
        lost=total - counts[by][first][order] if counted else None,
    )
