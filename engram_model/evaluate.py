"""Loss of a model on a corpus, by source: nats a token and bits a byte, with intervals.

A document is `<bos> text`; every token of the text is predicted once, in windows of at most the
context. A window begins where the last one ended, with no overlap: a token's context is what its
window holds before it.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np

from engram_model.errors import CorpusError

DEFAULT_DATA = "world:?seed=0&split=valid&tokens=20K"
BOOTSTRAPS = 1000
WINDOWS_AT_ONCE = 512  # windows sorted by length before batching: less padding, bounded memory


@dataclass(frozen=True)
class SourceLoss:
    """Loss on one source.

    Attributes:
        loss: mean negative log-likelihood, nats a token.
        low, high: 95% interval of it, by bootstrap over documents.
        bits_per_byte: of the UTF-8 text.
        documents, tokens, bytes: how much text this is.
    """

    loss: float
    low: float
    high: float
    bits_per_byte: float
    documents: int
    tokens: int
    bytes: int

    def to_dict(self) -> dict:
        return asdict(self)


def evaluate(
    model,
    tokenizer,
    data: str = DEFAULT_DATA,
    *,
    batch: int = 8,
    context: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, SourceLoss]:
    """Loss by source (a document's publisher, or the world's family) and over `all`.

    Args:
        model: an `EngramForCausalLM` in evaluation mode.
        data: a corpus as for `load_corpus`.
        batch: windows at a time.
        context: tokens a window (None: the model's).
        seed: of the bootstrap.
        progress: called with the number of tokens done.

    Raises:
        CorpusError: no text in the corpus.
    """
    from engram_model.corpora import iter_documents

    context = context or model.config.max_position_embeddings
    documents: list[dict] = []
    windows = _windows(iter_documents(data), tokenizer, context, documents)
    done = 0
    while group := list(islice(windows, WINDOWS_AT_ONCE)):
        group.sort(key=lambda window: len(window[1]))
        for start in range(0, len(group), batch):
            part = group[start : start + batch]
            for (index, _), loss in zip(part, _losses(model, part), strict=True):
                documents[index]["loss"] += loss
            done += sum(len(ids) - 1 for _, ids in part)
            if progress:
                progress(done)
    if not done:
        raise CorpusError(f"{data} is empty: there is no text to evaluate on")
    return _by_source(documents, seed)


def _windows(
    records: Iterable[dict], tokenizer, context: int, documents: list[dict]
) -> Iterator[tuple[int, list[int]]]:
    """Index of the document and context + 1 ids: the inputs and, one on, the targets."""
    for record in records:
        text = record["text"]
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        source = _source(record)
        documents.append(
            {"source": source, "loss": 0.0, "tokens": len(ids) - 1, "bytes": len(text.encode())}
        )
        for start in range(0, len(ids) - 1, context):
            yield len(documents) - 1, ids[start : start + context + 1]


def _source(record: dict) -> str:
    """What a document counts under: its publisher (`owner` of owner/name) or world family."""
    if record.get("family"):
        return f"world/{record['family']}"
    return (record.get("source") or "text").split("/")[0]


def _losses(model, windows: list[tuple[int, list[int]]]) -> list[float]:
    """Summed loss of each window, nats."""
    import torch
    import torch.nn.functional as F

    longest = max(len(ids) for _, ids in windows)
    ids = torch.full((len(windows), longest), -100)
    for row, (_, window) in enumerate(windows):
        ids[row, : len(window)] = torch.tensor(window)
    ids = ids.to(model.device)
    with torch.inference_mode():  # padding is to the right, where nothing before it can see it
        logits = model(ids[:, :-1].clamp(min=0)).logits
        losses = F.cross_entropy(
            logits.float().transpose(1, 2), ids[:, 1:], ignore_index=-100, reduction="none"
        )
    return losses.double().sum(-1).tolist()


def _by_source(documents: list[dict], seed: int) -> dict[str, SourceLoss]:
    groups: dict[str, list[dict]] = defaultdict(list)
    for document in documents:
        if document["tokens"]:
            groups[document["source"]].append(document)
            groups["all"].append(document)
    order = sorted(name for name in groups if name != "all")
    return {name: _source_loss(groups[name], seed) for name in [*order, "all"]}


def _source_loss(documents: list[dict], seed: int) -> SourceLoss:
    losses = np.array([document["loss"] for document in documents])
    tokens = np.array([document["tokens"] for document in documents], dtype=np.int64)
    size = sum(document["bytes"] for document in documents)
    drawn = np.random.default_rng(seed).integers(0, len(losses), (BOOTSTRAPS, len(losses)))
    means = losses[drawn].sum(1) / tokens[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return SourceLoss(
        loss=float(losses.sum() / tokens.sum()),
        low=float(low),
        high=float(high),
        bits_per_byte=float(losses.sum() / math.log(2) / size),
        documents=len(losses),
        tokens=int(tokens.sum()),
        bytes=size,
    )
