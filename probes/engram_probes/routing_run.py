"""Which experts are chosen over a corpus: counts for blocks of documents.

A state has the same size whatever is read, and two states of one model add up to that of both
texts. Document n belongs to block n modulo `BLOCKS`.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from engram_model.bridge import as_bridge, routers, routing
from engram_model.errors import CorpusError, UsageError
from engram_probes.bootstrap import BLOCKS, divide, interval, ratio_interval
from engram_probes.capture import Subject, text_ids
from engram_probes.memory_changes import MemoryChanges
from engram_probes.provenance import provenance
from engram_probes.routing import GROUPS, ExpertRouting
from engram_probes.strata import MECHANISMS, Strata
from engram_probes.text import Documents, token_texts


@dataclass(frozen=True, eq=False)
class Choice:
    """One text: the chosen experts' ids and weights [L, p, k]; entropy [L, p] of the router's
    scores, nats; their number."""

    ids: np.ndarray
    weights: np.ndarray
    entropy: np.ndarray
    experts: int

    def each(self) -> np.ndarray:
        """Whether a token chose an expert, float32 [L, p, E]."""
        return _spread(self.ids, np.ones(self.ids.shape, np.float32), self.experts)

    def share_kept(self, other: "Choice") -> np.ndarray:
        """Of the experts of each token the share that `other` chose too, [L, p]."""
        return (self.ids[..., :, None] == other.ids[..., None, :]).any(-1).mean(-1)


@dataclass(eq=False)
class RoutingState:
    """counts [block, G, L, E] and tokens [block, G] by group; weights [block, L, E]; entropy
    [block, L]; together [L, E, E]; shifted [P, mechanism, L, E]; kept [block, C, G, L]; changed
    [C, G, L, E]: counts under each change."""

    counts: np.ndarray
    tokens: np.ndarray
    weights: np.ndarray
    entropy: np.ndarray
    together: np.ndarray
    shifted: np.ndarray
    kept: np.ndarray
    changed: np.ndarray

    @classmethod
    def empty(cls, layers: int, experts: int, changes: int, permutations: int) -> "RoutingState":
        groups, each = len(GROUPS), (layers, experts)
        return cls(
            counts=np.zeros((BLOCKS, groups, *each), np.int32),
            tokens=np.zeros((BLOCKS, groups), np.int64),
            weights=np.zeros((BLOCKS, *each)),
            entropy=np.zeros((BLOCKS, layers)),
            together=np.zeros((*each, experts), np.int64),
            shifted=np.zeros((permutations, len(MECHANISMS), *each), np.int64),
            kept=np.zeros((BLOCKS, changes, groups, layers)),
            changed=np.zeros((changes, groups, *each), np.int64),
        )

    def __add__(self, other: "RoutingState") -> "RoutingState":
        return RoutingState(
            *(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def add(self, block: int, choices: list[Choice], usual, mechanisms, generator) -> None:
        """One document.

        Args:
            choices: with the memory, then under each change.
            usual: bool [p], the tokens that count. mechanisms: of each, int [p], -1 for none.
            generator: of the shifts of mechanisms along the document.
        """
        intact = choices[0]
        each = intact.each()[:, usual]
        members = _members(mechanisms[usual])
        self.counts[block] += _by_group(members, each)
        self.tokens[block] += members.sum(1, dtype=np.int64)
        self.weights[block] += _spread(intact.ids, intact.weights, intact.experts)[:, usual].sum(1)
        self.entropy[block] += intact.entropy[:, usual].sum(1)
        self.together += np.einsum("lpe,lpf->lef", each, each).astype(np.int64)
        for shifted in self.shifted:
            places = np.roll(mechanisms[usual], generator.integers(1, max(usual.sum(), 2)))
            shifted += _by_group(_members(places)[1:], each)
        for change, choice in enumerate(choices[1:]):
            kept = intact.share_kept(choice)[:, usual]
            self.kept[block, change] += np.einsum("gp,lp->gl", members, kept)
            self.changed[change] += _by_group(members, choice.each()[:, usual])


def _members(mechanisms: np.ndarray) -> np.ndarray:
    """Whether a token belongs to each of `GROUPS`, float32 [G, p]; all do to the first."""
    of = mechanisms == np.arange(len(MECHANISMS))[:, None]
    return np.concatenate([np.ones_like(of[:1]), of]).astype(np.float32)


def _by_group(members: np.ndarray, each: np.ndarray) -> np.ndarray:
    """[G, p], [L, p, E] -> whole numbers [G, L, E]."""
    return np.einsum("gp,lpe->gle", members, each, optimize=True).astype(np.int64)


def _spread(ids: np.ndarray, values: np.ndarray, experts: int) -> np.ndarray:
    spread = np.zeros((*ids.shape[:-1], experts), np.float32)
    np.put_along_axis(spread, ids, values, -1)
    return spread


class _Listener:
    """Runs a text and tells which experts were chosen."""

    def __init__(self, model, tokenizer) -> None:
        self.bridge = as_bridge(model, tokenizer)
        self.subject = Subject.of(self.bridge)
        self._routers = routers(self.bridge)
        if not self._routers:
            raise UsageError(
                f"{self.subject.name} has no experts that are chosen; give a mixture of experts"
            )
        self.layers = tuple(self._routers)

    def choice(self, ids: list[int]) -> Choice:
        found: list[tuple[torch.Tensor, ...]] = []
        hooks = [
            router.register_forward_hook(lambda r, _args, out: found.append(routing(r, out)))
            for router in self._routers.values()
        ]
        try:
            self.subject.run([ids])
        finally:
            for hook in hooks:
                hook.remove()
        logits, weights, chosen = (torch.stack(part) for part in zip(*found, strict=True))
        weights = weights.float()
        return Choice(
            ids=chosen.cpu().numpy().astype(np.int64),
            weights=(weights / weights.sum(-1, keepdim=True)).cpu().numpy(),
            entropy=_entropy(logits.float(), weights, chosen).cpu().numpy(),
            experts=logits.shape[-1],
        )


def _entropy(logits: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Of a router's scores over all experts, nats.

    A router scores by softmax or by sigmoid; it is the one whose scores of the chosen experts are
    in the proportions of the weights that it gave them.
    """
    given = weights / weights.sum(-1, keepdim=True)
    best = None
    for scores in (logits.softmax(-1), logits.sigmoid()):
        chosen = scores.gather(-1, ids.long())
        apart = float((chosen / chosen.sum(-1, keepdim=True) - given).abs().mean())
        if best is None or apart < best[0] - 1e-6:
            best = apart, scores / scores.sum(-1, keepdim=True)
    assert best is not None
    return torch.special.entr(best[1]).sum(-1)


