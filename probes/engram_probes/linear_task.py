"""What a linear probe is asked: positions of documents, the label of each, and what ties them.

Labels come from the `spans` of a corpus (see docs/world.md). Documents are cut after the last
position that is looked at: a causal model cannot see further.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from engram_model.errors import CorpusError, UsageError
from engram_probes.positions import ENTITY_KINDS, last_tokens
from engram_probes.text import Documents, with_bos

At = Literal["next", "entity"]
Label = str | Callable[[dict[str, Any], dict[str, Any]], Any]
NGRAM = 3  # longest suffix n-gram whose identity is a baseline


@dataclass(frozen=True)
class Candidate:
    """A position of a document that has a label. `entity`: of whom the span is, if of anybody."""

    position: int
    label: str
    entity: str | None


@dataclass(frozen=True)
class Labelled:
    """A document's ids, `<bos>` first, cut after the last of its candidates."""

    ids: list[int]
    candidates: list[Candidate]


@dataclass(frozen=True, eq=False)
class Task:
    """n labelled positions of documents.

    Attributes:
        documents: those that have one, in the order that the arrays follow.
        labels: index into `classes`, int64 [n].
        groups: positions of one document or of one entity share a number, int64 [n].
        classes: names.
    """

    documents: list[Labelled]
    labels: np.ndarray
    groups: np.ndarray
    classes: tuple[str, ...]

    @property
    def token_ids(self) -> np.ndarray:
        """Id of the token at each position, int64 [n]."""
        ids = [d.ids[c.position] for d in self.documents for c in d.candidates]
        return np.array(ids, dtype=np.int64)

    def suffixes(self, size: int) -> np.ndarray:
        """The last `size` ids up to each position, int64 [n, size]; -1 before the start."""
        rows = []
        for document in self.documents:
            padded = [-1] * size + document.ids
            rows += [padded[c.position + 1 :][:size] for c in document.candidates]
        return np.array(rows, dtype=np.int64)


def place_of(label: Label) -> At:
    """Where a label is looked for unless told otherwise.

    The mechanism, kind and need of memory are of the token to come; whatever else a span or a
    person has, a tier or a fact, is looked for at the end of a name.
    """
    return "next" if label in ("mechanism", "kind", "needs_memory") else "entity"


def make_task(
    documents: Documents,
    tokenizer,
    special_of: Callable[[list[int]], np.ndarray],
    context: int,
    label: Label,
    at: At,
    positions: int,
    per_document: int,
    most_classes: int,
    folds: int,
    seed: int,
) -> Task:
    """Read the documents, choose positions, and keep the classes that can be cross-validated.

    Args:
        special_of: ids -> bool [positions], what statistics leave out.
        positions: most positions; documents are taken in random order until there are so many.
        folds: groups that a class needs at least.

    Raises:
        CorpusError: an empty corpus, or one without spans.
        UsageError: no such label, one class, or fewer groups than folds.
    """
    generator = np.random.default_rng([seed, 2])
    found, seen = [], Seen()
    for document in documents:
        seen.add(document)
        labelled = _labelled(document, tokenizer, special_of, context, label, at)
        chosen = generator.permutation(len(labelled.candidates))[:per_document]
        if len(chosen):
            kept = [labelled.candidates[i] for i in sorted(chosen)]
            found.append(replace(labelled, candidates=kept))
    seen.check(documents.read, label, bool(found), at)
    order = generator.permutation(len(found))
    return _task([found[i] for i in order], positions, most_classes, folds)


class Seen:
    """What the spans of a corpus offer, for errors that say so."""

    def __init__(self) -> None:
        self.spans = False
        self.fields: set[str] = set()
        self.kinds: set[str] = set()

    def add(self, document: dict[str, Any]) -> None:
        spans = document.get("spans")
        self.spans |= spans is not None
        for span in spans or ():
            self.fields |= {name for name, value in span.items() if value is not None}
            self.kinds |= {span["kind"]} if span.get("kind") else set()

    def check(self, read: int, label: Label, found: bool, at: At) -> None:
        if not read:
            raise CorpusError("the corpus is empty: there is no text to read")
        if not self.spans:
            raise CorpusError(
                "the corpus has no column 'spans', so nothing is labelled; use a corpus with spans "
                "such as world:"
            )
        if not found:
            name = label if isinstance(label, str) else "of the function"
            known = sorted(self.fields - {"start", "end", "source_start", "source_end"})
            raise UsageError(
                f"no position has a label {name} (looked for at {at}); spans have the fields "
                f"{', '.join(known)} and the kinds {', '.join(sorted(self.kinds)[:20])}"
            )


