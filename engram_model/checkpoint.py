"""Opening checkpoints: from a folder or by the name of a bundled one."""

import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engram_model.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from engram_model.modeling import EngramForCausalLM


def bundled_checkpoints() -> Path | None:
    """Folder of the bundled models: `ENGRAM_CHECKPOINTS`, the source tree's, or none."""
    given = os.environ.get("ENGRAM_CHECKPOINTS")
    candidates = [Path(given)] if given else [Path(__file__).parents[1] / "checkpoints"]
    return next((folder for folder in candidates if folder.is_dir()), None)


def bundled_names() -> list[str]:
    """Names that `load` and the command line take instead of a path."""
    folder = bundled_checkpoints()
    return sorted(p.parent.name for p in folder.glob("*/config.json")) if folder else []


def find_checkpoint(name_or_path: str | Path) -> Path:
    """The checkpoint's folder.

    Raises:
        CheckpointError: there is none; the message lists the bundled ones.
    """
    path = Path(name_or_path)
    bundled = bundled_checkpoints()
    if not path.exists() and bundled and (bundled / path.name).is_dir() and len(path.parts) == 1:
        path = bundled / path.name
    if not path.exists():
        names = ", ".join(bundled_names()) or "none"
        raise CheckpointError(f"no checkpoint at {name_or_path}; bundled ones: {names}")
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path} is not a checkpoint: it has no config.json")
    return path


def load(
    name_or_path: str | Path,
    *,
    dtype: "torch.dtype | None" = None,
    device: "str | torch.device | None" = None,
    table: str | None = None,
) -> tuple["EngramForCausalLM", "PreTrainedTokenizerFast"]:
    """Open a checkpoint for use: evaluation mode, weights and tokenizer checked.

    Args:
        name_or_path: a folder, or the name of a bundled checkpoint.
        dtype: default float32 on a CPU (bfloat16 products are some 40 times slower there),
            bfloat16 on a GPU.
        device: default a GPU if there is one.
        table: where the memory's tables are, "device", "host" or "file"; default: as the config
            says in `engram_table`.

    Raises:
        CheckpointError: missing, damaged, not an Engram model, or with another tokenizer than the
            one it was trained with.
    """
    path = find_checkpoint(name_or_path)
    config = read_config(path)
    check_weights(path)
    import torch
    from transformers import PreTrainedTokenizerFast

    from engram_model.modeling import EngramForCausalLM

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float32 if place.type == "cpu" else torch.bfloat16)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
        with _quietly():
            model, info = EngramForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # found and refused below, in one line
                # TransformerLens runs eager attention: on a CPU both then give the same numbers
                attn_implementation="eager" if place.type == "cpu" else None,
                **({} if table is None else {"engram_table": table}),
            )
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} cannot be opened: {_first_line(error)}") from error
    _check_complete(path, info)
    _check_tokenizer(path, config, tokenizer, model)
    return model.to(place).eval(), tokenizer


@contextmanager
def _quietly() -> Iterator[None]:
    """Loading without transformers' bar, over before it can be read, and its report on keys."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def read_config(path: Path) -> dict:
    """config.json of a checkpoint, checked to be an Engram model's."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}/config.json is damaged: {_first_line(error)}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "engram":
        raise CheckpointError(f"{path} holds a {kind!r} model; this opens 'engram' checkpoints")
    return config


def check_weights(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint, each as long as its header says.

    Raises:
        CheckpointError: there is none, or one is missing or cut off.
    """
    index = path / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged: {_first_line(error)}") from error
    for name in names:
        _check_length(path / name)
    return [path / name for name in names]


def _check_length(file: Path) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing")
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            header = json.loads(stream.read(length)) if length < size else {}
        ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged: its header cannot be read") from error
    if size != expected:
        raise CheckpointError(f"{file} is damaged: {size:,} bytes where {expected:,} were written")


def _check_complete(path: Path, info: dict) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        found = info.get(kind) or ()
        keys = sorted(key if isinstance(key, str) else str(key[0]) for key in found)
        if keys:
            raise CheckpointError(
                f"{path}: {len(keys)} {kind.replace('_', ' ')} in the weights, first {keys[0]}"
            )


def _check_tokenizer(path: Path, config: dict, tokenizer, model) -> None:
    from engram_model.compression import compression_map, compression_sha256, tokenizer_sha256

    expected = config.get("tokenizer_sha256")
    if expected is not None and tokenizer_sha256(tokenizer) != expected:
        raise CheckpointError(
            f"{path}: the tokenizer is not the one the model was trained with (its vocabulary's "
            "checksum differs); restore tokenizer.json"
        )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(tokenizer, name) != config.get(name):
            raise CheckpointError(
                f"{path}: the tokenizer's {name} is {getattr(tokenizer, name)}, the model's "
                f"{config.get(name)}; restore tokenizer_config.json"
            )
    expected = config.get("engram_compression_sha256")
    if not model.model.memories or expected is None:
        return
    if compression_sha256(compression_map(tokenizer)) != expected:
        raise CheckpointError(
            f"{path}: the tokenizer compresses to other ids than in training, so every lookup "
            "would read other rows; restore tokenizer.json"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
