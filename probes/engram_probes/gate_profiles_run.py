"""Reading gates over a corpus: what is kept are counts and sums for blocks of documents.

A state has the same size whatever is read, and two states of one model add up to that of both
texts. Document n belongs to block n modulo `BLOCKS`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from engram_model.errors import CorpusError, UsageError
from engram_model.scoring import opening_id
from engram_probes.bootstrap import BLOCKS, divide, interval
from engram_probes.capture import MemoryTrace, Subject, next_surprisal
from engram_probes.gate_correlations import correlations, features
from engram_probes.gate_groups import (
    TEXT_GROUPS,
    Group,
    ngram_groups,
    ngram_members,
    text_members,
)
from engram_probes.gate_profiles import CONTROLS, LABELS, MEASURES, GateProfile
from engram_probes.memory_tables import tables_of
from engram_probes.ngram_use import NgramUse
from engram_probes.positions import ENTITY_KINDS, last_tokens
from engram_probes.provenance import provenance
from engram_probes.rank_correlation import TokenSample, correlation, priorities
from engram_probes.slots_run import index_of
from engram_probes.strata import BANDS, frequency_bands, mechanism_names
from engram_probes.text import Documents

BINS = 50
EDGES = np.stack([np.linspace(0, 1, BINS + 1), np.logspace(-3, 2, BINS + 1)])
ROLES = ("end", "inside", "other")
STRATA = 2 * BANDS


@dataclass(eq=False)
class GateState:
    """counts [block, label, role, stratum, measure, L, M, bin]; sums [block, group, measure, L, M]
    of gates and of logarithms of added sizes; tokens [block, group, L]; moments
    [block, L, M+1, M+1] of the gates and 1; totals [block, measure, L, M, bin]; with an index a
    sample of tokens, for ranks."""

    counts: np.ndarray
    sums: np.ndarray
    tokens: np.ndarray
    moments: np.ndarray
    totals: np.ndarray
    sample: TokenSample

    @classmethod
    def empty(cls, layers: int, streams: int, groups: int) -> "GateState":
        sizes = (len(MEASURES), layers, streams)
        return cls(
            counts=np.zeros((BLOCKS, len(LABELS), len(ROLES), STRATA, *sizes, BINS), np.int32),
            sums=np.zeros((BLOCKS, groups, *sizes)),
            tokens=np.zeros((BLOCKS, groups, layers), np.int64),
            moments=np.zeros((BLOCKS, layers, streams + 1, streams + 1)),
            totals=np.zeros((BLOCKS, *sizes, BINS), np.int64),
            sample=TokenSample(),
        )

    def __add__(self, other: "GateState") -> "GateState":
        return GateState(
            *(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def add(self, block: int, values: np.ndarray, tokens: "_Tokens") -> None:
        """One document.

        Args:
            values: [measure, L, M, p] of its ordinary tokens.
        """
        bins = np.stack(
            [np.digitize(v, edges[1:-1]) for v, edges in zip(values, EDGES, strict=True)]
        )
        places = np.indices(bins.shape)[:-1]
        np.add.at(self.totals[block], (*places, bins), 1)
        for label, roles in enumerate(tokens.roles):
            known = roles >= 0
            where = (roles[known], tokens.strata[known], *places[..., known], bins[..., known])
            np.add.at(self.counts[block, label], where, 1)
        logs = np.stack([values[0], np.log(np.maximum(values[1], EDGES[1, 0]))])
        self.sums[block] += np.einsum("klmp,glp->gklm", logs, tokens.groups)
        self.tokens[block] += tokens.groups.sum(-1)
        gates = np.concatenate([values[0], np.ones_like(values[0][:, :1])], 1)  # [L, M+1, p]
        self.moments[block] += np.einsum("lap,lbp->lab", gates, gates)
        if tokens.features is not None:
            self.sample.add(block, *tokens.features)


@dataclass(frozen=True, eq=False)
class _Tokens:
    """roles [label, p]: place in ROLES, -1 for none; strata [p]; groups bool [group, L, p];
    priorities [n] and features [n, F] of those with a next token, given an index."""

    roles: np.ndarray
    strata: np.ndarray
    groups: np.ndarray
    features: tuple[np.ndarray, np.ndarray] | None


@dataclass(frozen=True, eq=False)
class _Reader:
    """What is read with: `counted` holds compression, use and fifths, given an index."""

    subject: Subject
    tokenizer: Any
    seed: int
    counted: tuple[np.ndarray, NgramUse, np.ndarray] | None = None

    @classmethod
    def of(cls, model, tokenizer, index: Any, controls: int, seed: int) -> "_Reader":
        subject = Subject.of(model)
        if not subject.memories:
            raise UsageError(
                f"{subject.name} has no memory, so it has no gates; give a model with one"
            )
        if index is None:
            return cls(subject, tokenizer, seed)
        tables = tables_of(model)
        use = NgramUse(index_of(tables, tokenizer, index, None), controls)
        counted = np.asarray(tables.compression), use, use.fifths(seed)
        return cls(subject, tokenizer, seed, counted)

    @property
    def groups(self) -> tuple[Group, ...]:
        return TEXT_GROUPS + (ngram_groups(self.counted[1].orders) if self.counted else ())


@dataclass(frozen=True, eq=False)
class GateRun:
    reader: _Reader
    documents: Documents
    state: GateState


def read(
    model,
    tokenizer,
    texts,
    most_documents: int | None,
    most_tokens: int | None,
    progress,
    index: Any = None,
    controls: int = 0,
    seed: int = 0,
) -> GateRun:
    """Run document after document. Longer ones are cut to the context."""
    reader = _Reader.of(model, tokenizer, index, controls, seed)
    documents = Documents(texts, most_documents)
    state: GateState | None = None
    done = 0
    for number, document in enumerate(documents):
        values, tokens = _measure(reader, document)
        if state is None:
            layers, streams = values.shape[1:3]
            state = GateState.empty(layers, streams, len(reader.groups))
        state.add(number % BLOCKS, values, tokens)
        done += values.shape[-1]
        if progress:
            progress(documents.read, documents.total)
        if most_tokens is not None and done >= most_tokens:
            break
    if state is None:
        raise CorpusError("the corpus is empty: there is no text to read")
    return GateRun(reader, documents, state)


def _measure(reader: _Reader, document: dict) -> tuple[np.ndarray, _Tokens]:
    subject, tokenizer = reader.subject, reader.tokenizer
    encoded = tokenizer(document["text"], add_special_tokens=False, return_offsets_mapping=True)
    room = subject.context - 1
    ids = [opening_id(tokenizer), *encoded["input_ids"][:room]]
    subject.check_vocabulary(ids)
    with MemoryTrace(subject) as trace:
        logits = subject.logits(ids)
    traced = trace.arrays()
    added = divide(traced["added_norm"], traced["residual_norm"])
    values = np.stack([traced["gate"], added]).swapaxes(-1, -2)  # [measure, L, M, p]
    surprisal = next_surprisal(logits.float().log_softmax(-1), ids)
    usual = ~subject.special(tokenizer, ids)
    roles, strata, members = _describe(
        tokenizer, document, encoded["offset_mapping"][:room], ids, surprisal
    )
    groups = np.repeat(members[:, None], values.shape[1], 1)  # [group, L, p]
    kept = None
    if reader.counted:
        compression, use, fifths = reader.counted
        used = use(compression[np.array(ids)])
        groups = np.concatenate([groups, ngram_members(used, fifths)])
        known = usual & np.isfinite(surprisal)
        kept = (
            priorities(document["text"], len(ids), reader.seed)[known],
            features(values, surprisal, used)[known],
        )
    tokens = _Tokens(roles[:, usual], strata[usual], groups[..., usual], kept)
    return values[..., usual], tokens


def _describe(tokenizer, document: dict, offsets, ids: list[int], surprisal):
    """Roles, strata and groups of every position, `<bos>` included."""
    from engram_model.world import token_spans

    spans = document.get("spans") or []
    size, text = len(ids), document["text"]
    owners = [None, *token_spans(spans, offsets)]
    roles = np.full((len(LABELS), size), ROLES.index("other") if spans else -1)
    for position, owner in enumerate(owners):
        for label in _labels(spans[owner]) if owner is not None else ():
            roles[label, position] = ROLES.index("inside")
    tiers: list[int | None] = [None] * size
    for span, end in zip(spans, last_tokens(spans, offsets), strict=True):
        if end is None:
            continue
        for label in _labels(span):
            roles[label, end + 1] = ROLES.index("end")
            if LABELS[label] == "entity":
                tiers[end + 1] = span.get("tier")
    mechanisms = [None, *mechanism_names(spans, owners[1:])]  # <bos> has none
    begins = np.array([False, *(text[a : a + 1].isspace() for a, _ in offsets)])
    strata = frequency_bands(np.array(ids), len(tokenizer)) + BANDS * begins
    return roles, strata, text_members(mechanisms, tiers, surprisal)


def _labels(span: dict) -> tuple[int, ...]:
    """Places in LABELS: what its last token ends."""
    kind = span.get("kind")
    entity = kind in ENTITY_KINDS
    phrase = kind == "phrase_tail"
    return tuple(place for place, is_one in enumerate((entity, phrase)) if is_one)


def statistics(run: GateRun, settings: dict[str, Any], seed: int) -> GateProfile:
    """The result. Blocks without documents are left out."""
    state, reader = run.state, run.reader
    blocks = min(BLOCKS, run.documents.read)
    counts = state.counts[:blocks].astype(np.float32)  # exact below 2^24, and products are fast

    def auc_of(weights: np.ndarray) -> np.ndarray:
        return _auc(np.tensordot(weights.astype(np.float32), counts, 1))

    once = np.ones(blocks, dtype=np.int64)
    low, high = interval(auc_of, blocks, seed)
    sums, tokens = state.sums[:blocks], state.tokens[:blocks]

    def means_of(weights: np.ndarray) -> np.ndarray:
        number = np.tensordot(weights, tokens, 1)[:, None, :, None]
        gates, logs = divide(np.tensordot(weights, sums, 1), number).swapaxes(0, 1)
        return np.stack([gates, np.exp(logs)], 1)

    group_low, group_high = interval(means_of, blocks, seed)
    described = run.documents.description()
    if reader.counted:
        described["index"] = reader.counted[1].corpus
    return GateProfile(
        provenance=provenance([reader.subject.model], reader.tokenizer, described, settings, seed),
        layers=reader.subject.memory_layers,
        labels=LABELS,
        controls=CONTROLS,
        measures=MEASURES,
        groups=tuple(group.name for group in reader.groups),
        group_kinds=tuple(group.kind for group in reader.groups),
        documents=run.documents.read,
        tokens=int(state.totals[:, 0, 0, 0].sum()),
        auc=auc_of(once),
        low=low,
        high=high,
        positives=state.counts[:, :, 0, :, 0, 0, 0].sum((0, 2, 3), dtype=np.int64),
        group_mean=means_of(once),
        group_low=group_low,
        group_high=group_high,
        group_tokens=tokens.sum(0),
        correlation=correlation(state.moments.sum(0)),
        histogram=state.totals.sum(0),
        edges=EDGES,
        **_frequency(run, blocks, seed),
    )


def _frequency(run: GateRun, blocks: int, seed: int) -> dict[str, Any]:
    """The fields that need an index."""
    if run.reader.counted is None:
        return {}
    _, use, fifths = run.reader.counted
    shape = run.state.totals.shape[2:4]
    number = len(use.orders), use.controls
    found = correlations(run.state.sample, shape, *number, blocks, seed)
    return {"orders": use.orders, "fifths": fifths, **found}


def _auc(counts: np.ndarray) -> np.ndarray:
    """[..., label, role, stratum, measure, L, M, bin] -> [..., label, control, measure, L, M].

    Matched: within each stratum, then the mean over strata weighted by their ends. Inside: all
    strata together, as the spans themselves are the match.
    """
    end, inside, other = (counts[..., role, :, :, :, :, :] for role in range(len(ROLES)))
    axis = -5  # stratum
    matched, weight = _wins(end, other)
    total = np.where(np.isnan(matched), 0, weight).sum(axis + 1)
    mean = divide(np.where(np.isnan(matched), 0, matched * weight).sum(axis + 1), total)
    within, _ = _wins(end.sum(axis), inside.sum(axis))
    return np.stack([mean, within], -4)


def _wins(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[..., bin] -> AUC [...], NaN where a side is empty, and the number of positives."""
    positive, negative = positive.astype(np.float64), negative.astype(np.float64)
    below = np.cumsum(negative, -1) - negative / 2
    number = positive.sum(-1)
    return divide((positive * below).sum(-1), number * negative.sum(-1)), number
