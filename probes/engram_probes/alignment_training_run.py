"""Running all checkpoints of a training and a baseline over the same positions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engram_model.errors import UsageError
from engram_probes.alignment_run import (
    Picker,
    Progress,
    check_options,
    described,
    read_blocks,
)
from engram_probes.alignment_state import Estimate, Layout, features
from engram_probes.alignment_training import TrainingAlignment
from engram_probes.capture import Subject, check_vocabularies
from engram_probes.hsic import HsicSums, hsic_of_centred, u_centred
from engram_probes.positions import Choice
from engram_probes.provenance import provenance
from engram_probes.text import Documents


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingState:
    """HSIC sums of each block: of every checkpoint (and the null, last) with the baseline, and of
    every checkpoint with the last. Two parts of a corpus add up."""

    baseline: tuple[list[HsicSums], ...] = ()
    final: tuple[list[HsicSums], ...] = ()
    documents: int = 0
    samples: int = 0
    texts: tuple[dict, ...] = ()

    def __add__(self, other: "TrainingState") -> "TrainingState":
        return TrainingState(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingRun:
    """The options of `alignment_over_training`, and their checks."""

    checkpoints: Sequence
    model_b: Any
    tokenizer: Any
    trained: Sequence[int] | None
    null: Any
    positions: str
    per_document: int
    k: int
    seed: int

    def __post_init__(self) -> None:
        Choice(self.positions)
        check_options(self.per_document, self.k, self.baseline)
        if len(self.checkpoints) < 2:
            raise UsageError(
                f"{len(self.checkpoints)} checkpoint: an alignment over training needs at least 2"
            )
        if self.trained is not None and len(self.trained) != len(self.checkpoints):
            raise UsageError(
                f"tokens has {len(self.trained)} numbers and there are {len(self.checkpoints)} "
                "checkpoints"
            )
        layers = {len(subject.layers) for subject in self.subjects}
        if len(layers) > 1:
            raise UsageError(
                f"the checkpoints have {' and '.join(map(str, sorted(layers)))} layers; give those "
                "of one training"
            )
        for subject in self._others:
            check_vocabularies(subject, self.baseline)
        if len(set(self.tokens)) < len(self.tokens):
            raise UsageError(
                f"two checkpoints were trained on as many tokens ({self.tokens}); give those of "
                "one training, each once"
            )

    @cached_property
    def baseline(self) -> Subject:
        return Subject.of(self.model_b)

    @cached_property
    def _ordered(self) -> list[tuple[int, Subject]]:
        subjects = [Subject.of(model) for model in self.checkpoints]
        trained = self.trained or [tokens_of(subject) for subject in subjects]
        pairs = zip(trained, subjects, strict=True)
        return sorted(pairs, key=lambda pair: pair[0])

    @property
    def tokens(self) -> list[int]:
        return [tokens for tokens, _ in self._ordered]

    @property
    def subjects(self) -> list[Subject]:
        return [subject for _, subject in self._ordered]

    @property
    def _others(self) -> list[Subject]:
        """All that are compared with the baseline."""
        return self.subjects + ([] if self.null is None else [Subject.of(self.null)])

    def read(
        self,
        texts: Any,
        batch_size: int | None = None,
        max_documents: int | None = None,
        progress: Progress = None,
    ) -> TrainingState:
        picker = Picker(
            choice=Choice(self.positions),
            tokenizer=self.tokenizer,
            context=min(subject.context for subject in (self.baseline, *self._others)),
            per_document=self.per_document,
            seed=self.seed,
            sinks=False,
        )
        documents = Documents(texts, max_documents)
        return read_blocks(documents, picker, batch_size, self._block, progress)

    def _block(self, picked: list) -> TrainingState:
        block = [columns for (columns, _), _, _ in picked]
        layout = Layout.of(block)
        if not layout.batches:
            return TrainingState()
        self.baseline.check_vocabulary([max(picked.ids) for picked in block])
        rows = features(self.baseline, block)
        columns = [features(subject, block) for subject in self._others]
        last = len(self.subjects) - 1
        baseline, final = [], []
        for batch in layout.batches:
            fixed = u_centred(rows[:, batch])
            moving = [u_centred(one[:, batch]) for one in columns]
            baseline.append([hsic_of_centred(fixed, one) for one in moving])
            final.append([hsic_of_centred(moving[last], one) for one in moving[: last + 1]])
        return TrainingState(
            baseline=([HsicSums.total(parts) for parts in zip(*baseline, strict=True)],),
            final=([HsicSums.total(parts) for parts in zip(*final, strict=True)],),
            documents=len(layout.batches[0]),
            samples=layout.samples,
        )

    def result(self, state: TrainingState, batch_size: int) -> TrainingAlignment:
        against = [
            Estimate.of(blocks, self.k, self.seed) for blocks in zip(*state.baseline, strict=True)
        ]
        itself = [Estimate.of(blocks, 1, self.seed) for blocks in zip(*state.final, strict=True)]
        seeds = {} if self.null is None else _null(against.pop())
        last = self.subjects[-1]
        settings = {
            "positions": self.positions,
            "per_document": self.per_document,
            "batch_size": batch_size,
            "k": self.k,
        }
        models = [subject.model for subject in (*self._others, self.baseline)]
        return TrainingAlignment(
            provenance=provenance(
                models, self.tokenizer, described(state.texts), settings, self.seed
            ),
            model=last.name,
            checkpoints=tuple(subject.name for subject in self.subjects),
            model_b=self.baseline.name,
            null_model=None if self.null is None else self._others[-1].name,
            memory_layers=last.memory_layers,
            positions=self.positions,
            documents=state.documents,
            samples=state.samples,
            blocks=len(state.baseline),
            batch_size=batch_size,
            k=self.k,
            tokens=np.array(self.tokens, dtype=np.int64),
            matrix=np.stack([one.matrix for one in against]),
            soft_index=np.stack([one.soft for one in against]),
            soft_low=np.stack([one.soft_low for one in against]),
            soft_high=np.stack([one.soft_high for one in against]),
            final=np.stack([np.diag(one.matrix) for one in itself]),
            final_low=np.stack([np.diag(one.low) for one in itself]),
            final_high=np.stack([np.diag(one.high) for one in itself]),
            **seeds,
        )


def _null(found: Estimate) -> dict[str, np.ndarray]:
    return {
        "null_index": found.soft,
        "null_low": found.soft_low,
        "null_high": found.soft_high,
    }


def tokens_of(subject: Subject) -> int:
    """Tokens that a checkpoint was trained on, as its folder's training log says.

    Raises:
        UsageError: there is no such log.
    """
    path = Path(str(subject.model.config.name_or_path)) / "training_log.json"
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
        return int(log["step"]) * int(log["tokens_per_step"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"{subject.name} has no training_log.json that says its tokens; give tokens="
        ) from None
