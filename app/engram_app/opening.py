"""Opening what a command was given: checkpoints, texts, and folders to write to."""

from pathlib import Path
from typing import Any

from engram_app.console import say
from engram_model.errors import CheckpointError, UsageError


def open_model(
    name: str, device: str | None = None, full_precision: bool = False
) -> tuple[Any, Any]:
    """Model and tokenizer of an Engram checkpoint, or of another causal model on disk.

    Args:
        device: None: a GPU if there is one (of another model: the CPU).
        full_precision: float32 on a GPU too.

    Raises:
        CheckpointError: as `engram_model.load`.
        UsageError: there is no such device.
    """
    import json

    from engram_model.checkpoint import find_checkpoint, load

    path = find_checkpoint(name)
    _check_device(device)
    say(f"opening {path}")
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError):
        kind = "engram"  # `load` says what is wrong with it
    if kind == "engram":
        return load(path, device=device, dtype=_dtype(full_precision))
    model, tokenizer = _open_other(path)
    return model.to(device=device, dtype=_dtype(full_precision)), tokenizer


def _check_device(device: str | None) -> None:
    import torch

    if device is None or device == "cpu":
        return
    if device.split(":")[0] != "cuda" or not torch.cuda.is_available():
        raise UsageError(f"no device {device!r} here; use cpu, or cuda where there is a GPU")


def _dtype(full_precision: bool) -> Any:
    import torch

    return torch.float32 if full_precision else None


def _open_other(path: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from engram_app.local_models import look

    look(path)
    safely = {"trust_remote_code": False, "local_files_only": True}
    try:
        model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, **safely)
        return model.eval(), AutoTokenizer.from_pretrained(path, **safely)
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} cannot be opened: {first}") from error


def open_documents(spec: str, most: int) -> list[dict]:
    """The first `most` documents of a corpus.

    Raises:
        CorpusError: it cannot be read, is empty or damaged.
    """
    from itertools import islice

    from engram_model.corpora import iter_documents

    return list(islice(iter_documents(spec), most))


def open_pairs(spec: str | None, tokenizer: Any, most: int, seed: int) -> list[Any]:
    """At most `most` pairs of questions about the people of a world; None: of `world:`.

    Raises:
        UsageError: another corpus.
    """
    from engram_model.corpora import parse
    from engram_model.tasks import world_pairs
    from engram_model.world import parse_spec

    spec = spec or "world:"
    parts = parse(spec)
    if len(parts) != 1 or parts[0].kind != "world":
        raise UsageError(f"--data {spec}: give a world:, or pairs of your own")
    return world_pairs(parse_spec(spec).world(), tokenizer, most, seed)


def sample_documents(spec: str, most: int, seed: int) -> list[dict]:
    """At most `most` documents drawn from the whole of a corpus, in random order.

    Raises:
        CorpusError: it cannot be read, is empty or damaged.
    """
    from random import Random

    from engram_model.corpora import iter_documents

    random = Random(seed)
    drawn: list[dict] = []
    for read, document in enumerate(iter_documents(spec)):  # a reservoir: each is as likely
        place = read if read < most else random.randrange(read + 1)
        if place < most:
            drawn[place : place + 1] = [document]
    random.shuffle(drawn)
    return drawn


def check_writable(folder: Path) -> Path:
    """See before a long run that files can be written into a folder, made if need be.

    Raises:
        UsageError: they cannot.
    """
    from tempfile import TemporaryFile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written to ({error.strerror}); give another folder with --out"
        ) from None
    return folder


def check_out(out: Path, marker: str) -> None:
    """See before a long run that the folder can be written to and that nothing else is lost.

    Raises:
        UsageError: a folder that holds other things than an earlier result, marked by `marker`.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / marker).is_file():
        raise UsageError(f"{out} is not empty and holds no {marker}; give another folder")
