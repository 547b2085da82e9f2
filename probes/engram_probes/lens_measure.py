"""Arithmetic of the logit lens, a chunk of tokens at a time.

Never more than two chunks of logits are held (the final ones and one depth's): layers x tokens x
vocabulary does not exist at any time.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engram_model.errors import EngramError
from engram_probes.capture import Residuals, Subject
from engram_probes.lens import METRICS, SETTLED

CPU_CHUNK, GPU_CHUNK = 2**20, 2**24  # numbers in a chunk of logits; 4 MB stay in a CPU's cache
NEEDS_NEXT = ("rank", "log_rank", "log_prob")
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # of the largest logit; else:
COARSE_TOLERANCE = 2e-2
TOP, HALF = 3, 0.5  # of `settled_top3` and `settled_half`


@dataclass(frozen=True, eq=False)
class TokenValues:
    """Of T tokens, D depths and the K metrics of `METRICS`.

    values: [K, D, T] float32. top1_ids, top1_prob: [D, T]. settling_depth: [T].
    max_difference: largest difference of the last depth's logits from the model's.
    """

    values: np.ndarray
    top1_ids: np.ndarray
    top1_prob: np.ndarray
    settling_depth: np.ndarray
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
) -> list[TokenValues]:
    """The lens of each document of a batch, at its chosen positions, at least one of each."""
    _check_head(subject, residuals)
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
        parts.append(_chunk(subject, list(depths), hidden, target, topk))
    return _by_document(parts, lengths)


@torch.inference_mode()
def _check_head(subject: Subject, residuals: Residuals) -> None:
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
    subject: Subject, depths: list[Tensor], hidden: Tensor, following: Tensor, topk: int
) -> TokenValues:
    logits = subject.head(hidden).float()
    final_log = logits.log_softmax(-1)
    final_top = logits.topk(topk).indices
    rows, tops, probs, holds = [], [], [], []
    difference = 0.0
    for index, depth in enumerate(depths):
        # The norm is computed anew at every depth; the final one's scale would be wrong there.
        here = subject.head(subject.norm(depth)).float()
        if index == len(depths) - 1:
            difference = _close(subject, here, logits)
        values, top1, top1_prob, held = _depth(here, following, final_log, final_top)
        rows.append(values)
        tops.append(top1)
        probs.append(top1_prob)
        holds.append(held)
    top1 = torch.stack(tops)
    settling = settling_depth(top1)
    settled = _from_here_on(torch.stack(holds, 1))
    return TokenValues(
        torch.cat([torch.stack(rows, 1), settled.float()]).cpu().numpy(),
        top1.cpu().numpy(),
        torch.stack(probs).cpu().numpy(),
        settling.cpu().numpy(),
        difference,
    )


def settling_depth(top1: Tensor) -> Tensor:
    """[D, T] likeliest tokens -> [T] first depth from which on it is the final one."""
    return len(top1) - _from_here_on((top1 == top1[-1])[None])[0].sum(0)


def _from_here_on(holds: Tensor) -> Tensor:
    """Bool [.., D, T] -> whether it holds at this depth and all after."""
    return holds.flip(-2).cumprod(-2).flip(-2)


def _depth(
    logits: Tensor, following: Tensor, final_log: Tensor, final_top: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All metrics but those of `SETTLED`, as in `METRICS`, [K-3, T]; top token; its probability;
    what the definitions of `SETTLED` ask of this depth, bool [3, T]."""
    log = logits.log_softmax(-1)
    probs, final_probs = log.exp(), final_log.exp()
    mixed = torch.special.entr((probs + final_probs) / 2).sum(-1)
    entropy, final_entropy = (-(p * q).sum(-1) for p, q in ((probs, log), (final_probs, final_log)))
    target, final_one = following[:, None], final_top[:, :1]
    rank = (logits > logits.gather(1, target)).sum(-1) + 1
    top = logits.topk(final_top.shape[1]).indices
    overlap = (top[:, :, None] == final_top[:, None, :]).any(-1).float().mean(-1)
    values = {
        "kl": (final_probs * (final_log - log)).sum(-1),
        "kl_reverse": (probs * (log - final_log)).sum(-1),
        "js": mixed - (entropy + final_entropy) / 2,
        "entropy": entropy,
        "rank": rank.float(),
        "log_rank": rank.float().log(),
        "log_prob": log.gather(1, target)[:, 0],
        "topk_overlap": overlap,
        "top1_agreement": (top[:, 0] == final_top[:, 0]).float(),
    }
    stacked = torch.stack([values[name] for name in METRICS if name not in SETTLED])
    final_rank = (logits > logits.gather(1, final_one)).sum(-1) + 1
    final_prob = log.gather(1, final_one)[:, 0].exp()
    holds = torch.stack([top[:, 0] == final_top[:, 0], final_rank <= TOP, final_prob > HALF])
    return stacked, top[:, 0], log.gather(1, top[:, :1])[:, 0].exp(), holds


def _by_document(parts: list[TokenValues], lengths: list[int]) -> list[TokenValues]:
    ends = np.cumsum(lengths)[:-1]

    def split(name: str) -> list[np.ndarray]:
        whole = np.concatenate([getattr(part, name) for part in parts], axis=-1)
        return np.split(whole, ends, axis=-1)

    largest = max(part.max_difference for part in parts)
    return [
        TokenValues(values, top1_ids, top1_prob, depth, largest)
        for values, top1_ids, top1_prob, depth in zip(
            split("values"),
            split("top1_ids"),
            split("top1_prob"),
            split("settling_depth"),
            strict=True,
        )
    ]
