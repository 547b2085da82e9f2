"""What a strip can be coloured by: the quantity, its scale and its values."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from engram_app.colours import Scale
from engram_probes.gates import GateMap, What
from engram_probes.head_maps import AttentionMap
from engram_probes.interventions import Intervention
from engram_probes.lens import LogitLens
from engram_probes.routing import ExpertRouting

TITLES: dict[What, str] = {
    "added": "what the memory adds, relative to the residual it enters",
    "gate": "gate: open above 0.5, closed below",
    "score": "score: how well the key fits the hidden state",
}


def memory_values(
    gates: GateMap, what: What, layer: int | None = None, stream: int | None = None
) -> tuple[np.ndarray, Scale]:
    """One value a token, and the scale that ordinary tokens set."""
    values = np.array([value for _, value in gates.strip(what, layer, stream)])
    usual = values[~gates.special & np.isfinite(values)]
    largest = float(np.abs(usual).max(initial=0)) or 1.0
    low, high, centre = {
        "added": (0.0, largest, 0.0),
        "gate": (0.0, 1.0, 0.5),
        "score": (-largest, largest, 0.0),
    }[what]
    return values, Scale(TITLES[what], low, high, centre)


def helped_values(found: Intervention) -> tuple[np.ndarray, Scale]:
    """By how many nats each token is predicted better with the memory than edited."""
    usual = found.helped[~found.special]
    largest = float(np.abs(usual[np.isfinite(usual)]).max(initial=0)) or 1.0
    title = "nats by which the token is likelier with the memory as it is"
    return found.helped, Scale(title, -largest, largest, 0.0)


def settling_values(lens: LogitLens) -> tuple[np.ndarray, Scale]:
    """After how many blocks the top next token is the final one."""
    depths = np.asarray(lens.settling_depth, dtype=float)
    title = "blocks run until the next token is settled"
    return depths, Scale(title, 0.0, float(lens.depths - 1), 0.0)


def moved_values(heads: AttentionMap) -> tuple[np.ndarray, Scale]:
    """Share of its attention that each token moves without the memory, mean over all heads."""
    title = "attention moved to other tokens without the memory"
    if heads.moved is None:
        return np.zeros(len(heads.tokens)), Scale("no memory to take away", 0.0, 1.0, 0.0)
    values = heads.moved.mean((0, 1))
    return values, Scale(title, 0.0, float(values[~heads.special].max(initial=0)) or 1.0, 0.0)


def anew_values(routing: ExpertRouting) -> tuple[np.ndarray, np.ndarray, Scale]:
    """Share of its experts that each token chooses anew under the first change of the memory, mean
    over layers; and which token is the first."""
    first = np.arange(len(routing.tokens)) == 0
    if not routing.changes:
        return np.zeros(len(first)), first, Scale("no memory to take away", 0.0, 1.0, 0.0)
    values = 1 - routing.text_kept().mean(0)
    largest = float(values[~first].max(initial=0)) or 1.0
    return values, first, Scale("experts chosen anew without the memory", 0.0, largest, 0.0)


def strip_tokens(
    tokens: Sequence[str],
    values: np.ndarray,
    special: np.ndarray,
    scale: Scale,
    quantity: str,
) -> list[dict[str, Any]]:
    """What a strip draws of each token.

    text: without the space in front, if it begins a word. word, breaks, special: whether it begins
    a word, ends a line, is a special token. label: for those who hear or hover it. shades: theme ->
    background and text colour. strength: 0 to 1, length of the bar.
    """
    rows = zip(tokens, values, special, strict=True)
    return [_token(position, *row, scale, quantity) for position, row in enumerate(rows)]


def _token(
    position: int, text: str, value: float, special: bool, scale: Scale, quantity: str
) -> dict[str, Any]:
    known = bool(np.isfinite(value))
    shown = float(value) if known and not special else scale.centre
    word = text.startswith("·") and len(text) > 1
    return {
        "text": text[1:] if word else text,
        "word": word,
        "breaks": text.endswith("↵"),
        "special": bool(special) and text.startswith("<"),
        "label": f"token {position} {text}, "
        + (f"{quantity} {value:.3g}" if known else f"no {quantity}"),
        "shades": scale.shades(shown),
        "strength": scale.strength(shown),
    }


def loudest(gates: GateMap) -> int:
    """Position of an ordinary token at which the memory adds most."""
    added = np.where(gates.special, -np.inf, gates.values("added").max(0))
    return int(np.argmax(added))
