"""Arithmetic of the logit lens, a chunk of tokens at a time.

Never more than two chunks of logits are held (the final ones and one depth's): layers x tokens x
vocabulary does not exist at any time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from engram_kernels.readout import Comparison, compare_logits, top_tokens
from engram_model.errors import EngramError
from engram_probes.capture import Residuals, Subject
from engram_probes.lens import METRICS, SETTLED

Translate = Callable[[Tensor, int], Tensor]
CPU_CHUNK, GPU_CHUNK = 2**20, 2**28  # numbers in a chunk of logits; 4 MB stay in a CPU's cache
NEEDS_NEXT = ("rank", "log_rank", "log_prob")
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # of the largest logit; else:
COARSE_TOLERANCE = 2e-2
TOP, HALF = 3, 0.5  # of `settled_top3` and `settled_half`


@dataclass(frozen=True, eq=False)
class TokenValues:
    """Of T tokens, D depths and the K metrics of `METRICS`.

    values: [K, D, T] float32. top1_ids, top1_prob: [D, T].
    topk_ids, topk_prob: [D, k, T], k 0 where they are not kept. settling_depth: [T].
    max_difference: largest difference of the last depth's logits from the model's.
    """

    values: np.ndarray
    top1_ids: np.ndarray
    top1_prob: np.ndarray
    settling_depth: np.ndarray
    topk_ids: np.ndarray
    topk_prob: np.ndarray
    max_difference: float


def chunk_size(vocabulary: int, device: torch.device) -> int:
    """Tokens a chunk."""
    return max(16, (CPU_CHUNK if device.type == "cpu" else GPU_CHUNK) // vocabulary)


def measure(
    subject: Subject,
    residuals: Residuals,
    batch: list[list[int]],
    chosen: list[np.ndarray],
    topk: int,
    chunk: int,
    translate: Translate | None = None,
    kept: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> list[TokenValues]:
    """The lens of each document of a batch, at its chosen positions, at least one of each.

    `translate` is given a residual and its depth. `kept`: how many of the likeliest tokens of each
    depth are given back. `progress` is called with (positions done, positions in all).
    """
    check_head(subject, residuals)
    lengths = [len(places) for places in chosen]
    row = np.repeat(np.arange(len(batch)), lengths)
    column = np.concatenate(chosen)
    # What follows a document's last token is not known; its own stands in and is not used.
    following = np.concatenate(
        [np.array([*ids[1:], ids[-1]])[places] for ids, places in zip(batch, chosen, strict=True)]
    )
    parts = []
    for start in range(0, len(row), chunk):
        these = slice(start, start + chunk)
        depths = (depth[row[these], column[these]] for depth in residuals.depths)
        hidden = residuals.last_hidden[row[these], column[these]]
        target = torch.from_numpy(following[these]).to(hidden.device)
        if translate is not None:
            depths = (translate(depth, index) for index, depth in enumerate(depths))
        parts.append(_chunk(subject, list(depths), hidden, target, topk, kept))
        if progress:
            progress(min(start + chunk, len(row)), len(row))
    return _by_document(parts, lengths)


@torch.inference_mode()
def check_head(subject: Subject, residuals: Residuals) -> None:
    """The unembedding alone must give the model's logits; some models scale or cap them."""
    ours = subject.head(residuals.last_hidden[:, -1])
    _close(subject, ours.float(), residuals.last_logits.float())


def _close(subject: Subject, ours: Tensor, models: Tensor) -> float:
    difference = (ours - models).abs().max().item()
    allowed = TOLERANCE.get(subject.model.dtype, COARSE_TOLERANCE)
    if not difference <= allowed * max(1.0, models.abs().max().item()):
        raise EngramError(
            f"the lens does not fit {subject.name}: at the last depth its logits differ from the "
            f"model's by {difference:.3g}; its head does more than a final norm and unembedding"
        )
    return difference


