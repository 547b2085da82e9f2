"""How `inspect_slots` finds its numbers."""

from typing import Any

import numpy as np

from engram_model.errors import UsageError
from engram_probes.memory_tables import MemoryTables, ModelTables
from engram_probes.ngram_counts import ending_ngrams
from engram_probes.ngram_texts import NgramTexts
from engram_probes.provenance import Provenance, versions
from engram_probes.slot_index import SlotIndex, build_index
from engram_probes.slots import SlotTrace
from engram_probes.text import describe_texts, token_texts


def index_of(tables: MemoryTables, tokenizer, corpus: Any, progress) -> SlotIndex:
    """The corpus' index for these tables: built, or checked to be theirs."""
    from engram_model.compression import compression_sha256, tokenizer_sha256

    if not isinstance(corpus, SlotIndex):
        return build_index(tables, tokenizer, corpus, progress=progress)
    compression = compression_sha256(np.asarray(tables.compression))
    corpus.check(tables.hasher, compression, tokenizer_sha256(tokenizer))
    return corpus


def trace(
    tables: MemoryTables, tokenizer, text: str, index: SlotIndex | None, most: int, topk: int
) -> SlotTrace:
    from engram_model.compression import tokenizer_sha256

    hasher = tables.hasher
    ids = _encode(tables, tokenizer, text)
    compressed = np.asarray(tables.compression, dtype=np.int64)[ids]
    special = np.isin(np.array(ids), tokenizer.all_special_ids)
    special[0] = True
    ngrams = ending_ngrams(compressed, hasher)
    raw_counts = None if index is None else index.raw_counts
    texts = NgramTexts(tokenizer, np.asarray(tables.compression), raw_counts)
    layers = hasher.layer_ids
    slots = np.stack([hasher.slots(compressed, layer) for layer in layers])
    rows = [tables.rows(found, layer) for found, layer in zip(slots, layers, strict=True)]
    fields: dict[str, Any] = {}
    if isinstance(tables, ModelTables) and topk:
        fields |= _says(tables, tokenizer, rows, topk)
    if index is not None:
        fields |= _others(index, ngrams, slots, texts, most)
    corpus = describe_texts([text]) | ({} if index is None else {"index": index.corpus})
    return SlotTrace(
        provenance=Provenance(
            models=[tables.describe()],
            tokenizer_sha256=tokenizer_sha256(tokenizer),
            corpus=corpus,
            settings={"most": most, "topk": topk},
            versions=versions(),
        ),
        layers=tuple(layers),
        tokens=token_texts(tokenizer, ids),
        max_ngram_size=hasher.max_ngram_size,
        n_heads=hasher.n_heads,
        ngram_texts=tuple(tuple(texts(ngram) for ngram in order) for order in ngrams),
        token_ids=np.array(ids, dtype=np.int64),
        compressed_ids=compressed,
        special=special,
        slots=slots,
        row_norm=np.stack([np.linalg.norm(row, axis=-1) for row in rows]).astype(np.float32),
        table_rows=np.stack([hasher.primes(layer).reshape(-1) for layer in layers]),
        first=np.stack([_first(order, special) for order in ngrams]),
        **fields,
    )


def _encode(tables: MemoryTables, tokenizer, text: str) -> list[int]:
    if isinstance(tables, ModelTables):
        return tables.subject.encode(tokenizer, text)
    from engram_probes.text import encode

    if not text.strip():
        raise UsageError("the text is empty; give at least a word")
    ids = encode(tokenizer, text)
    if max(ids) >= len(tables.compression):
        raise UsageError(
            f"token id {max(ids)} is outside the tables' vocabulary of "
            f"{len(tables.compression):,}; use the tokenizer they were made for"
        )
    return ids


def _first(ngrams: np.ndarray, special: np.ndarray) -> np.ndarray:
    ordinary = np.flatnonzero(~special)
    first = np.zeros(len(special), dtype=bool)
    first[ordinary[np.unique(ngrams[ordinary], axis=0, return_index=True)[1]]] = True
    return first


