"""Writing a fact into the rows of a memory, and measuring what else that changes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engram_model.errors import UsageError
from engram_probes.provenance import provenance
from engram_probes.results import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

    from engram_model.row_patch import RowPatch

METHODS = ("gradient", "closed")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Edit(Result):
    """What an edit did. Prompts P: the edited one first, then paraphrases.

    Attributes:
        model: its name. answer: what was to follow. method, steps: how, and in how many steps.
        at: the tokens whose rows were written, as shown.
        layers: memory layers. rows: number of rows written.
        change: norm of what was added to the rows, over the norm of the rows.
        prompts: the edited one, then those given as paraphrases.
        log_prob_before, log_prob_after: of the whole answer, nats, [P].
        rank_before, rank_after: of the answer's first token, 1 is best, [P].
        touched: positions of the corpus that look up an edited row, by how many of them: place k
            counts those that share k + 1, [rows].
        touched_kl: mean KL(before || after) of the next-token prediction there, nats, [rows]; NaN
            where there are none.
        others, others_kl: positions that share no edited row, and the mean KL there: 0 but for what
            attention carries on from touched ones; None where there are none.
        documents: of the corpus read; 0 for none.
    """

    kind: ClassVar[str] = "edit"
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "log_prob_before": ("prompt",),
        "log_prob_after": ("prompt",),
        "rank_before": ("prompt",),
        "rank_after": ("prompt",),
        "touched": ("shared rows",),
        "touched_kl": ("shared rows",),
    }
    units: ClassVar[dict[str, str]] = {
        "log_prob_before": "nats",
        "log_prob_after": "nats",
        "touched": "positions",
        "touched_kl": "nats",
    }

    model: str
    answer: str
    method: str
    steps: int
    at: tuple[str, ...]
    layers: tuple[int, ...]
    rows: int
    change: float
    prompts: tuple[str, ...]
    log_prob_before: np.ndarray
    log_prob_after: np.ndarray
    rank_before: np.ndarray
    rank_after: np.ndarray
    touched: np.ndarray
    touched_kl: np.ndarray
    others: int
    others_kl: float | None
    documents: int

    def facts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "answer": self.answer,
            "rows": self.rows,
            "rank": f"{self.rank_before[0]} to {self.rank_after[0]}",
        }

    def summary(self) -> str:
        before, after = np.exp([self.log_prob_before[0], self.log_prob_after[0]])
        said = (
            f"{self.rows} rows at “{''.join(self.at)}” were changed by {self.change:.2f} of their "
            f"size: the probability of “{self.answer}” went from {before:.3f} to {after:.3f}"
        )
        if len(self.prompts) > 1:
            mean = np.exp(self.log_prob_after[1:]).mean()
            said += f", with {len(self.prompts) - 1} paraphrases to {mean:.3f} on average"
        if self.documents:
            number = int(self.touched.sum())
            kl = float(np.nansum(self.touched * np.nan_to_num(self.touched_kl)) / max(1, number))
            total = number + self.others
            elsewhere = "" if self.others_kl is None else f" (elsewhere {self.others_kl:.4f})"
            said += (
                f"; {number:,} of {total:,} other positions share a row, where the prediction "
                f"moved by {kl:.3f} nats{elsewhere}"
            )
        return f"{said}."

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each prompt."""
        import pandas as pd

        return pd.DataFrame(
            {
                "prompt": self.prompts,
                "edited": [True, *[False] * (len(self.prompts) - 1)],
                "log_prob_before": self.log_prob_before,
                "log_prob_after": self.log_prob_after,
                "rank_before": self.rank_before,
                "rank_after": self.rank_after,
            }
        )

    def spill_frame(self) -> "pandas.DataFrame":
        """One row for each number of shared rows."""
        import pandas as pd

        return pd.DataFrame(
            {
                "shared_rows": [0, *range(1, len(self.touched) + 1)],
                "positions": [self.others, *self.touched],
                "kl": np.array([self.others_kl, *self.touched_kl], float),
            }
        )

    def figure(self) -> "plotly.graph_objects.Figure":
        """Log-probability of the answer before and after, a pair of bars a prompt."""
        from engram_probes.figures.editing import edit_figure

        return edit_figure(self)


def edit(
    model,
    tokenizer,
    prompt: str,
    answer: str,
    *,
    at: str | None = None,
    method: str = "gradient",
    steps: int = 40,
    goal: float = 0.9,
    paraphrases: Sequence[str] = (),
    texts=None,
    max_documents: int | None = 200,
    progress: Callable[[int, int | None], None] | None = None,
) -> tuple[Edit, "RowPatch"]:
    """Write "after this prompt comes this answer" into the rows read at one place of the prompt.

    `gradient`: Adam steps on the looked-up rows alone until the answer has the probability `goal`.
    `closed`: one step, the smallest change of the rows that would bring the answer's first token
    `goal` times as likely as all others were the model linear in them.

    Args:
        model: an Engram model with a memory; it is left as it was, see `RowPatch.apply`.
        prompt, answer: texts; the answer begins with its space, if it has one.
        at: the last place in the prompt where these characters stand: the rows read at their last
            token are written. None: at the prompt's last token.
        steps: at most, for `gradient`.
        paraphrases: other prompts that should give the answer too.
        texts: a corpus on which spill-over is measured, as for other probes; None: not measured.
        max_documents: of it.
        progress: called with steps done, and at most.

    Returns:
        The result, and the patch that makes the edit.

    Raises:
        UsageError: no memory, no such method or place, or an empty text.
    """
    from engram_probes.capture import Subject
    from engram_probes.editing_run import edit_rows, position_of, score_answer, spill_over
    from engram_probes.text import describe_texts, token_texts

    if method not in METHODS or not 0 < goal < 1 or steps < 1:
        raise UsageError(
            f"method {method!r}, goal {goal}, steps {steps}: use one of {', '.join(METHODS)}, a "
            "goal between 0 and 1, and a step at least"
        )
    subject = Subject.of(model)
    if not subject.memories:
        raise UsageError(f"{subject.name} has no memory, so it has no rows to write")
    position = position_of(subject, tokenizer, prompt, at)
    patch, taken, shown = edit_rows(
        subject, tokenizer, prompt, answer, position, method, steps, goal, progress
    )
    prompts = (prompt, *paraphrases)
    before = [score_answer(subject, tokenizer, text, answer) for text in prompts]
    with patch.applied(subject.model):
        after = [score_answer(subject, tokenizer, text, answer) for text in prompts]
    spill = spill_over(subject, tokenizer, patch, texts, max_documents)
    old, new = (np.concatenate(list(part.values())) for part in (patch.before, patch.after))
    result = Edit(
        provenance=provenance(
            [subject.model],
            tokenizer,
            spill.corpus or describe_texts([prompt]),
            {"method": method, "steps": steps, "goal": goal, "at": at},
            None,
        ),
        model=subject.name,
        answer=answer,
        method=method,
        steps=taken,
        at=token_texts(tokenizer, shown),
        layers=subject.memory_layers,
        rows=patch.rows,
        change=float(np.linalg.norm(new - old) / np.linalg.norm(old)),
        prompts=prompts,
        log_prob_before=np.array([score for score, _ in before]),
        log_prob_after=np.array([score for score, _ in after]),
        rank_before=np.array([rank for _, rank in before]),
        rank_after=np.array([rank for _, rank in after]),
        touched=spill.touched,
        touched_kl=spill.touched_kl,
        others=spill.others,
        others_kl=spill.others_kl,
        documents=spill.documents,
    )
    return result, patch
