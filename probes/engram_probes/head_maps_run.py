"""Running an `AttentionMap`: the intact pass, the changed one, and draws of the controls."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engram_model.errors import UsageError
from engram_probes.attention_run import Listener
from engram_probes.capture import CPU_TOKENS
from engram_probes.head_maps import AttentionMap
from engram_probes.memory_changes import CONTROLS, INTACT
from engram_probes.provenance import provenance
from engram_probes.suppression import HOWS
from engram_probes.text import describe_texts, token_texts

Progress = Callable[[int, int | None], None] | None


def run(
    model, tokenizer, text: str, how: str, controls: tuple[str, ...], draws: int, most: int,
    seed: int, progress: Progress,
) -> AttentionMap:  # fmt: skip
    _check(how, controls)
    listener = Listener(model, tokenizer, (how, *controls), seed)
    subject = listener.subject
    ids = subject.encode(tokenizer, text)
    special = subject.special(tokenizer, ids)
    block = -(-len(ids) // most)
    known = bool(subject.memories)
    controls = tuple(dict.fromkeys(controls)) if known else ()
    layers, intact = listener.heard([ids], lambda pattern: pattern[0].float(), INTACT)
    reading = _Reading(listener, ids, intact, _steps(progress, 1 + len(controls) * draws))
    return AttentionMap(
        provenance=provenance(
            [subject.model],
            tokenizer,
            describe_texts([text]),
            {"how": how, "controls": list(controls), "draws": draws, "most": most},
            seed,
        ),
        tokens=token_texts(tokenizer, ids),
        token_ids=np.array(ids, np.int64),
        special=special,
        layers=layers,
        memory_layers=subject.memory_layers,
        how=how if known else "",
        controls=controls,
        block=block,
        pattern=blocked(intact, block).cpu().numpy(),
        **(_changes(reading, how, controls, draws, block, special) if known else _NOTHING),
    )


_NOTHING = dict.fromkeys(("changed", "moved", "control_moved", "control_draws"))


def _check(how: str, controls: tuple[str, ...]) -> None:
    if how not in HOWS:
        raise UsageError(f"no change {how!r}; use one of {', '.join(HOWS)}")
    for name in controls:
        if name not in CONTROLS:
            raise UsageError(f"no control {name!r}; use some of {', '.join(CONTROLS)}")


def _steps(progress: Progress, total: int) -> Callable[[int], None]:
    done = 0

    def step(passes: int) -> None:
        nonlocal done
        done += passes
        if progress:
            progress(done, total)

    return step


class _Reading:
    """The text read in other conditions, each pattern compared with the intact one."""

    def __init__(self, listener: Listener, ids: list[int], intact: Tensor, step) -> None:
        self._listener, self._ids, self._intact, self._step = listener, ids, intact, step

    def changed(self, how: str, block: int) -> tuple[Tensor, Tensor]:
        """Patterns [L, H, query, key] in blocks, and what is moved [L, H, p]."""
        _, pattern = self._listener.heard([self._ids], lambda pattern: pattern[0].float(), how)
        self._step(1)
        return blocked(pattern, block), moved(pattern, self._intact)

    def drawn(self, control: str, draws: int) -> Tensor:
        """What each draw of a control moves, [D, L, H, p]."""
        at_once = max(1, CPU_TOKENS // len(self._ids))
        found = []
        for start in range(0, draws, at_once):
            rows = min(at_once, draws - start)
            places = iter(self._intact)
            _, parts = self._listener.heard(
                [self._ids] * rows, lambda pattern, each=places: moved(pattern, next(each)), control
            )
            found.append(parts.transpose(0, 1))
            self._step(rows)
        return torch.cat(found)


def _changes(
    reading: _Reading,
    how: str,
    controls: tuple[str, ...],
    draws: int,
    block: int,
    special: np.ndarray,
) -> dict[str, Any]:
    changed, away = reading.changed(how, block)
    usual = torch.from_numpy(~special)
    size = (len(controls), *away.shape)
    mean, by_draw = np.zeros(size, np.float32), np.zeros((size[0], draws, *size[1:3]), np.float32)
    for place, control in enumerate(controls):
        drawn = reading.drawn(control, draws).cpu()
        mean[place] = drawn.mean(0)
        by_draw[place] = drawn[..., usual].mean(-1)
    return {
        "changed": changed.cpu().numpy(),
        "moved": away.cpu().numpy(),
        "control_moved": mean,
        "control_draws": by_draw,
    }


def moved(pattern: Tensor, intact: Tensor) -> Tensor:
    """Share of attention that is on other keys, [..., query]."""
    return (pattern.float() - intact.to(pattern.device)).abs().sum(-1) / 2


def blocked(pattern: Tensor, block: int) -> Tensor:
    """[..., query, key] in squares of `block` tokens: mean over queries, sum over keys."""
    if block == 1:
        return pattern
    length = pattern.shape[-1]
    over = -length % block
    padded = torch.nn.functional.pad(pattern, (0, over, 0, over))
    cells = padded.unflatten(-1, (-1, block)).sum(-1).unflatten(-2, (-1, block)).sum(-2)
    queries = torch.full((cells.shape[-1],), float(block), device=cells.device)
    queries[-1] = block - over
    return cells / queries[:, None]
