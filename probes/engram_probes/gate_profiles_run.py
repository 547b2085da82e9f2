"""Reading gates over a corpus: what is kept are counts and sums for blocks of documents.

A state has the same size whatever is read, and two states of one model add up to that of both
texts. Document n belongs to block n modulo `BLOCKS`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from engram_model.errors import CorpusError, UsageError
from engram_probes.bootstrap import BLOCKS, divide, interval
from engram_probes.capture import MemoryTrace, Subject
from engram_probes.gate_profiles import CONTROLS, LABELS, MEASURES, GateProfile
from engram_probes.positions import ENTITY_KINDS, last_tokens
from engram_probes.provenance import provenance
from engram_probes.strata import BANDS, MECHANISMS, frequency_bands, mechanism_names
from engram_probes.text import Documents

BINS = 50
EDGES = np.stack([np.linspace(0, 1, BINS + 1), np.logspace(-3, 2, BINS + 1)])
ROLES = ("end", "inside", "other")
STRATA = 2 * BANDS
TIERS = (0, 1, 4, 16, 64, 256)
SURPRISALS = ((0.0, 0.1), (0.1, 1.0), (1.0, 4.0), (4.0, np.inf))  # nats
GROUPS = (
    *(f"mechanism {name}" for name in MECHANISMS),
    *(f"end of a name, tier {tier}" for tier in TIERS),
    *(
        f"next token's surprisal {low:g} to {high:g}"
        if high < np.inf
        else f"next token's surprisal over {low:g}"
        for low, high in SURPRISALS
    ),
)


@dataclass(eq=False)
class GateState:
    """counts [block, label, role, stratum, measure, L, M, bin]; sums [block, group, measure, L, M]
    of gates and of logarithms of added sizes; tokens [block, group]; moments [block, L, M+1, M+1]
    of the gates and 1; totals [block, measure, L, M, bin]."""

    counts: np.ndarray
    sums: np.ndarray
    tokens: np.ndarray
    moments: np.ndarray
    totals: np.ndarray

    @classmethod
    def empty(cls, layers: int, streams: int) -> "GateState":
        sizes = (len(MEASURES), layers, streams)
        return cls(
            counts=np.zeros((BLOCKS, len(LABELS), len(ROLES), STRATA, *sizes, BINS), np.int32),
            sums=np.zeros((BLOCKS, len(GROUPS), *sizes)),
            tokens=np.zeros((BLOCKS, len(GROUPS)), np.int64),
            moments=np.zeros((BLOCKS, layers, streams + 1, streams + 1)),
            totals=np.zeros((BLOCKS, *sizes, BINS), np.int64),
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
        for group, members in enumerate(tokens.groups):
            self.sums[block, group] += logs[..., members].sum(-1)
            self.tokens[block, group] += members.sum()
        gates = np.concatenate([values[0], np.ones_like(values[0][:, :1])], 1)  # [L, M+1, p]
        self.moments[block] += np.einsum("lap,lbp->lab", gates, gates)


@dataclass(frozen=True, eq=False)
class _Tokens:
    """roles [label, p]: place in ROLES, -1 for none; strata [p]; groups bool [group, p]."""

    roles: np.ndarray
    strata: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True, eq=False)
class GateRun:
    subject: Subject
    tokenizer: Any
    documents: Documents
    state: GateState


def read(
    model, tokenizer, texts, most_documents: int | None, most_tokens: int | None, progress
) -> GateRun:
    """Run document after document. Longer ones are cut to the context."""
    subject = Subject.of(model)
    if not subject.memories:
        raise UsageError(f"{subject.name} has no memory, so it has no gates; give a model with one")
    documents = Documents(texts, most_documents)
    state, done = None, 0
    for number, document in enumerate(documents):
        values, tokens = _measure(subject, tokenizer, document)
        state = state or GateState.empty(*values.shape[1:3])
        state.add(number % BLOCKS, values, tokens)
        done += values.shape[-1]
        if progress:
            progress(documents.read, documents.total)
        if most_tokens is not None and done >= most_tokens:
            break
    if state is None:
        raise CorpusError("the corpus is empty: there is no text to read")
    return GateRun(subject, tokenizer, documents, state)


def _measure(subject: Subject, tokenizer, document: dict) -> tuple[np.ndarray, _Tokens]:
    encoded = tokenizer(document["text"], add_special_tokens=False, return_offsets_mapping=True)
    room = subject.context - 1
    ids = [tokenizer.bos_token_id, *encoded["input_ids"][:room]]
    subject.check_vocabulary(ids)
    with MemoryTrace(subject) as trace:
        logits = subject.logits(ids)
    traced = trace.arrays()
    added = divide(traced["added_norm"], traced["residual_norm"])
    values = np.stack([traced["gate"], added]).swapaxes(-1, -2)  # [measure, L, M, p]
    following = np.append(ids[1:], 0)
    surprisal = -logits.float().log_softmax(-1).cpu().numpy()[np.arange(len(ids)), following]
    surprisal[-1] = np.nan
    usual = ~subject.special(tokenizer, ids)
    tokens = _describe(tokenizer, document, encoded["offset_mapping"][:room], ids, surprisal)
    return values[..., usual], _Tokens(
        tokens.roles[:, usual], tokens.strata[usual], tokens.groups[:, usual]
    )


def _describe(tokenizer, document: dict, offsets, ids: list[int], surprisal) -> _Tokens:
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
    groups = [
        *(np.array(mechanisms, dtype=object) == name for name in MECHANISMS),
        *(np.array(tiers, dtype=object) == tier for tier in TIERS),
        *((surprisal >= low) & (surprisal < high) for low, high in SURPRISALS),
    ]
    begins = np.array([False, *(text[a : a + 1].isspace() for a, _ in offsets)])
    strata = frequency_bands(np.array(ids), len(tokenizer)) + BANDS * begins
    return _Tokens(roles, strata, np.array(groups, dtype=bool))


def _labels(span: dict) -> tuple[int, ...]:
    """Places in LABELS: what its last token ends."""
    kind = span.get("kind")
    entity = kind in ENTITY_KINDS
    phrase = kind == "phrase_tail"
    return tuple(place for place, is_one in enumerate((entity, phrase)) if is_one)


def statistics(run: GateRun, settings: dict[str, Any], seed: int) -> GateProfile:
    """The result. Blocks without documents are left out."""
    state, subject = run.state, run.subject
    blocks = min(BLOCKS, run.documents.read)
    counts = state.counts[:blocks].astype(np.float32)  # exact below 2^24, and products are fast

    def auc_of(weights: np.ndarray) -> np.ndarray:
        return _auc(np.tensordot(weights.astype(np.float32), counts, 1))

    once = np.ones(blocks, dtype=np.int64)
    low, high = interval(auc_of, blocks, seed)
    sums, tokens = state.sums[:blocks], state.tokens[:blocks]
    parts = np.concatenate([sums.reshape(blocks, len(GROUPS), -1), tokens[:, :, None]], -1)
    shape = sums.shape[1:]

    def means_of(weights: np.ndarray) -> np.ndarray:
        total = np.tensordot(weights, parts, 1)
        gates, logs = divide(total[:, :-1], total[:, -1:]).reshape(shape).swapaxes(0, 1)
        return np.stack([gates, np.exp(logs)], 1)

    group_low, group_high = interval(means_of, blocks, seed)
    return GateProfile(
        provenance=provenance(
            [subject.model], run.tokenizer, run.documents.description(), settings, seed
        ),
        layers=subject.memory_layers,
        labels=LABELS,
        controls=CONTROLS,
        measures=MEASURES,
        groups=GROUPS,
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
        correlation=_correlation(state.moments.sum(0)),
        histogram=state.totals.sum(0),
        edges=EDGES,
    )


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


def _correlation(moments: np.ndarray) -> np.ndarray:
    """Sums of products of M gates and 1 -> correlations [L, M, M]."""
    number = moments[:, -1:, -1:]
    mean = moments[:, :-1, -1:] / number
    covariance = moments[:, :-1, :-1] / number - mean * mean.swapaxes(-1, -2)
    spread = np.sqrt(np.einsum("lmm->lm", covariance))
    return divide(covariance, spread[:, :, None] * spread[:, None, :])
