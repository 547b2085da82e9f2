"""Write a world to files."""

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from .record import Record
from .spec import WorldSpec, parse_spec
from .suites import suites
from .world import SPLITS


def export(
    spec: str | WorldSpec, out_dir: str | Path, *, valid_tokens: int | None = None
) -> dict[str, Path]:
    """Write train.jsonl, valid.jsonl and suites/NAME.jsonl to `out_dir`; returns their paths.

    Each holds one record a line; a path is found under its name: "train", "suites/copy". spec: its
    `tokens` is the size of train (its split does not matter). valid_tokens: the size of valid
    (default: a twentieth of train). A file appears under its name only when it is complete.
    """
    if isinstance(spec, str):
        spec = parse_spec(spec)
    tokens = {"train": spec.tokens, "valid": valid_tokens or max(1, spec.tokens // 20)}
    records: dict[str, Iterable[Record]] = {
        split: replace(spec, split=split, tokens=tokens[split]).documents() for split in SPLITS
    }
    records |= {f"suites/{name}": items for name, items in suites(spec.world()).items()}
    return {name: _write(lines, Path(out_dir, f"{name}.jsonl")) for name, lines in records.items()}


def _write(records: Iterable[Record], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
