"""Token files: a corpus tokenised once, memory-mapped ever after.

A token file is a folder with `tokens.npy` (uint16 or uint32), `documents.npy` (int64 start of each
document) and `tokens.json` (corpus, tokenizer checksum, sizes). Every document is
`<bos> text <eos>`.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from engram_model.compression import tokenizer_sha256
from engram_model.errors import CorpusError, UsageError

BATCH = 256  # documents tokenised at a time: bounds memory, keeps the tokenizer's threads busy


@dataclass(frozen=True)
class TokenFile:
    """A tokenised corpus.

    Attributes:
        tokens: [total] ids, all documents one after another.
        documents: [documents] where each starts.
        meta: what `tokens.json` holds.
    """

    tokens: np.ndarray
    documents: np.ndarray
    meta: dict

    def __len__(self) -> int:
        return len(self.tokens)


def write_tokens(
    spec: str, tokenizer, out: str | Path, progress: Callable[[int], None] | None = None
) -> TokenFile:
    """Tokenise a corpus into the folder `out`, which appears only when it is complete.

    Raises:
        CorpusError: the corpus cannot be read or has no text.
        UsageError: `out` exists.
    """
    from engram_model.corpora import describe, iter_documents

    out = Path(out)
    if out.exists():
        raise UsageError(f"{out} exists: give a folder that does not")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    starts, chunks, total, characters = [], [], 0, 0
    texts = (document["text"] for document in iter_documents(spec))
    for batch in _batches(texts, BATCH):
        for text, ids in zip(batch, encode(tokenizer, batch), strict=True):
            starts.append(total)
            chunks.append(np.asarray(ids, dtype=dtype))
            total += len(ids)
            characters += len(text)
        if progress:
            progress(total)
    if not starts:
        raise CorpusError(f"{spec} is empty: there is no document to tokenise")
    np.save(partial / "tokens.npy", np.concatenate(chunks))
    np.save(partial / "documents.npy", np.asarray(starts, dtype=np.int64))
    meta = {
        "corpus": describe(spec),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "tokens": total,
        "documents": len(starts),
        "characters": characters,
    }
    (partial / "tokens.json").write_text(json.dumps(meta, indent=1))
    partial.rename(out)
    return open_tokens(out)


def open_tokens(path: str | Path) -> TokenFile:
    """Memory-map a token file.

    Raises:
        CorpusError: not a complete token file.
    """
    path = Path(path)
    try:
        meta = json.loads((path / "tokens.json").read_text())
        tokens = np.load(path / "tokens.npy", mmap_mode="r", allow_pickle=False)
        documents = np.load(path / "documents.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path} is not a complete token file: {error}") from error
    if len(tokens) != meta["tokens"]:
        raise CorpusError(f"{path} holds {len(tokens)} tokens, {meta['tokens']} were written")
    return TokenFile(tokens, documents, meta)


def encode(tokenizer, texts: list[str]) -> list[list[int]]:
    """Ids of each text between `<bos>` and `<eos>`."""
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [[tokenizer.bos_token_id, *one, tokenizer.eos_token_id] for one in ids]


def _batches(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


class TokenBlocks:
    """Blocks of `context` tokens of a token file, documents shuffled and packed end to end.

    A torch map-style dataset: item `i` is `{"input_ids", "labels"}`, both int64 [context].
    """

    def __init__(self, file: TokenFile, context: int, seed: int | None = 0) -> None:
        if len(file) < context:
            raise CorpusError(
                f"the corpus has {len(file)} tokens, fewer than one context of {context}"
            )
        self.context = context
        self.stream = _shuffled(file, seed) if seed is not None else file.tokens

    def __len__(self) -> int:
        return len(self.stream) // self.context

    def __getitem__(self, index: int) -> dict:
        import torch

        if not 0 <= index < len(self):
            raise IndexError(index)
        block = self.stream[index * self.context : (index + 1) * self.context].astype(np.int64)
        ids = torch.from_numpy(block)
        return {"input_ids": ids, "labels": ids}


def _shuffled(file: TokenFile, seed: int) -> np.ndarray:
    """All documents in a seeded random order, so that a block mixes sources."""
    ends = np.append(file.documents[1:], len(file))
    order = np.random.default_rng(seed).permutation(len(file.documents))
    return np.concatenate([file.tokens[file.documents[i] : ends[i]] for i in order])