@dataclass(frozen=True, eq=False)
class RoutingRun:
    """What was read; chosen: experts a token; single: the fields of one text."""

    subject: Subject
    tokenizer: Any
    documents: Documents
    layers: tuple[int, ...]
    chosen: int
    changes: tuple[str, ...]
    state: RoutingState
    single: dict[str, Any] = field(default_factory=dict)


def read(
    model, tokenizer, texts, changes, most_documents, most_tokens, permutations, seed, progress
) -> RoutingRun:
    """Run document after document. Longer ones are cut to the context, but for one text alone."""
    listener = _Listener(model, tokenizer)
    subject = listener.subject
    changed = MemoryChanges(subject, changes, seed)
    documents = Documents(texts, most_documents)
    generator = np.random.default_rng(seed)
    state, chosen, single = None, 0, {}
    for number, document in enumerate(documents):
        ids = text_ids(subject, tokenizer, document["text"], documents.single)
        choices = []
        for condition in changed.conditions:
            if progress:
                progress(number, documents.total)  # a long text alone can be stopped too
            with changed.made(condition):
                choices.append(listener.choice(ids))
        sizes = len(listener.layers), choices[0].experts, len(changed.names)
        state = state or RoutingState.empty(*sizes, permutations)
        chosen = choices[0].ids.shape[-1]
        usual = ~subject.special(tokenizer, ids)
        state.add(number % BLOCKS, choices, usual, _mechanisms(document, tokenizer, ids), generator)
        if documents.single:
            single = _single(tokenizer, ids, choices)
        if progress:
            progress(documents.read, documents.total)
        if most_tokens is not None and state.tokens[:, 0].sum() >= most_tokens:
            break
    if state is None:
        raise CorpusError("the corpus is empty: there is no text to read")
    return RoutingRun(
        subject, tokenizer, documents, listener.layers, chosen, changed.names, state, single
    )


