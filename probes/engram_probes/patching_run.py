"""Attribution patching: pairs made ready, estimates of all nodes, and the same done for real."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engram_model.bridge import as_bridge
from engram_model.bridge_patching import (
    Metric,
    Node,
    estimates,
    nodes_of,
    patched_metric,
    values_of,
)
from engram_model.errors import CorpusError, UsageError
from engram_model.tasks import Pair, pair_of
from engram_probes.attribution_run import subject_token
from engram_probes.capture import Subject
from engram_probes.patching import ROLES, AttributionPatching
from engram_probes.provenance import provenance
from engram_probes.text import token_texts

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Prompt:
    """A pair as tokens.

    clean, corrupted: ids, as many of each; target, against: the tokens whose logits are compared.
    changed: positions from the first that differs to the last, [first, end).
    """

    clean: list[int]
    corrupted: list[int]
    target: int
    against: int
    changed: slice

    def runs(self, direction: str) -> tuple[list[int], list[int]]:
        """Ids of the run that is patched, and of the one it is patched from."""
        pair = self.corrupted, self.clean
        return pair if direction == "denoising" else pair[::-1]

    def places(self, roles: bool) -> np.ndarray:
        """Bool [places, positions]: the roles, or each position from the first change on."""
        length, first, end = len(self.clean), self.changed.start, self.changed.stop
        if not roles:
            return np.eye(length, dtype=bool)[first:]
        at = np.arange(length)
        last = at == length - 1
        inside = (at >= first) & (at < end - 1)
        between = (at >= end) & ~last
        return np.stack([inside, (at == end - 1) & ~last, between, last])


@dataclass(frozen=True, eq=False)
class Patcher:
    """A model whose nodes are patched."""

    bridge: Any
    nodes: list[Node]
    steps: int

    def values(self, ids: list[int], metric: Metric) -> tuple[dict[str, Tensor], float]:
        return values_of(self.bridge, self._tokens(ids), self.nodes, metric)

    def estimate(self, ids, receiver, source, metric: Metric, places: np.ndarray) -> np.ndarray:
        """[N, P]; NaN where a place has no position."""
        found = estimates(
            self.bridge, self._tokens(ids), receiver, source, self.nodes, metric, self.steps
        )
        return _at(found.cpu().double().numpy() @ places.T, places)

    def exact(
        self, ids, before: float, source, metric: Metric, places: np.ndarray, chosen: np.ndarray
    ) -> np.ndarray:
        """[N, P]; NaN where it is not asked for."""
        wanted = np.argwhere(chosen & places.any(1))
        where = torch.from_numpy(places).to(self.bridge.original_model.device)
        cells = [(self.nodes[node], where[place]) for node, place in wanted]
        found = np.full(chosen.shape, np.nan)
        if cells:
            after = patched_metric(self.bridge, self._tokens(ids), source, cells, metric)
            found[tuple(wanted.T)] = after.cpu().double().numpy() - before
        return found

    def _tokens(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=self.bridge.original_model.device)


def run(
    model,
    tokenizer,
    clean: Any,
    given: tuple[Any, Any, Any],
    direction: str,
    steps: int,
    heads: bool,
    check: int | None,
    draws: int,
    seed: int,
    progress: Progress | None,
) -> AttributionPatching:
    subject = Subject.of(model)
    bridge = as_bridge(model, tokenizer)
    pairs = _pairs(clean, given)
    training = bridge.original_model.training
    bridge.original_model.eval()  # no dropout
    try:
        prompts = [_prompt(subject, tokenizer, pair) for pair in pairs]
        patcher = Patcher(bridge, nodes_of(bridge, heads), steps)
        one = isinstance(clean, str)
        prompts, metric = _answered(patcher, prompts, one)
        sources = _null_sources(prompts, tokenizer, subject, direction, draws, seed)
        arrays = _effects(patcher, prompts, sources, direction, check, seed, one, progress)
    finally:
        bridge.original_model.train(training)
    first, nodes = prompts[0], patcher.nodes
    start = first.changed.start
    texts = [token_texts(tokenizer, ids) if one else () for ids in (first.clean, first.corrupted)]
    answers = token_texts(tokenizer, [first.target, first.against]) if one else ("", "")
    return AttributionPatching(
        provenance=provenance(
            [subject.model],
            tokenizer,
            _describe(pairs),
            {
                "direction": direction,
                "steps": steps,
                "heads": heads,
                "check": check,
                "draws": draws if len(prompts) == 1 else None,
                "null": "random tokens" if len(prompts) == 1 else "other pairs",
            },
            seed,
        ),
        clean=texts[0],
        corrupted=texts[1],
        target=answers[0],
        against=answers[1],
        direction=direction,
        steps=steps,
        nodes=tuple(node.label for node in nodes),
        kinds=tuple(node.kind for node in nodes),
        layers=np.array([_layer(node) for node in nodes], dtype=np.int64),
        places=_labels(*texts)[start:] if one else ROLES,
        positions=np.arange(start, len(first.clean)) if one else np.full(len(ROLES), -1),
        metric=metric,
        tried=len(pairs),
        **arrays,
    )


def _pairs(clean: Any, given: tuple[Any, Any, Any]) -> list[Pair]:
    if isinstance(clean, str):
        return [Pair(clean, *given)]
    if isinstance(clean, dict) or not isinstance(clean, Iterable):
        raise UsageError(
            f"pairs is a {type(clean).__name__}; give a list of records with clean, corrupted, "
            "target and against"
        )
    pairs = [pair_of(record, f"record {i}") for i, record in enumerate(clean)]
    if not pairs:
        raise CorpusError("there are no pairs: give at least one")
    return pairs


def _describe(pairs: list[Pair]) -> dict[str, Any]:
    text = json.dumps([asdict(pair) for pair in pairs])
    return {
        "kind": "pairs",
        "documents": len(pairs),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _prompt(subject: Subject, tokenizer, pair: Pair) -> Prompt:
    """Tokens of both texts, what their answers begin with in common read already.

    Raises:
        UsageError: texts or answers that cannot be compared.
    """
    clean, corrupted = (subject.encode(tokenizer, text) for text in (pair.clean, pair.corrupted))
    if len(clean) != len(corrupted):
        raise UsageError(
            f"{pair.clean!r} has {len(clean)} tokens and {pair.corrupted!r} {len(corrupted)}; "
            "texts are patched position by position: give two of one length"
        )
    differ = [i for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b]
    if not differ:
        raise UsageError(f"{pair.clean!r} and {pair.corrupted!r} are the same text")
    target, against = (
        _answer(subject, tokenizer, answer, ids)
        for answer, ids in ((pair.target, clean), (pair.against, corrupted))
    )
    common = next((i for i, (a, b) in enumerate(zip(target, against, strict=False)) if a != b), -1)
    if common < 0:
        shown = [" ".join(token_texts(tokenizer, ids)) for ids in (target, against)]
        raise UsageError(
            f"the answers {shown[0]!r} and {shown[1]!r} do not part: give two of which neither "
            "begins the other"
        )
    changed = slice(differ[0], differ[-1] + 1)
    texts = (clean + target[:common], corrupted + target[:common])
    return Prompt(*texts, target[common], against[common], changed)


def _answer(subject: Subject, tokenizer, answer: str | int | None, ids: list[int]) -> list[int]:
    if isinstance(answer, str):
        found = tokenizer(answer, add_special_tokens=False)["input_ids"]
        if not found:
            raise UsageError("an answer is empty; give at least a word")
        subject.check_vocabulary(found)
        return found
    token = subject_token(subject, tokenizer, answer)
    return [int(subject.logits(ids)[-1].argmax()) if token is None else token]


def _answered(
    patcher: Patcher, prompts: list[Prompt], one: bool
) -> tuple[list[Prompt], np.ndarray]:
    """Of several, the pairs to both of whose texts the model prefers the right answer."""
    metric = np.array(
        [[patcher.values(ids, _metric(p))[1] for ids in (p.clean, p.corrupted)] for p in prompts]
    )
    if one:
        if metric[0, 0] == metric[0, 1]:
            raise UsageError("the metric is the same in both runs: there is nothing to patch")
        return prompts, metric
    right = (metric[:, 0] > 0) & (metric[:, 1] < 0)
    if not right.any():
        raise UsageError(
            f"of none of the {len(prompts)} pairs does the model prefer the right answer to both "
            "texts: there is nothing to patch; ask for what it knows"
        )
    return [prompt for prompt, kept in zip(prompts, right, strict=True) if kept], metric[right]


def _metric(prompt: Prompt) -> Metric:
    def difference(logits: Tensor) -> Tensor:
        last = logits[:, -1].float()
        return last[:, prompt.target] - last[:, prompt.against]

    return difference


def _null_sources(
    prompts: list[Prompt], tokenizer, subject: Subject, direction: str, draws: int, seed: int
) -> list[list[list[int]]]:
    """Of each pair the texts that its null is patched from: about something else.

    What changes is of another pair of as many tokens, if there is one; of a single pair it is
    drawn from the vocabulary.
    """
    generator = np.random.default_rng(seed)
    if len(prompts) == 1:
        ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
        (prompt,) = prompts
        width = prompt.changed.stop - prompt.changed.start
        spans = generator.choice(ordinary, (draws, width)).tolist()
        return [[_about(prompt, span) for span in spans]]
    found = []
    for prompt in prompts:
        spans = [
            other.runs(direction)[1][other.changed]
            for other in prompts
            if other is not prompt
            and other.changed.stop - other.changed.start
            == prompt.changed.stop - prompt.changed.start
            and not {other.target, other.against} & {prompt.target, prompt.against}
        ]
        drawn = [spans[generator.integers(len(spans))]] if spans else []
        found.append([_about(prompt, span) for span in drawn])
    return found


def _about(prompt: Prompt, span: list[int]) -> list[int]:
    return [*prompt.clean[: prompt.changed.start], *span, *prompt.clean[prompt.changed.stop :]]


def _effects(
    patcher: Patcher,
    prompts: list[Prompt],
    sources: list[list[list[int]]],
    direction: str,
    check: int | None,
    seed: int,
    one: bool,
    progress: Progress | None,
) -> dict[str, np.ndarray]:
    """Fields of the result: all estimates first, since they choose what is measured."""
    passes = [(prompt, prompt.runs(direction)[1]) for prompt in prompts]
    nulls = [(p, ids) for p, found in zip(prompts, sources, strict=True) for ids in found]
    if not nulls:
        raise UsageError("no two pairs change as many tokens, so that there is no null; give more")
    every, steps = [*passes, *nulls], 2 * (len(passes) + len(nulls))
    estimate = []
    for i, (prompt, source) in enumerate(every):
        estimate.append(_estimate(patcher, prompt, source, direction, one))
        _report(progress, i + 1, steps)
    chosen = _choose(np.array(estimate[: len(passes)]), check, seed)
    exact = []
    for i, (prompt, source) in enumerate(every):
        exact.append(_exact(patcher, prompt, source, direction, one, chosen > 0))
        _report(progress, len(every) + i + 1, steps)
    return {
        "estimate": np.array(estimate[: len(passes)]),
        "exact": np.array(exact[: len(passes)]),
        "null_estimate": np.array(estimate[len(passes) :]),
        "null_exact": np.array(exact[len(passes) :]),
        "null_pairs": np.repeat(np.arange(len(prompts)), [len(found) for found in sources]),
        "chosen": chosen,
    }


def _estimate(
    patcher: Patcher, prompt: Prompt, source_ids: list[int], direction: str, one: bool
) -> np.ndarray:
    ids, metric = prompt.runs(direction)[0], _metric(prompt)
    receiver, source = (patcher.values(text, metric)[0] for text in (ids, source_ids))
    return patcher.estimate(ids, receiver, source, metric, prompt.places(not one))


def _exact(
    patcher: Patcher,
    prompt: Prompt,
    source_ids: list[int],
    direction: str,
    one: bool,
    chosen: np.ndarray,
) -> np.ndarray:
    ids, metric = prompt.runs(direction)[0], _metric(prompt)
    (_, before), (source, _) = (patcher.values(text, metric) for text in (ids, source_ids))
    return patcher.exact(ids, before, source, metric, prompt.places(not one), chosen)


def _choose(estimate: np.ndarray, check: int | None, seed: int) -> np.ndarray:
    """[N, P] int64: see `AttributionPatching.chosen`."""
    size = np.abs(np.nan_to_num(estimate)).mean(0)
    if check is None or 2 * check >= size.size:
        return np.full(size.shape, 3)
    chosen = np.zeros(size.size, dtype=np.int64)
    order = np.argsort(-size, axis=None, kind="stable")
    chosen[order[:check]] = 1
    chosen[np.random.default_rng(seed).choice(order[check:], check, replace=False)] = 2
    return chosen.reshape(size.shape)


def _at(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    return np.where(places.any(1), values, np.nan)


def _layer(node: Node) -> int:
    return -1 if node.kind == "embed" else int(node.label.split("_")[0])


def _labels(clean: tuple[str, ...], corrupted: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(a if a == b else f"{a}/{b}" for a, b in zip(clean, corrupted, strict=True))


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress:
        progress(done, total)
