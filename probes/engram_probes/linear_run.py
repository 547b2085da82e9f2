"""Running the models of a linear probe, and what `linear.probe` makes of it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch

from engram_model.errors import UsageError
from engram_probes.bootstrap import interval
from engram_probes.capture import Subject, batches, check_vocabularies, heard
from engram_probes.linear import IDENTITY, MAJORITY, NO_DEPTH, LinearProbe, metrics_of
from engram_probes.linear_fit import INNER_FOLDS, Design, Reading, make_design, read
from engram_probes.linear_task import NGRAM, At, Label, Task, make_task
from engram_probes.provenance import provenance
from engram_probes.text import Documents

WRAPPED = "_original_component."  # in the names of a model that a TransformerBridge holds


@dataclass(frozen=True, eq=False)
class Source:
    """One set of features: whose, at which depth, and the numbers, [n, d]."""

    name: str
    depth: int
    features: Any


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearRun:
    """The options of `linear.probe`, and their checks."""

    model: Any
    twin: Any
    tokenizer: Any
    label: Label
    at: At
    depths: tuple[int, ...] | None
    positions: int
    per_document: int
    most_classes: int
    folds: int
    seed: int

    def __call__(
        self,
        texts: Any,
        max_documents: int | None,
        progress: Callable[[int, int | None], None] | None,
    ) -> LinearProbe:
        subjects = self._subjects()
        depths = [self._depths(subject) for subject in subjects]
        documents = Documents(texts, max_documents)
        task = self._task(subjects, documents)
        design = make_design(
            task.labels, task.groups, task.token_ids, len(task.classes), self.folds, self.seed
        )
        total = 2 + sum(map(len, depths)) + len(subjects[0].memories)
        sources, readings = [], []
        for source in self._sources(subjects, depths, task):
            readings.append(read(source.features, design))
            sources.append(Source(source.name, source.depth, source.features.shape[1]))
            if progress:
                progress(len(readings), total)
        return self._result(subjects, documents, task, design, sources, readings)

    def _subjects(self) -> list[Subject]:
        """The model, the same one untrained, and the twin."""
        self._check()
        subject = Subject.of(self.model)
        subjects = [subject, Subject.of(untrained(subject.model, self.seed))]
        if self.twin is not None:
            subjects.append(Subject.of(self.twin))
            check_vocabularies(subject, subjects[-1])
        return subjects

    def _check(self) -> None:
        if self.at not in get_args(At):
            raise UsageError(f"at {self.at!r}: use 'next' or 'entity'")
        least = {"positions": 10, "per_document": 1, "most_classes": 2, "folds": 2}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise UsageError(f"{name} {getattr(self, name)}: use at least {smallest}")

    def _depths(self, subject: Subject) -> tuple[int, ...]:
        last = len(subject.layers)
        if self.depths is None:
            return tuple(range(last + 1))
        wrong = [depth for depth in self.depths if not 0 <= depth <= last]
        if wrong or not self.depths:
            raise UsageError(
                f"depths {', '.join(map(str, self.depths)) or 'none'}: {subject.name} has 0 (the "
                f"embedding) to {last}"
            )
        return tuple(sorted(set(self.depths)))

    def _task(self, subjects: list[Subject], documents: Documents) -> Task:
        def special(ids: list[int]) -> np.ndarray:
            subjects[0].check_vocabulary(ids)
            return subjects[0].special(self.tokenizer, ids)

        return make_task(
            documents,
            self.tokenizer,
            special,
            min(subject.context for subject in subjects),
            self.label,
            self.at,
            self.positions,
            self.per_document,
            self.most_classes,
            self.folds,
            self.seed,
        )

    def _sources(
        self, subjects: list[Subject], depths: list[tuple[int, ...]], task: Task
    ) -> Iterator[Source]:
        """The baselines, then depth by depth the models; those of one model are held at a time."""
        yield Source(MAJORITY, NO_DEPTH, np.zeros((len(task.labels), 1), dtype=np.float32))
        yield Source(IDENTITY, NO_DEPTH, one_hot(compressed_suffixes(task, self.tokenizer)))
        for number, subject in enumerate(subjects):
            residuals, rows = capture(subject, task, depths[number])
            name = _names(subjects)[number]
            if number == 0:
                for layer, array in rows.items():
                    yield Source(f"rows of layer {layer}", NO_DEPTH, array)
            for depth, array in zip(depths[number], residuals, strict=True):
                yield Source(name, depth, array)

    def _result(
        self,
        subjects: list[Subject],
        documents: Documents,
        task: Task,
        design: Design,
        sources: list[Source],
        readings: list[Reading],
    ) -> LinearProbe:
        names = _names(subjects)
        counts, sums = _by_group(task.groups, readings)

        def statistic(weights: np.ndarray) -> np.ndarray:
            return metrics_of(sums, counts, 0, weights)

        low, high = interval(statistic, len(counts), self.seed)
        trained = [subjects[0].model, *(subject.model for subject in subjects[2:])]
        corpus = documents.description()
        return LinearProbe(
            provenance=provenance(trained, self.tokenizer, corpus, self._settings(), self.seed),
            label=self._settings()["label"],
            at=self.at,
            model=names[0],
            untrained=names[1],
            twin=names[2] if len(names) > 2 else "",
            memory_layers=subjects[0].memory_layers,
            classes=task.classes,
            class_counts=np.bincount(task.labels, minlength=len(task.classes)),
            documents=len(task.documents),
            positions=len(task.labels),
            groups=len(counts),
            folds=len(design.splits),
            sources=tuple(source.name for source in sources),
            depths=np.array([source.depth for source in sources], dtype=np.int64),
            widths=np.array([source.features for source in sources], dtype=np.int64),
            values=statistic(np.ones(len(counts), dtype=np.int64)),
            low=low,
            high=high,
            group_sums=sums,
            group_counts=counts,
            strengths=np.array([reading.strengths for reading in readings]),
            unconverged=sum(reading.unconverged for reading in readings),
        )

    def _settings(self) -> dict[str, Any]:
        return {
            "label": self.label if isinstance(self.label, str) else "function",
            "at": self.at,
            "depths": None if self.depths is None else list(self.depths),
            "positions": self.positions,
            "per_document": self.per_document,
            "most_classes": self.most_classes,
            "folds": self.folds,
            "inner_folds": INNER_FOLDS,
        }


def _names(subjects: list[Subject]) -> list[str]:
    """Of the model, of it untrained, and of the twin; a second one of the same name is marked."""
    name = subjects[0].name
    names = [name, f"{name}, untrained"]
    for twin in subjects[2:]:
        names.append(f"{twin.name} (twin)" if twin.name == name else twin.name)
    return names


def _by_group(groups: np.ndarray, readings: list[Reading]) -> tuple[np.ndarray, np.ndarray]:
    """Positions of each group [G], and right, right on the control task and bits [3, R, G]."""
    which = np.unique(groups, return_inverse=True)[1]
    sums = [
        [np.bincount(which, values) for values in quantity]
        for quantity in (
            [reading.right for reading in readings],
            [reading.control_right for reading in readings],
            [reading.bits for reading in readings],
        )
    ]
    return np.bincount(which), np.array(sums)


def untrained(model, seed: int):
    """A model of the same config with the weights that a training begins with.

    Its buffers, such as the hash and the compression of token ids, are those of the model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = type(model)(copy.deepcopy(model.config))
    given = {name.replace(WRAPPED, ""): buffer for name, buffer in model.named_buffers()}
    with torch.no_grad():
        for name, buffer in twin.named_buffers():
            buffer.copy_(given[name])
    return twin.to(device=model.device, dtype=model.dtype).eval()