def _mechanisms(document: dict[str, Any], tokenizer, ids: list[int]) -> np.ndarray:
    if document.get("spans") is None:
        return np.full(len(ids), -1)
    return Strata.named("mechanism").of(document, tokenizer, ids)


def _single(tokenizer, ids: list[int], choices: list[Choice]) -> dict[str, Any]:
    return {
        "tokens": token_texts(tokenizer, ids),
        "expert_ids": np.stack([choice.ids for choice in choices]),
        "expert_weights": np.stack([choice.weights for choice in choices]),
    }


def statistics(run: RoutingRun, settings: dict[str, Any], seed: int) -> ExpertRouting:
    """The result. Blocks without documents are left out."""
    state, subject = run.state, run.subject
    blocks = min(BLOCKS, run.documents.read)
    counts, tokens = state.counts[:blocks], state.tokens[:blocks]
    each = state.counts[:blocks, 0].astype(np.float64)
    joint = counts[:, 1:].astype(np.float64)
    once = np.ones(blocks, np.int64)

    def even(weights: np.ndarray) -> np.ndarray:
        return evenness(np.tensordot(weights, each, 1))

    def informed(weights: np.ndarray) -> np.ndarray:
        return information(np.tensordot(weights, joint, 1))

    kept = state.kept[:blocks]
    named = {
        "load": (each, tokens[:, 0, None, None]),
        "router_entropy": (state.entropy[:blocks], tokens[:, 0, None]),
        "kept": (kept, tokens[:, None, :, None]),
        "difference": (kept[:, :1] - kept[:, 1:], tokens[:, None, :, None]),
    }
    fields: dict[str, Any] = {}
    for name, (sums, number) in named.items():
        fields[name] = divide(sums.sum(0), number.sum(0))
        fields[f"{name}_low"], fields[f"{name}_high"] = ratio_interval(sums, number, seed)
    for name, statistic in (("evenness", even), ("information", informed)):
        fields[name] = statistic(once)
        fields[f"{name}_low"], fields[f"{name}_high"] = interval(statistic, blocks, seed)
    total = tokens.sum(0)
    return ExpertRouting(
        provenance=provenance(
            [subject.model], run.tokenizer, run.documents.description(), settings, seed
        ),
        layers=run.layers,
        memory_layers=subject.memory_layers,
        chosen=run.chosen,
        changes=run.changes,
        groups=GROUPS,
        documents=run.documents.read,
        group_tokens=total,
        weight=divide(state.weights.sum(0), total[0]),
        together=divide(state.together, total[0]),
        information_null=np.stack([information(table) for table in state.shifted]),
        chance=chance(counts.sum(0), state.changed, total, run.chosen),
        **fields,
        **{"tokens": (), "expert_ids": None, "expert_weights": None, **run.single},
    )


def evenness(counts: np.ndarray) -> np.ndarray:
    """Entropy of the load [..., E] over that of an even one."""
    share = divide(counts, counts.sum(-1, keepdims=True))
    return -np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0).sum(-1) / np.log(
        counts.shape[-1]
    )


def information(joint: np.ndarray) -> np.ndarray:
    """Mutual information of group and expert, nats: counts [G, L, E] -> [L]; NaN without any."""
    total = joint.sum((0, 2), keepdims=True)
    share = divide(joint, total)
    apart = divide(share, share.sum(0, keepdims=True) * share.sum(2, keepdims=True))
    known = share > 0
    terms = np.where(known, share * np.log(np.where(known, apart, 1)), 0).sum((0, 2))
    return np.where(total[0, :, 0] > 0, terms, np.nan)


def chance(counts: np.ndarray, changed: np.ndarray, tokens: np.ndarray, chosen: int) -> np.ndarray:
    """Share kept by tokens that choose by the loads alone, [C, G, L].

    Args:
        counts: [G, L, E] with the memory; changed: [C, G, L, E] under each change.
        tokens: [G].
        chosen: experts a token.
    """
    loads = (divide(array, tokens[:, None, None]) for array in (counts, changed))
    before, after = loads
    return (before * after).sum(-1) / chosen
