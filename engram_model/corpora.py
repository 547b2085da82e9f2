"""Corpora: one address (a SPEC) for files, saved datasets, the Hub and the synthetic world.

    json:PATH#field       JSON lines, also .xz and .gz; PATH may be a pattern; field: text
    text:PATH             one document a file
    parquet:PATH#field
    dir:PATH#field        a directory written by `Dataset.save_to_disk`
    hf:org/name:config@revision#split.field      the Hub; only when online; split: train
    world:?seed=0&tokens=1M&split=train          see `engram_model.world`
    PATH                  guessed by its suffix
    A + B                 A, then B

Every reader yields dicts with `text`, and `source`, `id`, `family`, `title`, `spans`, `qa` where
they are known. Readers of json, text and world need the standard library and NumPy alone.
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_model import world
from engram_model.errors import CorpusError, UsageError
from engram_model.files import file_sha256
from engram_model.textfiles import read_lines, read_text

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Document = dict[str, Any]
READER = 2  # raise it when the same files give other rows or columns
LABELS = ("id", "family", "source", "title")
FOLDERS = re.compile(r"(?<=:)[^#?:+]*/")
SURROGATE = re.compile("[\ud800-\udfff]")
SUFFIXES = {".jsonl": "json", ".json": "json", ".txt": "text", ".md": "text", ".parquet": "parquet"}


@dataclass(frozen=True)
class Part:
    """One part of a SPEC: its kind, what follows the colon, and the field that holds the text."""

    kind: str
    body: str
    field: str
    spec: str


def load_corpus(
    spec: str, *, streaming: bool = False, online: bool = False
) -> "Dataset | IterableDataset":
    """A corpus as a `datasets.Dataset` (or, when streaming, an `IterableDataset`).

    It has a column `text`, and of source, id, family, title, spans and qa those that its documents
    have. The Dataset is cached on disk under a fingerprint of what was read.
    Raises UsageError for a SPEC that cannot be understood, CorpusError for one that cannot be read.
    """
    from datasets import Dataset, IterableDataset
    from datasets.exceptions import DatasetGenerationError

    parts = parse(spec, online=online)
    features = _features(parts)
    arguments = {"features": features, "gen_kwargs": {"spec": spec, "online": online}}
    rows = _Rows(tuple(features))
    if streaming:
        return IterableDataset.from_generator(rows, **arguments)
    try:
        return Dataset.from_generator(rows, fingerprint=fingerprint(spec), **arguments)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, CorpusError):
            raise error.__cause__ from None
        raise CorpusError(f"{spec}: cannot be made a dataset: {error.__cause__}") from error


def iter_documents(spec: str, *, online: bool = False) -> Iterator[Document]:
    """The documents of a corpus in order, without the `datasets` package where that is possible.

    The SPEC is looked at in the call, the files are read as the documents are asked for.
    Raises as `load_corpus`.
    """
    return _documents(parse(spec, online=online))


def describe(spec: str) -> dict[str, Any]:
    """What a corpus is, for provenance: kind, spec, and what fixes its content.

    Files: name, bytes and SHA-256 of each. World: generator version and all settings. `documents`:
    their number where that is known without reading them, else None. Mixed: the parts.
    """
    parts = parse(spec, online=True)
    described = [{"kind": p.kind, "spec": p.spec, **KINDS[p.kind].describe(p)} for p in parts]
    return described[0] if len(parts) == 1 else {"kind": "mixed", "spec": spec, "parts": described}


def fingerprint(spec: str) -> str:
    """A short name of what a corpus holds: the same content under the same SPEC, the same name."""
    parts = parse(spec, online=True)
    if len(parts) == 1 and parts[0].kind == "world":
        return f"corpus{READER}-{world.parse_spec(spec).fingerprint}"
    canonical = json.dumps(describe(spec), sort_keys=True)
    return f"corpus{READER}-" + hashlib.sha256(canonical.encode()).hexdigest()[:24]


def public_spec(spec: str) -> str:
    """A spec without the folders of the machine it was read on."""
    return FOLDERS.sub("", spec)


def parse(spec: str, *, online: bool = False) -> list[Part]:
    """The parts of a SPEC, each checked as far as that goes without reading it."""
    parts = [_part(piece.strip(), spec) for piece in spec.split(" + ")]
    for part in parts:
        if part.kind == "hf" and not (online or os.environ.get("ENGRAM_ONLINE") == "1"):
            raise CorpusError(
                f"{part.spec}: needs the network; pass online=True or set ENGRAM_ONLINE=1, "
                "or use a local file or world:"
            )
        KINDS[part.kind].check(part)
    return parts


def _part(piece: str, spec: str) -> Part:
    if not piece:
        raise UsageError(f"{spec!r}: a corpus is missing; write KIND:PATH, of {', '.join(KINDS)}")
    kind, colon, body = piece.partition(":")
    if not colon or kind not in KINDS:
        if re.fullmatch(r"[a-z]{2,}", kind) and colon and not os.path.exists(piece):
            raise UsageError(
                f"{piece}: {kind}: is no kind of corpus; use one of {', '.join(KINDS)}"
            )
        kind, body = _guess(piece), piece
    if kind in ("text", "world"):
        return Part(kind, body, "text", piece)
    body, _, field = body.partition("#")
    return Part(kind, body, field or ("train" if kind == "hf" else "text"), piece)


def _guess(piece: str) -> str:
    path = Path(piece.partition("#")[0])
    if path.is_dir():
        return "dir"
    suffixes = [s for s in path.suffixes if s not in (".xz", ".gz")]
    if not suffixes or suffixes[-1] not in SUFFIXES:
        if not (path.exists() or glob.has_magic(str(path))):
            raise CorpusError(f"{piece}: no such file; check the path, or write KIND:{piece}")
        known = ", ".join(SUFFIXES)
        raise UsageError(f"{piece}: cannot guess its kind (known: {known}); write KIND:{piece}")
    return SUFFIXES[suffixes[-1]]


def _documents(parts: list[Part]) -> Iterator[Document]:
    for part in parts:
        documents = KINDS[part.kind].read(part)
        first = next(documents, None)
        if first is None:
            raise CorpusError(f"{part.spec}: is empty; give a corpus with at least one document")
        yield first
        yield from documents


def _features(parts: list[Part]) -> Any:
    """The columns of a dataset: those that the first document of any part has."""
    from datasets import Features, List, Value

    found = {name for part in parts for first in islice(_documents([part]), 1) for name in first}
    types: dict[str, Any] = {name: Value("string") for name in ("text", *LABELS)}
    for name, columns in (("spans", world.SPAN_TYPES), ("qa", world.QA_TYPES)):
        types[name] = List({key: Value(kind) for key, kind in columns.items()})
    types["qa"].feature["options"] = List(Value("string"))
    return Features({name: kind for name, kind in types.items() if name in found})


def _document(record: Document, text: str, source: str) -> Document:
    """A record cut to the columns that a corpus keeps."""
    kept: Document = {"text": text, "source": source}
    for name in LABELS:
        if record.get(name) is not None:
            kept[name] = str(record[name])
    for name, keys in (("spans", world.SPAN_TYPES), ("qa", world.QA_TYPES)):
        rows = record.get(name)
        if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
            kept[name] = [{key: row.get(key) for key in keys} for row in rows]
    return kept


def _read_json(part: Part) -> Iterator[Document]:
    for path in _paths(part):
        for number, line in read_lines(path):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise CorpusError(
                    f"{path}: line {number}: not JSON ({error}); write one object a line"
                ) from None
            text = _field(record, part.field, f"{path}: line {number}")
            if text:
                yield _document(record, text, Path(path).name)


def _field(record: object, field: str, where: str) -> str:
    if not isinstance(record, dict):
        raise CorpusError(f"{where}: not a JSON object; write one object a line")
    if field not in record:
        raise CorpusError(f"{where}: has no field {field!r}; its fields are {', '.join(record)}")
    if not isinstance(record[field], str):
        kind = type(record[field]).__name__
        raise CorpusError(f"{where}: field {field!r} is {kind}; name a field that holds text")
    if not record[field].isascii() and SURROGATE.search(record[field]):
        raise CorpusError(f"{where}: field {field!r} has half a surrogate pair; repair the text")
    return record[field]


def _read_text(part: Part) -> Iterator[Document]:
    for path in _paths(part):
        text = read_text(path)
        if text.strip():
            yield _document({}, text, Path(path).name)


def _read_parquet(part: Part) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in _paths(part):
        try:
            file = pq.ParquetFile(path)
            names = file.schema_arrow.names
            keep = [n for n in names if n in (part.field, *LABELS, "spans", "qa")]
            rows = (r for b in file.iter_batches(256, columns=keep) for r in b.to_pylist())
            yield from _checked(rows, part, names, path)
        except (pa.ArrowException, OSError) as error:
            raise CorpusError(f"{path}: damaged or no parquet file ({_line(error)})") from None


def _checked(
    rows: Iterator[Document], part: Part, names: list[str], where: str
) -> Iterator[Document]:
    if part.field not in names:
        raise CorpusError(
            f"{where}: has no field {part.field!r}; its fields are {', '.join(names)}"
        )
    for number, row in enumerate(rows):
        text = _field(row, part.field, f"{where}: row {number}")
        if text:
            yield _document(row, text, Path(where).name)


def _read_dir(part: Part) -> Iterator[Document]:
    dataset = _open_dir(part)
    yield from _checked(iter(dataset), part, dataset.column_names, part.body)


def _open_dir(part: Part) -> "Dataset":
    from datasets import Dataset, load_from_disk

    try:
        dataset = load_from_disk(part.body)
    except Exception as error:
        raise CorpusError(
            f"{part.spec}: no saved dataset ({_line(error)}); for files, write text:DIR/*.txt"
        ) from None
    if not isinstance(dataset, Dataset):
        names = ", ".join(dataset)
        raise CorpusError(f"{part.spec}: holds several splits ({names}); write dir:PATH/SPLIT")
    return dataset


def _read_hub(part: Part) -> Iterator[Document]:
    from datasets import load_dataset

    match = re.fullmatch(r"([\w.-]+/[\w.-]+|[\w.-]+)(?::([\w.-]+))?(?:@([\w./-]+))?", part.body)
    split, _, field = part.field.partition(".")
    if not match:
        raise UsageError(f"{part.spec}: write hf:org/name:config@revision#split.field")
    name, config, revision = match.groups()
    try:
        rows = load_dataset(name, config, split=split, revision=revision, streaming=True)
        first: Document = next(iter(rows.take(1)), {})
    except Exception as error:
        raise CorpusError(f"{part.spec}: cannot be read from the Hub ({_line(error)})") from None
    field_part = Part(part.kind, part.body, field or "text", part.spec)
    yield from _checked(iter(rows), field_part, list(first), name)


def _read_world(part: Part) -> Iterator[Document]:
    for record in world.parse_spec(part.spec).documents():
        yield _document(record, record["text"], "world")


def _paths(part: Part) -> list[str]:
    """The files that a path or pattern stands for, sorted by name."""
    path = os.path.expanduser(part.body)
    found = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
    if not found:
        raise CorpusError(f"{part.spec}: no such file ({part.body}); check the path")
    folders = [name for name in found if os.path.isdir(name)]
    if folders:
        raise CorpusError(f"{part.spec}: {folders[0]} is a directory; name files, as in DIR/*.txt")
    return found


def _line(error: BaseException) -> str:
    """The first line of what an error of another library says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _describe_files(part: Part) -> dict[str, Any]:
    files = []
    for path in _paths(part):
        size, digest = os.path.getsize(path), file_sha256(path)
        files.append({"name": Path(path).name, "bytes": size, "sha256": digest})
    return {"field": part.field, "files": files, "documents": None}