def capture(
    subject: Subject, task: Task, depths: tuple[int, ...]
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Collapsed residuals [depths, n, d], and of each memory layer the rows read, [n, C * width].

    Batches take documents of like length together; the arrays follow the task's order.
    """
    by_length = sorted(range(len(task.documents)), key=lambda i: len(task.documents[i].ids))
    residuals: dict[int, np.ndarray] = {}
    rows: dict[int, dict[int, np.ndarray]] = {layer: {} for layer in subject.memory_layers}
    for batch in batches(by_length, lambda i: len(task.documents[i].ids), subject.tokens_at_once):
        ids = [task.documents[i].ids for i in batch]
        with _rows_read(subject) as kept:
            found = subject.residuals(ids)
        for place, i in enumerate(batch):
            at = [c.position for c in task.documents[i].candidates]
            chosen = torch.stack([found.depths[depth][place, at] for depth in depths])
            residuals[i] = chosen.float().cpu().numpy()
            for layer, tensor in kept.items():
                rows[layer][i] = tensor[place, at].flatten(1).float().cpu().numpy()
    order = range(len(task.documents))
    together = np.concatenate([residuals[i] for i in order], axis=1)
    return together, {layer: np.concatenate([one[i] for i in order]) for layer, one in rows.items()}


@contextmanager
def _rows_read(subject: Subject) -> Iterator[dict[int, torch.Tensor]]:
    """While open, keeps the rows that each memory looks up, by layer."""
    kept: dict[int, torch.Tensor] = {}

    def keeper(layer: int) -> Callable[[str, torch.Tensor], None]:
        return lambda name, tensor: kept.update({layer: tensor} if name == "rows" else {})

    with ExitStack() as stack:
        for memory in subject.memories:
            stack.enter_context(heard(memory, keeper(memory.layer_id)))
        yield kept


def compressed_suffixes(task: Task, tokenizer) -> np.ndarray:
    """Compressed ids of the last tokens up to each position, [n, NGRAM]; -1 before the start."""
    from engram_model.compression import compression_map

    suffixes = task.suffixes(NGRAM)
    return np.where(suffixes < 0, -1, compression_map(tokenizer)[suffixes])


def one_hot(suffixes: np.ndarray):
    """A column for each suffix n-gram of each order that occurs, as a sparse [n, columns]."""
    from scipy.sparse import csr_array

    n, longest = suffixes.shape
    columns, width = [], 0
    for order in range(1, longest + 1):
        kinds, which = np.unique(suffixes[:, -order:], axis=0, return_inverse=True)
        columns.append(which.ravel() + width)
        width += len(kinds)
    indices = np.stack(columns, axis=1).ravel()
    rows = np.arange(0, n * longest + 1, longest)
    return csr_array((np.ones(n * longest, dtype=np.float32), indices, rows), shape=(n, width))