def _labelled(document, tokenizer, special_of, context: int, label: Label, at: At) -> Labelled:
    spans = document.get("spans") or []
    encoded = tokenizer(document["text"], add_special_tokens=False, return_offsets_mapping=True)
    ids = with_bos(tokenizer, encoded["input_ids"])
    shift = len(ids) - len(encoded["input_ids"])
    ids = ids[:context]
    offsets = encoded["offset_mapping"][: len(ids) - shift]
    places = _next_tokens(spans, offsets) if at == "next" else _first_mentions(spans, offsets)
    special = special_of(ids) if ids else np.zeros(0, dtype=bool)
    candidates = []
    for token, span in places:
        value = label_of(label, document, span)
        position = token + shift
        if value is not None and position >= 0 and not special[position]:
            candidates.append(Candidate(position, str(value), span.get("entity_id")))
    last = max((c.position for c in candidates), default=-1)
    return Labelled(ids[: last + 1], candidates)


def _next_tokens(spans: list[dict], offsets: list[tuple[int, int]]) -> list[tuple[int, dict]]:
    """Each token that comes before a token of a span, with that span."""
    from engram_model.world.labels import token_spans

    owners = token_spans(spans, offsets)
    return [(token - 1, spans[owner]) for token, owner in enumerate(owners) if owner is not None]


def _first_mentions(spans: list[dict], offsets: list[tuple[int, int]]) -> list[tuple[int, dict]]:
    """The last token of the first mention of each entity: before it nothing was said of it."""
    first: dict[Any, tuple[int, dict]] = {}
    for span, token in zip(spans, last_tokens(spans, offsets), strict=True):
        if span.get("kind") in ENTITY_KINDS and token is not None:
            entity = span.get("entity_id")
            first.setdefault(span["end"] if entity is None else entity, (token, span))
    return list(first.values())


def label_of(label: Label, document: dict[str, Any], span: dict[str, Any]) -> Any:
    """A span's label: what the function says, a field, or else a fact of its entity.

    The fact is the text of a span of that kind about the same entity, told anywhere in the
    document as true: one with `needs_memory` false is what this document alone says.
    """
    if callable(label):
        return label(document, span)
    if label in span:
        return span[label]
    for other in document["spans"]:
        of_it = other.get("entity_id") is not None and other["entity_id"] == span.get("entity_id")
        if of_it and other.get("kind") == label and other.get("needs_memory") is not False:
            return document["text"][other["start"] : other["end"]]
    return None


def _task(documents: list[Labelled], positions: int, most_classes: int, folds: int) -> Task:
    """Keep the commonest classes that have groups enough, then as many positions as asked for."""
    classes = _classes(documents, most_classes, folds)
    documents = _up_to(_only(documents, classes), positions)
    # A cut may leave a class with too few groups.
    classes = _classes(documents, most_classes, folds)
    documents = _only(documents, classes)
    index = {name: i for i, name in enumerate(classes)}
    labels = [index[c.label] for d in documents for c in d.candidates]
    return Task(documents, np.array(labels, dtype=np.int64), tie(documents), classes)


def _classes(documents: list[Labelled], most: int, folds: int) -> tuple[str, ...]:
    names = np.array([c.label for d in documents for c in d.candidates])
    groups = tie(documents)
    if len(np.unique(groups)) < folds:
        raise UsageError(
            f"{len(np.unique(groups))} groups (documents, or entities) with a label are fewer than "
            f"{folds} folds; read more documents"
        )
    found, counts = np.unique(names, return_counts=True)
    spread = {name: len(np.unique(groups[names == name])) for name in found}
    common = [str(found[i]) for i in np.argsort(-counts, kind="stable")]
    kept = [name for name in common if spread[name] >= folds][:most]
    if len(kept) < 2:
        raise UsageError(
            f"{len(kept)} of {len(found)} classes have {folds} groups (documents, or entities) or "
            "more and a probe needs two; read more documents, or choose a coarser label"
        )
    return tuple(sorted(kept, key=_in_order))


def _in_order(name: str) -> tuple[bool, float, str]:
    """Numbers by size, then names."""
    return (False, float(name), "") if name.isdecimal() else (True, 0.0, name)


def _only(documents: list[Labelled], classes: tuple[str, ...]) -> list[Labelled]:
    kept = []
    for document in documents:
        candidates = [c for c in document.candidates if c.label in classes]
        if candidates:
            kept.append(_cut(document, candidates))
    return kept


def _up_to(documents: list[Labelled], positions: int) -> list[Labelled]:
    kept, room = [], positions
    for document in documents:
        if room <= 0:
            break
        kept.append(_cut(document, document.candidates[:room]))
        room -= len(document.candidates)
    return kept


def _cut(document: Labelled, candidates: list[Candidate]) -> Labelled:
    last = max(c.position for c in candidates)
    return Labelled(document.ids[: last + 1], candidates)


def tie(documents: list[Labelled]) -> np.ndarray:
    """Group of each position: those of one document or of one entity are together, by any path."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes: dict[str, int] = {}
    own, others, number = [], [], len(documents)
    for document, labelled in enumerate(documents):
        for candidate in labelled.candidates:
            own.append(document)
            others.append(document)
            if candidate.entity is not None:
                others[-1] = number + nodes.setdefault(candidate.entity, len(nodes))
    size = number + len(nodes)
    edges = coo_array((np.ones(len(own)), (own, others)), shape=(size, size))
    component = connected_components(edges, directed=False)[1]
    return component[own].astype(np.int64)