def _says(tables: ModelTables, tokenizer, rows: list[np.ndarray], topk: int) -> dict[str, Any]:
    norms, ids, logits = [], [], []
    for layer_rows, layer in zip(rows, tables.hasher.layer_ids, strict=True):
        shares = tables.value_shares(layer_rows, layer)
        norms.append(shares.norm(dim=-1).cpu().numpy())
        best, above = tables.read(shares, topk)
        ids.append(best)
        logits.append(above)
    says_ids = np.stack(ids)
    flat = token_texts(tokenizer, says_ids.ravel())
    return {
        "value_norm": np.stack(norms),
        "says_ids": says_ids,
        "says_logits": np.stack(logits),
        "says_texts": _nested(flat, says_ids.shape),
    }


def _nested(flat: tuple[str, ...], shape: tuple[int, ...]) -> tuple:
    """Texts in the order of a raveled array -> tuples nested by its shape."""
    for size in reversed(shape[1:]):
        flat = tuple(flat[i : i + size] for i in range(0, len(flat), size))  # type: ignore[misc]
    return flat


def _others(
    index: SlotIndex, ngrams: list[np.ndarray], slots: np.ndarray, texts: NgramTexts, most: int
) -> dict[str, Any]:
    """Fields that need the corpus."""
    heads, distinct = index.hash["n_heads"], [len(index.counts[n]) for n in index.counts]
    numbers = [[index.find(tuple(ngram)) for ngram in order] for order in ngrams]
    own = np.array([[-1 if number is None else number for number in order] for order in numbers])
    counts = [index.counts[order + 2] for order in range(len(ngrams))]
    own_counts = np.array(
        [[0 if n < 0 else counts[o][n] for n in row] for o, row in enumerate(own)], dtype=np.int64
    )
    tenants, reads = np.zeros_like(slots), np.zeros_like(slots)
    tenant_counts = np.zeros((*slots.shape, most), dtype=np.int64)
    tenant_texts = np.full((*slots.shape, most), "", dtype=object)
    shared = np.zeros((len(slots), len(ngrams), slots.shape[1], heads + 1), dtype=np.int64)
    for cell in np.ndindex(slots.shape):
        layer, position, column = cell
        order = column // heads
        everyone = index.layers[index.hash["layer_ids"][layer]].of(int(slots[cell]))
        others = everyone[everyone != own[order, position]] if own_counts[order, position] else (
            everyone
        )  # fmt: skip
        tenants[cell], reads[cell] = len(others), counts[order][everyone].sum()
        for rank, number in enumerate(others[:most]):
            tenant_counts[cell][rank] = counts[order][number]
            tenant_texts[cell][rank] = texts(index.ngrams[order + 2][:, number])
    for layer, order, position in np.ndindex(shared.shape[:3]):
        row = slots[layer, position, order * heads : (order + 1) * heads]
        number = numbers[order][position]
        _, how_many = index.sharing(index.hash["layer_ids"][layer], row, number)
        found = np.bincount(how_many, minlength=heads + 1)
        found[0] = distinct[order] - (number is not None) - len(how_many)
        shared[layer, order, position] = found
    chance = np.stack([sharing_chance(index.hasher.primes(n)) for n in index.hash["layer_ids"]])
    others_of = np.array(distinct)[:, None] - (own_counts > 0)  # [O, p]
    return {
        "distinct": np.array(distinct, dtype=np.int64),
        "ngram_counts": own_counts,
        "tenants": tenants,
        "row_reads": reads,
        "shared": shared,
        "shared_expected": chance[:, :, None] * others_of[None, :, :, None],
        "tenant_counts": tenant_counts,
        "tenant_texts": _nested(tuple(tenant_texts.ravel()), tenant_texts.shape),
    }


def sharing_chance(primes: np.ndarray) -> np.ndarray:
    """Probability that two n-grams share exactly k of K rows under uniform, independent hashes.

    The sum over sets of k heads of prod 1/p in the set times prod (1 - 1/p) outside it.

    Args:
        primes: rows of each head, [..., K].

    Returns:
        [..., K+1].
    """
    chance = np.zeros((*primes.shape[:-1], primes.shape[-1] + 1))
    chance[..., 0] = 1
    for head in range(primes.shape[-1]):
        hit = 1 / primes[..., head, None]
        chance = chance * (1 - hit) + np.concatenate(
            [np.zeros_like(hit), chance[..., :-1] * hit], axis=-1
        )
    return chance