def _describe_dir(part: Part) -> dict[str, Any]:
    dataset = _open_dir(part)
    return {"field": part.field, "fingerprint": dataset._fingerprint, "documents": len(dataset)}


def _describe_world(part: Part) -> dict[str, Any]:
    spec = world.parse_spec(part.spec)
    settings = {key: getattr(spec, key) for key in ("seed", "split", "tokens", "people", "phrases")}
    return {
        "generator_version": world.VERSION,
        **settings,
        "families": list(spec.families),
        "fingerprint": spec.fingerprint,
        "documents": None,
    }


@dataclass(frozen=True)
class Kind:
    """How a kind of corpus is read, described, and checked before it is read."""

    read: Callable[[Part], Iterator[Document]]
    describe: Callable[[Part], dict[str, Any]]
    check: Callable[[Part], object]


KINDS = {
    "json": Kind(_read_json, _describe_files, _paths),
    "text": Kind(_read_text, lambda p: {**_describe_files(p), "documents": len(_paths(p))}, _paths),
    "parquet": Kind(_read_parquet, _describe_files, _paths),
    "dir": Kind(_read_dir, _describe_dir, lambda p: None),
    "hf": Kind(_read_hub, lambda p: {"documents": None}, lambda p: None),
    "world": Kind(_read_world, _describe_world, lambda p: world.parse_spec(p.spec)),
}


@dataclass(frozen=True)
class _Rows:
    """The generator behind a Dataset: every document with the same columns."""

    columns: tuple[str, ...]

    def __call__(self, spec: str, online: bool) -> Iterator[Document]:
        for document in iter_documents(spec, online=online):
            yield {name: document.get(name) for name in self.columns}
