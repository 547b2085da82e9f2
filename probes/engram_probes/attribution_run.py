"""Attribution: one pass of the model, its sum, and two controls of the memory's part."""

from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engram_model.bridge import as_bridge, run_at_end
from engram_model.errors import UsageError
from engram_model.logit_shares import LogitShares, MemoryColumns, logit_direction, logit_shares
from engram_probes.attribution import Attribution
from engram_probes.bootstrap import LEVEL
from engram_probes.capture import Subject
from engram_probes.provenance import provenance
from engram_probes.text import describe_texts, token_texts

NOT_A_SUM = 0.05  # of the sizes of all contributions: more than the rounding of bfloat16


def run(
    model, tokenizer, text: str, target, against, position: int | None, heads: bool, draws: int,
    seed: int, progress,
) -> Attribution:  # fmt: skip
    subject = Subject.of(model)
    ids = _until(subject.encode(tokenizer, text), position)
    wanted, other = (subject_token(subject, tokenizer, token) for token in (target, against))
    bridge = as_bridge(model, tokenizer)
    logits, cache = run_at_end(bridge, ids)
    if progress:
        progress(1, 2)
    wanted = int(logits.argmax()) if wanted is None else wanted
    if wanted == other:
        raise UsageError("target and against are one token; give two different ones")
    direction, bias = logit_direction(bridge, wanted, other)
    shares = logit_shares(cache, direction, heads)
    labels, parts, by_stream = _components(shares, bias)
    logit = _value(logits, wanted, other)
    contribution = _with_remainder(subject, by_stream, bias, logit)
    return Attribution(
        provenance=provenance(
            [subject.model],
            tokenizer,
            describe_texts([text]),
            {
                "target": target,
                "against": against,
                "position": position,
                "heads": heads,
                "draws": draws,
            },
            seed,
        ),
        tokens=token_texts(tokenizer, ids),
        token_ids=np.array(ids, dtype=np.int64),
        target=token_texts(tokenizer, [wanted])[0],
        target_id=wanted,
        against=None if other is None else token_texts(tokenizer, [other])[0],
        against_id=other,
        logit=logit,
        probability=_probability(logits, wanted),
        rank=1 + int((logits > logits[wanted]).sum()),
        components=labels,
        parts=parts,
        contribution=contribution,
        by_stream=by_stream,
        **_silenced(bridge, ids, shares, wanted, other),
        **_random_rows(bridge, shares, labels, draws, seed),
    )


def _until(ids: list[int], position: int | None) -> list[int]:
    """The tokens up to a position, with it; None: all."""
    if position is None:
        return ids
    if not 0 <= position < len(ids):
        raise UsageError(f"no position {position}: the text has {len(ids)} tokens with <bos>")
    return ids[: position + 1]


def subject_token(subject: Subject, tokenizer, token: Any) -> int | None:
    """Id of a token given as id, or as text that is one token; None stays None.

    Raises:
        UsageError: several tokens, or an id outside the vocabulary.
    """
    if token is None:
        return None
    if isinstance(token, str):
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise UsageError(_not_one(tokenizer, token, ids))
        (found,) = ids
    else:
        try:
            found = index(token)
        except TypeError:
            raise UsageError(f"{token!r} is no token; give its text or its id") from None
    size = subject.config.vocab_size
    if not 0 <= found < size:
        raise UsageError(f"token id {found} is outside the vocabulary of {subject.name} ({size:,})")
    return found


def _not_one(tokenizer, token: str, ids: list[int]) -> str:
    """What a text is instead of one token, and which one may have been meant."""
    line = f"{token!r} is {len(ids)} tokens ({' '.join(token_texts(tokenizer, ids))}), not one"
    for meant in (f" {token}", token.replace("·", " ")):
        if len(tokenizer(meant, add_special_tokens=False)["input_ids"]) == 1:
            return f"{line}; did you mean {meant!r}?"
    return f"{line}; give a single token, with the space before it if it has one, or its id"


