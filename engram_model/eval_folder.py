"""The folder of an evaluation: config.json, log.jsonl, documents.jsonl, items.jsonl and, last,
metrics.json.

A folder without metrics.json was broken off; every file but the log is whole or not there.
"""

import json
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engram_model.errors import CheckpointError, UsageError
from engram_model.evaluate import ScoredDocument
from engram_model.files import file_sha256, installed, write_whole
from engram_model.span_scores import FIELDS, span_sums
from engram_model.tasks import Answer

CONFIG, LOG, METRICS = "config.json", "log.jsonl", "metrics.json"
DOCUMENTS, ITEMS = "documents.jsonl", "items.jsonl"
PACKAGES = ("engram-workbench", "torch", "transformers", "tokenizers", "numpy", "lm-eval")


class EvalFolder:
    """Writes the folder of one evaluation.

    Raises:
        UsageError: the folder holds something.
    """

    def __init__(self, path: str | Path, config: dict[str, Any]):
        self.path = Path(path)
        check_new(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        versions = {"python": platform.python_version(), **installed(PACKAGES)}
        _write_json(self.path / CONFIG, {**config, "versions": versions, "started": _now()})

    def log(self, event: str, **fields: Any) -> None:
        """Add a line to the log, with the time."""
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": _now(), "event": event, **fields}) + "\n")

    def keep_documents(self, documents: Iterable[ScoredDocument]) -> None:
        """Write them as soon as they are scored: a run that is broken off has them."""
        _write_lines(self.path / DOCUMENTS, map(document_record, documents))

    def keep_answers(self, answers: Iterable[Answer]) -> None:
        """Write the items with their answers."""
        _write_lines(self.path / ITEMS, map(to_record, answers))

    def finish(self, metrics: dict[str, Any]) -> None:
        """Write the numbers, which says that the run is complete."""
        _write_json(self.path / METRICS, metrics)


def check_new(path: Path) -> None:
    """Raises UsageError unless `path` is an empty folder or none at all."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} is not empty: give a folder that is, or a new one")


def read_folder(path: str | Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Config, metrics and items of a finished evaluation.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    folder = Path(path)
    try:
        config, metrics = (json.loads((folder / name).read_text()) for name in (CONFIG, METRICS))
        items = [json.loads(line) for line in (folder / ITEMS).read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no finished evaluation: {error}") from None
    return config, metrics, items


def read_documents(path: str | Path) -> list[dict[str, Any]]:
    """The scored documents of a finished evaluation, in their order.

    Raises:
        CheckpointError: there are none, or they are damaged.
    """
    try:
        return [json.loads(line) for line in (Path(path) / DOCUMENTS).read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} holds no scored documents: {error}") from None


def document_record(document: ScoredDocument) -> dict[str, Any]:
    """A document as a line of documents.jsonl: sums over its tokens, and over those of a kind."""
    return {
        "source": document.source,
        "bytes": document.bytes,
        "tokens": len(document.scores),
        "loss": float(-document.scores.log_probs.sum()),
        "spans": {field: span_sums(document, field) for field in FIELDS if document.spans},
    }


def to_record(answer: Answer) -> dict[str, Any]:
    """An answer as a line of items.jsonl."""
    item = answer.item
    return {
        "id": item.id,
        "suite": item.suite,
        "entity": item.entity,
        **item.labels,
        "prompt": item.prompt,
        "answer": item.answer,
        "choice": answer.choice,
        "options": item.options,
        "scores": [round(score, 4) for score in answer.scores],
        "credit": answer.credit,
        "credit_per_byte": answer.credit_per_byte,
        "generated": answer.generated,
        "rank": answer.rank,
        "truncated": answer.truncated,
    }


def weights_sha256(checkpoint: str | Path) -> dict[str, str]:
    """SHA-256 of each weight file of a checkpoint; a tuned lens beside them is none."""
    files = sorted(Path(checkpoint).glob("model*.safetensors"))
    return {path.name: file_sha256(path) for path in files}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _write_json(file: Path, document: dict[str, Any]) -> None:
    write_whole(file, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _write_lines(file: Path, records: Iterable[dict[str, Any]]) -> None:
    write_whole(file, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records))
