"""Where a result comes from: models, tokenizer, corpus, seed, versions, command."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from engram_model.errors import CheckpointError
from engram_model.files import installed

TIED = ("lm_head.weight", "model.embed_tokens.weight")
PACKAGES = ("engram-workbench", "numpy", "tokenizers", "torch", "transformers")
_WEIGHTS: WeakKeyDictionary = WeakKeyDictionary()  # model -> (versions of its tensors, checksum)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What is needed to measure the same again. All values go into JSON as they are.

    Attributes:
        models: of each model its name, sha256 of its weights (see `weights_sha256`), dtype, device.
        tokenizer_sha256: of the vocabulary.
        corpus: what was read: kind, documents, sha256 of the texts; or a description by the door.
        settings: the probe's options.
        seed: of every random choice; None where there is none.
        versions: package -> version.
        command: the command line that asked for it; "" from a notebook.
    """

    models: list[dict[str, str]]
    tokenizer_sha256: str
    corpus: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""


def provenance(
    models: list, tokenizer, corpus: dict[str, Any], settings: dict[str, Any], seed: int | None
) -> Provenance:
    """Provenance of a run of these models (unwrapped) with this tokenizer."""
    from engram_model.compression import tokenizer_sha256

    return Provenance(
        models=[describe_model(model) for model in models],
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        corpus=corpus,
        settings=settings,
        seed=seed,
        versions=versions(),
    )


def describe_model(model) -> dict[str, str]:
    return {
        "name": model_name(model),
        "weights_sha256": weights_sha256(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
    }


def model_name(model) -> str:
    """Last part of the path or Hub id a model was loaded from; else its class."""
    path = str(getattr(model.config, "name_or_path", "") or "")
    return path.rstrip("/").rpartition("/")[2] or type(model).__name__


def weights_sha256(model) -> str:
    """Checksum of a model's tensors: name, shape and values of each, in the order of the names.

    Floating point values enter as float32, so that a bfloat16 checkpoint has one checksum whether
    it was opened in float32 or in bfloat16. What a bridge wraps has the checksum of the model that
    it was made of: the tensors are the same, the names are not.
    """
    model = getattr(model, "plain", model)
    tensors = sorted(model.state_dict().items())
    state = tuple(tensor._version for _, tensor in tensors)
    known = _WEIGHTS.get(model)
    if known is None or known[0] != state:
        known = _WEIGHTS[model] = (state, _sha256(tensors))
    return known[1]


def _sha256(tensors: list) -> str:
    whole = ((n, t.float() if t.is_floating_point() else t) for n, t in tensors)
    return _digest((n, str(t.dtype), t.cpu().contiguous().numpy()) for n, t in whole)


def _digest(arrays: Iterable[tuple[str, str, np.ndarray]]) -> str:
    """Of name, torch's name of the type, and values of each."""
    digest = hashlib.sha256()
    for name, kind, array in arrays:
        digest.update(f"{name} {array.shape} {kind}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def checkpoint_sha256(folder: str | Path) -> str:
    """`weights_sha256` of the model in a checkpoint's files, without opening it or torch.

    Of a checkpoint whose tensors a class renames when it opens them it is another number.

    Raises:
        CheckpointError: no weights there, or damaged ones.
    """
    from safetensors import SafetensorError

    tensors: dict[str, np.ndarray] = {}
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        for file in sorted(Path(folder).glob("model*.safetensors")):
            tensors |= _tensors(file)
        if config.get("tie_word_embeddings") and TIED[0] not in tensors:
            tensors[TIED[0]] = tensors[TIED[1]]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"the weights in {folder} cannot be read: {error}") from error
    return _digest((name, f"torch.{array.dtype}", array) for name, array in sorted(tensors.items()))


def _tensors(file: Path) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file; floating point ones as float32."""
    from safetensors import deserialize

    return {name: _array(**entry) for name, entry in deserialize(file.read_bytes())}


def _array(shape: list[int], dtype: str, data: bytes) -> np.ndarray:
    if dtype == "BF16":  # the upper half of a float32, which NumPy has no type for
        values = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    else:
        kinds = {"F": "float", "I": "int", "U": "uint"}
        values = np.frombuffer(data, f"{kinds[dtype[0]]}{dtype[1:]}" if dtype != "BOOL" else "bool")
    values = values.astype("<f4") if values.dtype.kind == "f" else values
    return values.reshape(shape)


def versions() -> dict[str, str]:
    """Versions of the packages that the numbers depend on, as installed."""
    found = installed(PACKAGES)
    return {package: found.get(package, "not installed") for package in PACKAGES}
