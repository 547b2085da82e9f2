"""A folder with a causal model, looked at before it is opened: nothing in it is run.

Only JSON and the headers of safetensors are read. Weights as pickles and code beside a model are
refused, and so is a configuration that asks for far more than the weights hold.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram_model.checkpoint import check_weights
from engram_model.errors import CheckpointError

LARGEST_CONFIG = 2**20  # bytes
LARGEST_COUNT = 10_000  # of layers, heads, experts
LARGEST_NUMBER = 2**31
ENOUGH = 4  # parameters a byte of weights: four bits each, twice over
FREE = ("_id", "seed")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class LocalModel:
    """What a folder says of its model.

    Attributes:
        kind: `model_type` of the configuration.
        layers: blocks.
        width: of the residual.
        context: tokens.
        memory: layers with a memory.
        experts: routed in each layer; 0: none.
        bytes: of the weights.
    """

    kind: str
    layers: int
    width: int
    context: int
    memory: tuple[int, ...]
    experts: int
    bytes: int


def look(folder: Path) -> LocalModel:
    """Facts of a model on disk.

    Raises:
        CheckpointError: no configuration, one that is damaged or unreasonable, code that would
            have to be run, weights that are missing, cut off, or pickles.
    """
    config = _config(folder)
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise CheckpointError(f"{folder}/config.json names no model_type")
    if "auto_map" in config:
        raise CheckpointError(
            f"{folder} comes with code of its own (auto_map), which is never run here; convert it "
            "to an architecture that transformers knows"
        )
    files = _weights(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise CheckpointError(f"{folder} has no tokenizer.json; save the tokenizer with it")
    inner = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    size = sum(file.stat().st_size for file in files)
    numbers = {
        "layers": _first(inner, "num_hidden_layers", "n_layer", "num_layers"),
        "width": _first(inner, "hidden_size", "n_embd", "d_model"),
        "context": _first(inner, "max_position_embeddings", "n_positions"),
        "experts": _first(inner, "n_routed_experts", "num_local_experts", "num_experts"),
    }
    vocabulary = _first(inner, "vocab_size")
    if vocabulary * numbers["width"] > ENOUGH * size or numbers["layers"] > _tensors(files):
        raise CheckpointError(
            f"{folder}/config.json asks for a larger model than its weights hold; it is damaged"
        )
    if numbers["layers"] <= inner.get("first_k_dense_replace", 0):
        numbers["experts"] = 0
    memory = inner.get("engram_layer_ids") or ()
    return LocalModel(kind=kind, memory=tuple(memory), bytes=size, **numbers)


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        if file.stat().st_size > LARGEST_CONFIG:
            raise CheckpointError(f"{file} is larger than 1 MiB; it is no configuration")
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        said = str(error).splitlines()[0][:200]
        raise CheckpointError(f"{file} is damaged: {said}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} is damaged: it holds no object")
    for name, value in _numbers(config):
        count = name.startswith(("num_", "n_")) and not name.startswith("n_positions")
        if value > (LARGEST_COUNT if count else LARGEST_NUMBER):
            raise CheckpointError(f"{file} is damaged: {name[:60]} is {str(value)[:40]}")
    return config


def _numbers(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Every size in a configuration; ids and seeds may be anything."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool) and not name.endswith(FREE):
            yield name, value


def _weights(folder: Path) -> list[Path]:
    """The safetensors, each inside the folder."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file() and not (folder / "model.safetensors").is_file():
        if any(file for pattern in PICKLES for file in folder.glob(pattern)):
            raise CheckpointError(
                f"{folder} has its weights as pickles, which can run code and are not opened; "
                "save them as safetensors"
            )
        raise CheckpointError(f"{folder}/model.safetensors is missing")
    if index.is_file() and index.stat().st_size > 64 * LARGEST_CONFIG:
        raise CheckpointError(f"{index} is larger than 64 MiB; it is damaged")
    files = check_weights(folder)
    for file in files:
        if file.parent != folder:
            raise CheckpointError(f"{index} names a file outside of its folder")
    return files


def _tensors(files: list[Path]) -> int:
    return sum(len(_header(file)) for file in files)


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))


def _first(config: dict[str, Any], *names: str) -> int:
    """The first that is there; 0 if none is."""
    found = (config[name] for name in names if isinstance(config.get(name), int))
    return next(found, 0)
