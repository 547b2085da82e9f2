"""Attention scores over a corpus: sums for blocks of documents; induction on random tokens.

A state has the same size whatever is read, and two states of one model add up to that of both
texts. Document n belongs to block n modulo `BLOCKS`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engram_model.bridge import as_bridge, patterns
from engram_model.errors import CorpusError, UsageError
from engram_probes.attention import NEAR, SCORES, AttentionPatterns
from engram_probes.bootstrap import BLOCKS, divide, ratio_interval
from engram_probes.capture import CPU_TOKENS, Subject, check_vocabularies, text_ids
from engram_probes.memory_changes import INTACT, MemoryChanges
from engram_probes.provenance import provenance
from engram_probes.text import Documents, token_texts

INDUCTION = tuple(SCORES).index("induction")


@dataclass(eq=False)
class AttentionState:
    """sums [block, K, S, L, H] over queries; queries [block, S]."""

    sums: np.ndarray
    queries: np.ndarray

    @classmethod
    def empty(cls, conditions: int, layers: int, heads: int) -> "AttentionState":
        sums = np.zeros((BLOCKS, conditions, len(SCORES), layers, heads))
        return cls(sums, np.zeros((BLOCKS, len(SCORES)), np.int64))

    def __add__(self, other: "AttentionState") -> "AttentionState":
        return AttentionState(self.sums + other.sums, self.queries + other.queries)


@dataclass(frozen=True, eq=False)
class Queries:
    """Of one text: usual, the positions that ask, [q]; asking and answers, of those whose token
    occurred before, the position and that after the last occurrence, two of [r]."""

    usual: Tensor
    asking: Tensor
    answers: Tensor

    @classmethod
    def of(cls, ids: list[int], special: np.ndarray, device) -> "Queries":
        usual = np.flatnonzero(~special)
        usual = usual[usual > 1]
        last: dict[int, int] = {}
        pairs = []
        for position, token in enumerate(ids):
            answer = last.get(token, position) + 1
            if position in usual and answer < position:
                pairs.append((position, answer))
            last[token] = position
        asking, answers = np.array(pairs, np.int64).reshape(-1, 2).T
        return cls(*(torch.from_numpy(each).to(device) for each in (usual, asking, answers)))

    def counts(self) -> np.ndarray:
        counts = np.full(len(SCORES), len(self.usual))
        counts[INDUCTION] = len(self.asking)
        return counts

    def sums(self, pattern: Tensor) -> Tensor:
        """[1, head, query, key] -> scores summed over queries, float64 [S, head]."""
        pattern = pattern[0].double()
        rows = pattern[:, self.usual]
        keys = torch.arange(pattern.shape[-1], device=pattern.device)
        back = self.usual[:, None] - keys  # how far, [q, key]
        later = rows * (keys > 0)
        scores = {
            "first": rows[..., 0],
            "previous": (rows * (back == 1)).sum(-1),
            "near": (later * ((back >= 1) & (back <= NEAR))).sum(-1),
            "itself": (rows * (back == 0)).sum(-1),
            "induction": pattern[:, self.asking, self.answers],
            "entropy": torch.special.entr(rows).sum(-1),
            "distance": (later * back).sum(-1) / later.sum(-1).clamp_min(1e-12),
        }
        return torch.stack([scores[name].sum(-1) for name in SCORES])


class Listener:
    """Runs texts in every condition of the memory and measures each pattern as it comes by."""

    def __init__(self, model, tokenizer, changes: tuple[str, ...], seed: int) -> None:
        self.bridge = as_bridge(model, tokenizer)
        self.subject = Subject.of(self.bridge)
        self.changes = MemoryChanges(self.subject, changes, seed)

    def measure(self, batch: list[list[int]], measure) -> np.ndarray:
        """[condition, layer, ...] of what `measure(pattern [batch, head, query, key])` gives."""
        conditions = self.changes.conditions
        return np.stack([self.heard(batch, measure, each)[1].numpy() for each in conditions])

    def heard(
        self, batch: list[list[int]], measure, condition: str
    ) -> tuple[tuple[int, ...], Tensor]:
        """Texts of one length in one condition, `INTACT` first: the layers with attention, and
        [layer, ...] of what `measure` gives, layer after layer."""
        found: dict[int, Tensor] = {}

        def keep(layer: int, pattern: Tensor) -> None:
            found[layer] = measure(pattern).cpu()

        with self.changes.made(condition), patterns(self.bridge, keep):
            self.subject.run(batch)
        layers = tuple(sorted(found))
        return layers, torch.stack([found[layer] for layer in layers])


@dataclass(frozen=True, eq=False)
class AttentionRun:
    """What was read. repeated, fresh: of each sequence, [n, K, L, H]; twin: its listener and
    state."""

    listener: Listener
    tokenizer: Any
    documents: Documents
    layers: tuple[int, ...]
    state: AttentionState
    repeated: np.ndarray
    fresh: np.ndarray
    twin: tuple[Subject, AttentionState] | None
    tokens: tuple[str, ...]
    pattern: np.ndarray | None

    @property
    def changes(self) -> tuple[str, ...]:
        return self.listener.changes.names


def read(
    model, twin, tokenizer, texts, changes, most_documents, most_tokens, sequences, length, seed,
    progress,
) -> AttentionRun:  # fmt: skip
    """Run document after document. Longer ones are cut to the context, but for one text alone."""
    listeners = [Listener(model, tokenizer, changes, seed)]
    if twin is not None:
        listeners.append(Listener(twin, tokenizer, (), seed))
        _check(*(listener.subject for listener in listeners))
    subject = listeners[0].subject
    documents = Documents(texts, most_documents)
    states: list[AttentionState] = []
    done, ids = 0, []
    for number, document in enumerate(documents):
        ids = text_ids(subject, tokenizer, document["text"], documents.single)
        queries = Queries.of(ids, subject.special(tokenizer, ids), subject.model.device)
        sums = [listener.measure([ids], queries.sums) for listener in listeners]  # [K, L, S, H]
        states = states or [
            AttentionState.empty(len(each), each.shape[1], each.shape[-1]) for each in sums
        ]
        for state, each in zip(states, sums, strict=True):
            state.sums[number % BLOCKS] += each.swapaxes(1, 2)
            state.queries[number % BLOCKS] += queries.counts()
        done += len(queries.usual)
        if progress:
            progress(documents.read, documents.total)
        if most_tokens is not None and done >= most_tokens:
            break
    if not states:
        raise CorpusError("the corpus is empty: there is no text to read")
    layers, pattern = listeners[0].heard([ids], lambda pattern: pattern[0].float(), INTACT)
    repeated, fresh = _induction(listeners[0], tokenizer, sequences, length, seed)
    return AttentionRun(
        listener=listeners[0],
        tokenizer=tokenizer,
        documents=documents,
        layers=layers,
        state=states[0],
        repeated=repeated,
        fresh=fresh,
        twin=(listeners[1].subject, states[1]) if twin is not None else None,
        tokens=token_texts(tokenizer, ids) if documents.single else (),
        pattern=pattern.numpy() if documents.single else None,
    )


def _check(subject: Subject, twin: Subject) -> None:
    check_vocabularies(subject, twin)
    if len(subject.layers) != len(twin.layers):
        raise UsageError(
            f"{subject.name} has {len(subject.layers)} layers and {twin.name} {len(twin.layers)}: "
            "compare models of as many"
        )
    if twin.context < subject.context:
        raise UsageError(
            f"{twin.name} reads {twin.context:,} tokens and {subject.name} {subject.context:,}; "
            "give the one that reads less first"
        )


def _induction(
    listener: Listener, tokenizer, sequences: int, length: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Attention to what followed the first of two occurrences, of each sequence [n, K, L, H]: where
    random tokens are repeated, and at the same positions where others follow instead."""
    generator = np.random.default_rng(seed)
    vocabulary = min(len(tokenizer), listener.subject.config.vocab_size)
    usual = np.setdiff1d(np.arange(vocabulary), tokenizer.all_special_ids)
    length = min(length, len(usual) // 2, (listener.subject.context - 1) // 2)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    # The last of the first half is followed by the second half itself, so it is left out.
    asking = torch.arange(length - 1, device=listener.subject.model.device) + len(start) + length
    answers = asking - length + 1

    def score(pattern: Tensor) -> Tensor:
        return pattern[:, :, asking, answers].double().mean(-1)

    pairs: list[list[int]] = []
    for _ in range(sequences):
        drawn = generator.permutation(usual)[: 2 * length].tolist()
        first, other = drawn[:length], drawn[length:]
        pairs += [[*start, *first, *second] for second in (first, other)]
    at_once = max(1, CPU_TOKENS // len(pairs[0]))
    found = [
        listener.measure(pairs[at : at + at_once], score) for at in range(0, len(pairs), at_once)
    ]
    scores = np.concatenate(found, axis=2).transpose(2, 0, 1, 3)
    return scores[::2], scores[1::2]


def statistics(run: AttentionRun, settings: dict[str, Any], seed: int) -> AttentionPatterns:
    """The result. Blocks without documents are left out."""
    subject = run.listener.subject
    blocks = min(BLOCKS, run.documents.read)
    sums = run.state.sums[:blocks]
    queries = run.state.queries[:blocks]
    heads, by_layer = queries[:, None, :, None, None], queries[:, None, :, None]
    layer_sums = sums.mean(-1)
    one = np.ones((len(run.repeated), 1, 1, 1))
    fields: dict[str, Any] = {
        **_estimate(("mean", "low", "high"), sums, heads, seed),
        **_estimate(_three("change"), sums[:, 1:] - sums[:, :1], heads, seed),
        **_estimate(("layer_mean", "layer_low", "layer_high"), layer_sums, by_layer, seed),
        **_estimate(_three("layer_change"), layer_sums[:, 1:] - layer_sums[:, :1], by_layer, seed),
        **_estimate(_three("repeated"), run.repeated, one, seed),
        **_estimate(_three("fresh"), run.fresh, one, seed),
        **dict.fromkeys((*_three("twin_layer"), *_three("difference"), *_three("overall"))),
        "twin_mean": None,
    }
    models = [subject.model]
    if run.twin is not None:
        twin, state = run.twin
        models.append(twin.model)
        others = state.sums[:blocks, 0]  # [block, S, L, H']
        fields["twin_mean"] = divide(others.sum(0), queries.sum(0)[:, None, None])
        others = others.mean(-1)
        by_layer = queries[:, :, None]
        fields |= _estimate(_three("twin_layer"), others, by_layer, seed)
        apart = layer_sums[:, 0] - others
        fields |= _estimate(_three("difference"), apart, by_layer, seed)
        fields |= _estimate(_three("overall"), apart.mean(-1), queries, seed)
    return AttentionPatterns(
        provenance=provenance(models, run.tokenizer, run.documents.description(), settings, seed),
        layers=run.layers,
        memory_layers=subject.memory_layers,
        scores=tuple(SCORES),
        changes=run.changes,
        twin=run.twin[0].name if run.twin else "",
        documents=run.documents.read,
        queries=int(queries[:, 0].sum()),
        tokens=run.tokens,
        pattern=run.pattern,
        **fields,
    )


def _three(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


def _estimate(
    names: tuple[str, str, str], sums: np.ndarray, counts: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    low, high = ratio_interval(sums, counts, seed)
    return dict(zip(names, (divide(sums.sum(0), counts.sum(0)), low, high), strict=True))