def _value(logits: Tensor, wanted: int, other: int | None) -> float:
    return float(logits[wanted].double()) - (0.0 if other is None else float(logits[other]))


def _probability(logits: Tensor, wanted: int) -> float:
    return float(logits.double().softmax(-1)[wanted])


def _components(
    shares: LogitShares, bias: float | None
) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
    """Labels, parts and [C, M] of all components; no stream for biases and the remainder."""
    extra = ["remainder"] if bias is None else ["bias", "remainder"]
    written = torch.stack(shares.by_stream).cpu().numpy()
    nowhere = np.full((len(extra), written.shape[1]), np.nan)
    return (
        (*shares.labels, *extra),
        (*shares.parts, *extra),
        np.concatenate([written, nowhere]),
    )


def _with_remainder(
    subject: Subject, by_stream: np.ndarray, bias: float | None, logit: float
) -> np.ndarray:
    """[C] contributions, the last of them what the others miss of the logit."""
    contribution = np.nansum(by_stream, axis=1)
    if bias is not None:
        contribution[-2] = bias
    contribution[-1] = logit - contribution.sum()
    # Of our own models it is rounding, or what the caller's hooks changed, and it is a row.
    ours = subject.model.config.model_type == "engram"
    if not ours and abs(contribution[-1]) > NOT_A_SUM * np.abs(contribution[:-1]).sum():
        raise UsageError(
            f"the logit of {subject.name} is {logit:.2f} and its components sum to "
            f"{logit - contribution[-1]:.2f}: {type(subject.model).__name__} does more than add "
            "them, so they cannot be attributed"
        )
    return contribution


def _silenced(
    bridge, ids: list[int], shares: LogitShares, wanted: int, other: int | None
) -> dict[str, Any]:
    """Fields of an `Attribution`: logit and probability if no memory adds anything."""
    if not shares.columns:
        return {"logit_without_memory": None, "probability_without_memory": None}
    hooks = [(f"blocks.{layer}.engram.hook_out", _nothing) for layer in shares.columns]
    with bridge.hooks(fwd_hooks=hooks):
        logits, _ = run_at_end(bridge, ids)
    return {
        "logit_without_memory": _value(logits, wanted, other),
        "probability_without_memory": _probability(logits, wanted),
    }


def _nothing(tensor: Tensor, hook) -> Tensor:
    return torch.zeros_like(tensor)


def _random_rows(
    bridge, shares: LogitShares, labels: tuple[str, ...], draws: int, seed: int
) -> dict[str, Any]:
    """Fields of an `Attribution`: the rows, and what others in their place would add."""
    slots = np.full(len(labels), -1, dtype=np.int64)
    low, high = np.full((2, len(labels)), np.nan)
    total = np.zeros(draws)
    generator = np.random.default_rng(seed)
    tail = 100 * (1 - LEVEL) / 2
    for layer, columns in shares.columns.items():
        memory = bridge.blocks[layer].engram.original_component
        drawn = _draw(memory, columns, draws, generator)
        first = labels.index(f"{layer}_engram_order2_head0")
        here = slice(first, first + drawn.shape[1])
        slots[here] = columns.slots.cpu().numpy()
        low[here], high[here] = np.percentile(drawn, [tail, 100 - tail], axis=0)
        total += drawn.sum(1)
    both = np.percentile(total, [tail, 100 - tail]) if shares.columns else np.full(2, np.nan)
    return {"slots": slots, "random_low": low, "random_high": high, "random_sum": both}


@torch.no_grad()
def _draw(memory, columns: MemoryColumns, draws: int, generator: np.random.Generator) -> np.ndarray:
    """[draws, C]: what rows of the same head, drawn evenly from its part of the table, add."""
    sizes = memory.primes.cpu().numpy().ravel()
    places = (generator.random((draws, len(sizes))) * sizes).astype(np.int64)
    slots = torch.from_numpy(places).to(memory.offsets.device) + memory.offsets
    rows = memory.embed(slots).to(columns.readers.device).double()
    return torch.einsum("ncw,cw->nc", rows, columns.readers).cpu().numpy()
