"""What the page Models knows of the models at hand, without opening them."""

import json
from pathlib import Path
from typing import Any

from engram_app.local_models import look
from engram_model.errors import EngramError

MEMORY = "it has no memory"
NEEDS_MEMORY = ("Gates", "Slots", "Interventions")
PAIRS = {"engram-mini": "moe-mini", "engram-nano": "moe-nano"}  # trained on the same, alike in size


def model_row(path: str) -> dict[str, Any]:
    """A line of the table of models."""
    folder = Path(path)
    try:
        facts = look(folder)
    except EngramError as error:
        return {"model": folder.name, "note": str(error), "path": path}
    card = _card(folder)
    loss = _loss(card)
    return {
        "model": folder.name,
        "twin": _twin(folder.name),
        "parameters (M)": _million(card.get("parameters", {}).get("total")),
        "active (M)": _million(card.get("parameters", {}).get("active")),
        "trained on (M tokens)": _million(card.get("training", {}).get("tokens")),
        "valid loss": loss.get("loss"),
        "95% low": loss.get("low"),
        "95% high": loss.get("high"),
        "layers": facts.layers,
        "memory in layer": ", ".join(map(str, facts.memory)) or "none",
        "memory rows": sum(memory["rows"] for memory in card.get("memory", [])) or None,
        "experts": facts.experts or None,
        "note": "" if card else f"{facts.kind}, {facts.bytes / 1e6:.1f} MB of weights",
        "path": path,
    }


def _card(folder: Path) -> dict[str, Any]:
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    known = isinstance(card, dict) and all(
        isinstance(card.get(part), kind)
        for part, kind in (("parameters", dict), ("training", dict), ("memory", list))
    )
    return card if known else {}


def _loss(card: dict[str, Any]) -> dict[str, float]:
    """Of the natural texts held out, the first evaluation that a card states."""
    try:
        return card["evaluations"][0]["sources"]["all"]
    except (KeyError, IndexError, TypeError):
        return {}


def _million(count: Any) -> float | None:
    return round(count / 1e6, 2) if isinstance(count, int | float) else None


def _twin(name: str) -> str:
    twins = {**PAIRS, **{other: first for first, other in PAIRS.items()}}
    return twins.get(name, "")


def applying(path: str, twin: str | None) -> list[dict[str, str]]:
    """Each page, whether it has something to show of this model, and why not."""
    facts = look(Path(path))
    lacks = "" if facts.memory else MEMORY
    experts = facts.experts or facts.memory
    reasons = {
        "Overview": lacks,
        **dict.fromkeys(NEEDS_MEMORY, lacks),
        "Lens": "",
        "Attribution": "" if facts.kind == "engram" else "it is no Engram architecture",
        "Heads and experts": "" if experts or facts.kind != "engram" else "attention only",
        "Compare": "" if twin is None or same_tokenizer(path, twin) else _other(twin),
        "Alignment": _alignment(path, twin),
        "Runs": "",
    }
    return [
        {"page": page, "applies": "yes" if not why or why == "attention only" else "no", "why": why}
        for page, why in reasons.items()
    ]


def _alignment(path: str, twin: str | None) -> str:
    if twin is None:
        return "nothing to compare it with is chosen"
    return "" if same_tokenizer(path, twin) else _other(twin)


def _other(twin: str) -> str:
    return f"{Path(twin).name} has another tokenizer"


def same_tokenizer(first: str, second: str) -> bool:
    """Whether two models split a text alike, by the files of their tokenizers."""
    return _vocabulary(first) == _vocabulary(second)


def _vocabulary(path: str) -> Any:
    try:
        document = json.loads((Path(path) / "tokenizer.json").read_text(encoding="utf-8"))
        return document["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return path