@torch.inference_mode()
def _chunk(
    subject: Subject,
    depths: list[Tensor],
    hidden: Tensor,
    following: Tensor,
    topk: int,
    kept: int,
) -> TokenValues:
    final = subject.head(hidden)
    final_top = top_tokens(final, topk)
    end = compare_logits(final, final, None, following, final_top)
    rows, holds, tops, probs, likeliest = [], [], [], [], []
    difference = 0.0
    for index, depth in enumerate(depths):
        # The norm is computed anew at every depth; the final one's scale would be wrong there.
        normed, here, found = subject.norm(depth), final, end
        if index < len(depths) - 1 or not torch.equal(normed, hidden):
            here = subject.head(normed)
            found = compare_logits(here, final, end.log_sum, following, final_top)
            if index == len(depths) - 1:
                difference = _close(subject, here.float(), final.float())
        values, held = _depth(found)
        rows.append(values)
        holds.append(held)
        tops.append(found.top1)
        probs.append(found.top1_prob)
        likeliest.append(_likeliest(here, found.log_sum, kept))
        del here  # before there are those of the next depth
    settled = from_here_on(torch.stack(holds, 1))
    topk_ids, topk_prob = zip(*likeliest, strict=True)
    return TokenValues(
        values=torch.cat([torch.stack(rows, 1), settled.float()]).cpu().numpy(),
        top1_ids=_array(tops),
        top1_prob=_array(probs),
        settling_depth=settling_depth(settled[0]).cpu().numpy(),
        topk_ids=_array(topk_ids),
        topk_prob=_array(topk_prob),
        max_difference=difference,
    )


def _array(depths: Sequence[Tensor]) -> np.ndarray:
    return torch.stack(list(depths)).cpu().numpy()


def _likeliest(logits: Tensor, log_sum: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ids and probabilities of the k likeliest tokens, [k, T] each."""
    ids = top_tokens(logits, k) if k else logits.new_empty((len(logits), 0), dtype=torch.int64)
    return ids.T, (logits.gather(1, ids).float() - log_sum[:, None]).exp().T


def settling_depth(settled: Tensor) -> Tensor:
    """Bool [D, T] settled at each depth -> [T] the first of them."""
    return len(settled) - settled.sum(0)


def from_here_on(holds: Tensor) -> Tensor:
    """Bool [.., D, T] -> whether it holds at this depth and all after."""
    return holds.flip(-2).cumprod(-2).flip(-2)


def _depth(found: Comparison) -> tuple[Tensor, Tensor]:
    """All metrics but those of `SETTLED`, as in `METRICS`, [K-3, T]; what the definitions of
    `SETTLED` ask of this depth, bool [3, T]."""
    first = found.final_rank == 1
    values = {
        "kl": found.kl,
        "kl_reverse": found.kl_reverse,
        "js": found.js,
        "entropy": found.entropy,
        "rank": found.rank.float(),
        "log_rank": found.rank.float().log(),
        "log_prob": found.log_prob,
        "final_rank": found.final_rank.float(),
        "topk_overlap": found.overlap,
        "top1_agreement": first.float(),
    }
    stacked = torch.stack([values[name] for name in METRICS if name not in SETTLED])
    return stacked, torch.stack([first, found.final_rank <= TOP, found.final_prob > HALF])


def _by_document(parts: list[TokenValues], lengths: list[int]) -> list[TokenValues]:
    ends = np.cumsum(lengths)[:-1]

    def split(name: str) -> list[np.ndarray]:
        whole = np.concatenate([getattr(part, name) for part in parts], axis=-1)
        return np.split(whole, ends, axis=-1)

    arrays = [f.name for f in fields(TokenValues) if f.name != "max_difference"]
    largest = max(part.max_difference for part in parts)
    documents = zip(*(split(name) for name in arrays), strict=True)
    return [
        TokenValues(**dict(zip(arrays, values, strict=True)), max_difference=largest)
        for values in documents
    ]
