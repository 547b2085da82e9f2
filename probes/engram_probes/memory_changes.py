"""The memory silenced or filled with other rows, and changes as large that leave it as it is.

Whatever is added to a residual changes something later. Two controls tell what the memory says from
the size of what is taken away: at each token and stream they add a vector as long as what the
memory adds there, in a random direction, or along what it adds to another token.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal

from engram_model.errors import UsageError
from engram_probes.suppression import HOWS, How

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engram_probes.capture import Subject, Tap

Change = Literal[How, "noise", "other"]
CONTROLS = {
    "noise": "a random vector as large as what the memory adds is added",
    "other": "what the memory adds to another token, as large as its own, is taken away",
}
CHANGES = {**HOWS, **CONTROLS}
INTACT = "intact"
DEFAULT: tuple[Change, ...] = ("zero", "noise", "other", "shuffle")


class MemoryChanges:
    """Runs the same texts with the memory as it is, then changed in each way.

    The intact pass may be of a single text and the others of a batch of it, for several draws.

    Args:
        subject: a model; through a bridge, whose hooks stay live.
        names: of `CHANGES`; left out for a model without a memory.
        seed: of noise, of other tokens, of other rows.

    Raises:
        UsageError: no such change.
    """

    def __init__(self, subject: "Subject", names: Iterable[str], seed: int) -> None:
        import torch

        names = tuple(dict.fromkeys(names))
        for name in names:
            if name not in CHANGES:
                raise UsageError(f"no change {name!r}; use some of {', '.join(CHANGES)}")
        self.names = names if subject.memories else ()
        self._memories = subject.memories
        self._intact: dict[nn.Module, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)
        self._taps = {INTACT: [self._keeping(memory) for memory in subject.memories]}
        self._taps |= {name: self._taps_of(subject, name, seed) for name in self.names}

    @property
    def conditions(self) -> tuple[str, ...]:
        return (INTACT, *self.names)

    @contextmanager
    def made(self, condition: str) -> Iterator[None]:
        """While open, one forward pass is made in this condition; `intact` first."""
        from engram_probes.capture import tapped

        with ExitStack() as stack:
            for number, memory in enumerate(self._memories):
                stack.enter_context(tapped(memory, self._taps[condition][number]))
            yield

    def _taps_of(self, subject: "Subject", name: str, seed: int) -> list:
        from engram_probes.suppression_parts import parts_of
        from engram_probes.suppression_taps import Replacement

        if name in CONTROLS:
            return [self._control(memory, name) for memory in subject.memories]
        parts = parts_of(subject, name)
        return [Replacement(part, name, None, seed).wrap for part in parts]

    def _keeping(self, memory: "nn.Module"):
        def keep(out: "Tensor") -> "Tensor":
            self._intact[memory] = out
            return out

        return at_out(keep)

    def _control(self, memory: "nn.Module", name: str):
        direction = self._noise if name == "noise" else self._other

        def changed(out: "Tensor") -> "Tensor":
            intact = self._intact[memory].expand_as(out)
            drawn = direction(intact)
            size = intact.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True)
            return intact + drawn * size.nan_to_num(0, 0, 0)

        return at_out(changed)

    def _noise(self, out: "Tensor") -> "Tensor":
        import torch

        # Text by text, so that a batch is given what its texts would be given alone.
        drawn = [torch.randn(text.shape, generator=self._generator) for text in out]
        return torch.stack(drawn).to(out)

    def _other(self, out: "Tensor") -> "Tensor":
        """Less what is added to a token some way off, the same way for all tokens of a text."""
        import torch

        length = max(out.shape[1], 2)
        ways = [int(torch.randint(1, length, (), generator=self._generator)) for _ in out]
        return -torch.stack([text.roll(way, 0) for text, way in zip(out, ways, strict=True)])


def at_out(change):
    """A wrapped tap that changes what is added, before others hear of it."""

    def wrap(outer: "Tap | None") -> "Tap":
        def tap(name: str, tensor: "Tensor") -> "Tensor":
            if name == "out":
                tensor = change(tensor)
            return tensor if outer is None else outer(name, tensor)

        return tap

    return wrap
