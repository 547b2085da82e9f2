"""Who hashes where: the distinct n-grams of a corpus, and those that read each row of a memory.

Built once (`build_index`), kept as memory-mapped arrays, opened in a moment (`open_index`):

    index.json                    what was hashed, of which corpus; checksums of the arrays
    ngrams-2.npy, ...             [order, distinct] compressed ids, in lexicographic order
    counts-2.npy, ...             [distinct] occurrences
    raw-counts.npy                [vocabulary] occurrences of each raw token
    layer1-rows.npy               [used] rows of the flat table that some n-gram reads, ascending
    layer1-offsets.npy            [used + 1] where each row's n-grams begin in
    layer1-ids.npy                numbers of n-grams within the row's order, most frequent first

An n-gram counts where its last token is ordinary: not special and not position 0.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from engram_model.errors import CheckpointError, UsageError
from engram_model.files import becoming, file_sha256, write_whole
from engram_probes.memory_tables import tables_of
from engram_probes.ngram_counts import (
    Progress,
    count_ngrams,
    ordinary_positions,
    pad_documents,
    read_tokens,
)

if TYPE_CHECKING:
    from engram_model.hashing import NgramHasher

SCHEMA = 1
JSON_FILE = "index.json"
NGRAMS_AT_ONCE = 1 << 19


class Tenants(NamedTuple):
    """The n-grams that read one row: compressed ids [distinct, order] and counts [distinct]."""

    ngrams: np.ndarray
    counts: np.ndarray


class Sharing(NamedTuple):
    """N-grams that share rows with another one.

    ngrams [others, order], their counts [others], and in how many heads they share [others].
    """

    ngrams: np.ndarray
    counts: np.ndarray
    heads: np.ndarray


class RowMap(NamedTuple):
    """N-grams by row of one layer's flat table: a sparse matrix by rows, empty rows left out."""

    rows: np.ndarray
    offsets: np.ndarray
    ids: np.ndarray

    def of(self, row: int) -> np.ndarray:
        """Numbers of the n-grams of a row, most frequent first."""
        place = int(np.searchsorted(self.rows, row))
        if place == len(self.rows) or self.rows[place] != row:
            return self.ids[:0]
        return self.ids[self.offsets[place] : self.offsets[place + 1]]

    def values(self, of_rows: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """One of `of_rows` (a number for each of `self.rows`) for each of `rows`; 0 for unused."""
        places = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where(self.rows[places] == rows, of_rows[places], 0)


@dataclass(frozen=True, eq=False, repr=False)
class SlotIndex:
    """N-grams of a corpus by the rows that they read.

    Attributes:
        hash: arguments of the hasher, see `engram_model.hashing.hasher_from`.
        compression_sha256: of the map from raw to compressed ids.
        tokenizer_sha256: of the vocabulary.
        corpus: documents, tokens, sha256 of the texts; `spec`, `fingerprint` where there was one.
        ngrams: order -> int32 [order, distinct], lexicographic.
        counts: order -> int64 [distinct].
        raw_counts: of each raw token, int64 [vocabulary]: the commonest puts n-grams into words.
        layers: layer -> `RowMap`.
    """

    hash: dict[str, Any]
    compression_sha256: str
    tokenizer_sha256: str
    corpus: dict[str, Any]
    ngrams: dict[int, np.ndarray]
    counts: dict[int, np.ndarray]
    raw_counts: np.ndarray
    layers: dict[int, RowMap]

    @property
    def hasher(self) -> "NgramHasher":
        from engram_model.hashing import hasher_from

        return hasher_from(self.hash)

    def __repr__(self) -> str:
        distinct = {order: len(counts) for order, counts in self.counts.items()}
        return f"SlotIndex(tokens={self.corpus['tokens']}, layers={[*self.layers]}, {distinct=})"

    def find(self, ngram: tuple[int, ...]) -> int | None:
        """Number of an n-gram (compressed ids) within its order; None if the corpus lacks it."""
        self._check_order(len(ngram))
        columns = self.ngrams[len(ngram)]
        low, high = 0, columns.shape[1]
        for column, compressed in zip(columns, ngram, strict=True):
            key = column.dtype.type(compressed)  # another type would copy the whole column
            part = column[low:high]
            low, high = (low + int(np.searchsorted(part, key, side)) for side in ("left", "right"))
        return low if high > low else None

    def count(self, ngram: tuple[int, ...]) -> int:
        """How often the corpus has this n-gram of compressed ids."""
        number = self.find(ngram)
        return 0 if number is None else int(self.counts[len(ngram)][number])

    def tenants(self, layer: int, order: int, head: int, slot: int) -> Tenants:
        """All n-grams of the corpus that read a row, most frequent first.

        Args:
            slot: row of the layer's flat table, as `NgramHasher.slots` gives it; one of the rows
                of this order and head.

        Raises:
            UsageError: no such layer, order or head, or a row of another one.
        """
        self._check_row(layer, order, head, slot)
        ids = self.layers[layer].of(slot)
        return Tenants(self.ngrams[order][:, ids].T, self.counts[order][ids])

    def row_reads(self, layer: int) -> np.ndarray:
        """Occurrences of all n-grams of each row in `layers[layer].rows`, int64 [used]."""
        rows, offsets, ids = self.layers[layer]
        hasher, heads = self.hasher, self.hash["n_heads"]
        begins = np.searchsorted(rows, [*hasher.offsets(layer)[::heads], hasher.rows(layer)])
        parts = []
        for counts, begin, end in zip(self.counts.values(), begins[:-1], begins[1:], strict=True):
            of_order = counts[ids[offsets[begin] : offsets[end]]]
            parts.append(np.add.reduceat(of_order, offsets[begin:end] - offsets[begin]))
        return np.concatenate(parts)

    def ranked(
        self, layer: int, order: int, head: int, most: int, coldest: bool = False
    ) -> np.ndarray:
        """The rows of an order and head that the corpus reads most, or least, first; int64.

        The least are rows that nothing reads, spread over the head, then those read seldom.

        Raises:
            UsageError: no such layer, order or head.
        """
        first = self._first_row(layer, order, head)
        size = int(self.hasher.primes(layer)[order - 2, head])
        rows = self.layers[layer].rows
        begin, end = np.searchsorted(rows, [first, first + size])
        used, reads = rows[begin:end], self.row_reads(layer)[begin:end]
        if not coldest:
            return used[np.argsort(-reads, kind="stable")[:most]].astype(np.int64)
        unused = np.setdiff1d(np.arange(first, first + size), used)
        spread = unused[np.linspace(0, len(unused) - 1, min(most, len(unused))).astype(int)]
        seldom = used[np.argsort(reads, kind="stable")[: most - len(spread)]]
        return np.concatenate([spread, seldom]).astype(np.int64)

    def who(self, ngram: tuple[int, ...], layer: int, heads: int = 1) -> Sharing:
        """Other n-grams of the corpus that share a row with this one in at least `heads` heads.

        Returns:
            `Sharing`, those that share most heads first, then the most frequent.
        """
        self._check_order(len(ngram))
        self._check_layer(layer)
        order = len(ngram)
        slots = slots_of(self.hasher, np.array(ngram)[:, None], layer)[0]
        ids, shared = self.sharing(layer, slots, self.find(ngram))
        ids, shared = ids[shared >= heads], shared[shared >= heads]
        counts = self.counts[order][ids]
        first = np.lexsort((-counts, -shared))
        return Sharing(self.ngrams[order][:, ids[first]].T, counts[first], shared[first])

    def sharing(
        self, layer: int, slots: np.ndarray, leave_out: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the n-grams in any of these rows, and in how many of them each is."""
        found = np.concatenate([self.layers[layer].of(int(slot)) for slot in slots])
        ids, shared = np.unique(found, return_counts=True)
        other = ids != (-1 if leave_out is None else leave_out)
        return ids[other], shared[other]

    def check(self, hasher: "NgramHasher", compression_sha256: str, tokenizer_sha256: str) -> None:
        """See that the index is of this tokenizer and of tables with this hash.

        Raises:
            UsageError: it is of others.
        """
        if tokenizer_sha256 != self.tokenizer_sha256:
            raise UsageError("the index was built with another tokenizer; build one with this one")
        if compression_sha256 != self.compression_sha256:
            raise UsageError("the index compresses tokens to other ids than these tables do")
        differ = [
            name for name, value in hasher.arguments().items() if value != self.hash.get(name)
        ]
        if differ:
            raise UsageError(
                f"the index was built for tables with another hash ({', '.join(differ)} differ); "
                "build one for these"
            )

    def _check_order(self, order: int) -> None:
        if order not in self.ngrams:
            raise UsageError(f"{order}-grams are not hashed; orders: {[*self.ngrams]}")

    def _check_layer(self, layer: int) -> None:
        if layer not in self.layers:
            raise UsageError(f"layer {layer} has no memory; layers with one: {[*self.layers]}")

    def _first_row(self, layer: int, order: int, head: int) -> int:
        """Of an order and head, as `NgramHasher.slots` counts."""
        self._check_order(order)
        self._check_layer(layer)
        heads = self.hash["n_heads"]
        if not 0 <= head < heads:
            raise UsageError(f"head {head}: there are heads 0 to {heads - 1}")
        return int(self.hasher.offsets(layer)[(order - 2) * heads + head])

    def _check_row(self, layer: int, order: int, head: int, slot: int) -> None:
        first = self._first_row(layer, order, head)
        end = first + int(self.hasher.primes(layer)[order - 2, head])
        if not first <= slot < end:
            raise UsageError(
                f"row {slot}: order {order}, head {head} of layer {layer} has the rows {first} to "
                f"{end - 1}"
            )

    def save(self, path: str | Path) -> Path:
        """Write the index into the folder `path`; `index.json` last, so half of one is none."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JSON_FILE).unlink(missing_ok=True)
        files = {name: _write_array(folder / name, array) for name, array in self._files()}
        document = {
            "schema": SCHEMA,
            "hash": self.hash,
            "compression_sha256": self.compression_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "corpus": self.corpus,
            "sha256": files,
        }
        write_whole(folder / JSON_FILE, json.dumps(document, indent=1) + "\n")
        return folder

    def _files(self) -> Iterator[tuple[str, np.ndarray]]:
        for order in self.ngrams:
            yield f"ngrams-{order}.npy", self.ngrams[order]
            yield f"counts-{order}.npy", self.counts[order]
        yield "raw-counts.npy", self.raw_counts
        for layer, row_map in self.layers.items():
            for name, array in row_map._asdict().items():
                yield f"layer{layer}-{name}.npy", array


def open_index(path: str | Path) -> SlotIndex:
    """Open what `build_index` wrote; arrays stay on disk until they are read.

    Raises:
        CheckpointError: no index there, one of another version, or a damaged one.
    """
    folder = Path(path)
    document = _read_json(folder)
    try:
        for name, expected in document["sha256"].items():
            if file_sha256(folder / name) != expected:
                raise CheckpointError(
                    f"{folder / name} is damaged: its checksum is not the one in "
                    f"{JSON_FILE}; build the index anew"
                )
        hash = document["hash"]

        def array(name: str) -> np.ndarray:
            return np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

        orders = range(2, hash["max_ngram_size"] + 1)
        return SlotIndex(
            hash=hash,
            compression_sha256=document["compression_sha256"],
            tokenizer_sha256=document["tokenizer_sha256"],
            corpus=document["corpus"],
            ngrams={order: array(f"ngrams-{order}") for order in orders},
            counts={order: array(f"counts-{order}") for order in orders},
            raw_counts=array("raw-counts"),
            layers={
                layer: RowMap(*(array(f"layer{layer}-{name}") for name in RowMap._fields))
                for layer in hash["layer_ids"]
            },
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder} is damaged: {type(error).__name__}: {error}") from error


def build_index(
    model_or_tables: Any,
    tokenizer: Any,
    corpus: Any,
    path: str | Path | None = None,
    *,
    progress: Progress | None = None,
) -> SlotIndex:
    """Count a corpus' n-grams and sort them by the rows that they read.

    Args:
        model_or_tables: an Engram model, a bridge of one, or `MemoryTables`.
        tokenizer: its tokenizer; each document is read whole, as `<bos>` + text.
        corpus: a SPEC (see `engram_model.corpora`), a Dataset, or a list of texts.
        path: folder to keep the index in; None: in memory only.
        progress: called with (documents done, in all or None).

    Returns:
        The index, opened from `path` if there is one.

    Raises:
        UsageError, CorpusError: as the tables and the corpus; CorpusError without a single token.
    """
    from engram_model.compression import compression_sha256, tokenizer_sha256

    tables = tables_of(model_or_tables)
    hasher, compression = tables.hasher, np.asarray(tables.compression)
    raw, described = read_tokens(tokenizer, corpus, len(compression), progress)
    ids, inside = pad_documents(
        [part for row in raw for part in hasher.segments(compression[row])],
        hasher.pad_id,
        hasher.max_ngram_size,
    )
    counted = ordinary_positions(raw, inside, tokenizer.all_special_ids)
    described["tokens"] = int(counted.sum())
    ngrams, counts = {}, {}
    counted_orders = count_ngrams(ids, counted, hasher.max_ngram_size, hasher.compressed_vocab_size)
    for order, found in enumerate(counted_orders, start=2):
        ngrams[order], counts[order] = found
    index = SlotIndex(
        hash=hasher.arguments(),
        compression_sha256=compression_sha256(compression),
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        corpus=described,
        ngrams=ngrams,
        counts=counts,
        raw_counts=np.bincount(np.concatenate(raw), minlength=len(compression)),
        layers={layer: _row_map(hasher, ngrams, counts, layer) for layer in hasher.layer_ids},
    )
    return index if path is None else open_index(index.save(path))


def slots_of(hasher: "NgramHasher", ngrams: np.ndarray, layer: int) -> np.ndarray:
    """Rows that n-grams read: compressed ids [order, n] -> [n, heads] of the flat table."""
    order = len(ngrams)
    columns = slice((order - 2) * hasher.n_heads, (order - 1) * hasher.n_heads)
    parts = [np.empty((0, hasher.n_heads), dtype=np.int64)]
    for start in range(0, ngrams.shape[1], NGRAMS_AT_ONCE):
        part = np.ascontiguousarray(ngrams[:, start : start + NGRAMS_AT_ONCE].T)
        slots = hasher.slots(part[:, -1:], layer, history=part[:, :-1])
        parts.append(slots[:, 0, columns])
    return np.concatenate(parts)


def _row_map(hasher, ngrams: dict, counts: dict, layer: int) -> RowMap:
    rows, sizes, ids = [], [], []
    for order in ngrams:
        slots = slots_of(hasher, ngrams[order], layer)
        frequent = np.argsort(-counts[order], kind="stable")
        for head in range(hasher.n_heads):
            # One key of row and rank in frequency: sorting one array is the fast way.
            keys = slots[frequent, head] * len(frequent) + np.arange(len(frequent))
            keys.sort()
            used, size = np.unique(keys // len(frequent), return_counts=True)
            rows.append(used)
            sizes.append(size)
            ids.append(frequent[keys % len(frequent)].astype(np.uint32))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
    return RowMap(np.concatenate(rows), offsets, np.concatenate(ids))


def _write_array(file: Path, array: np.ndarray) -> str:
    """Write an .npy file whole and give its checksum."""
    with becoming(file) as temporary:
        with temporary.open("wb") as stream:
            np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
        return file_sha256(temporary)


def _read_json(folder: Path) -> dict[str, Any]:
    try:
        document = json.loads((folder / JSON_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"no index in {folder}: it has no {JSON_FILE}; build_index writes one"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / JSON_FILE} cannot be read: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise CheckpointError(f"{folder / JSON_FILE} is no index of schema {SCHEMA}; build it anew")
    return document
