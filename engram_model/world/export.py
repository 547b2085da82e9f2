"""Write a world to files."""

import json
import os
from dataclasses import replace
from pathlib import Path

from .spec import WorldSpec, parse_spec
from .world import SPLITS


def export(
    spec: str | WorldSpec, out_dir: str | Path, *, valid_tokens: int | None = None
) -> dict[str, Path]:
    """Write train.jsonl and valid.jsonl to `out_dir`, one record a line; returns their paths.

    spec: its `tokens` is the size of train (its split does not matter). valid_tokens: the size of
    valid (default: a twentieth of train). A file appears under its name only when it is complete.
    """
    if isinstance(spec, str):
        spec = parse_spec(spec)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    tokens = {"train": spec.tokens, "valid": valid_tokens or max(1, spec.tokens // 20)}
    return {
        split: _write(replace(spec, split=split, tokens=tokens[split]), folder / f"{split}.jsonl")
        for split in SPLITS
    }


def _write(spec: WorldSpec, path: Path) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for record in spec.documents():
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
