"""Running a text with its memory intact, edited, and changed as much at random.

Edits are made at the memories' taps, before any other tap, so that whoever listens sees what is
left and no weight is touched.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from engram_model.errors import UsageError
from engram_model.memories import Memory, Tap
from engram_probes.capture import Subject, heard, next_surprisal, tapped
from engram_probes.interventions import Intervention, MemoryEdit
from engram_probes.memory_changes import at_out
from engram_probes.provenance import provenance
from engram_probes.text import describe_texts, nested_texts, token_texts

CHANGED = {"zero": "out", "scale": "out", "gate": "gate", "rows_zero": "rows", "swap": "slots"}


class Editor:
    """One edit of one memory. start: the first position of the pass that is made."""

    def __init__(self, edit: MemoryEdit, memory: Memory, other: Tensor | None) -> None:
        self.edit, self.memory, self.start = edit, memory, 0
        self._other = other  # slots [C] that swap reads
        columns = torch.arange(memory.primes.numel(), device=memory.offsets.device)
        order, head = columns // memory.n_heads + 2, columns % memory.n_heads
        self._columns = torch.ones_like(columns, dtype=torch.bool)
        if edit.order is not None:
            self._columns &= order == edit.order
        if edit.head is not None:
            self._columns &= head == edit.head

    def wrap(self, outer: Tap | None) -> Tap:
        """A tap that edits, and then asks the tap `outer`."""
        kept: dict[str, Tensor] = {}

        def tap(name: str, tensor: Tensor) -> Tensor:
            if name == CHANGED[self.edit.how]:
                tensor = self._edited(tensor, kept)
            tensor = tensor if outer is None else outer(name, tensor)
            if name in ("slots", "gate"):
                kept[name] = tensor
            return tensor

        return tap

    def _positions(self, tensor: Tensor) -> Tensor:
        """Bool [positions]: where it is made."""
        place = torch.arange(self.start, self.start + tensor.shape[1], device=tensor.device)
        if self.edit.pos is None:
            return torch.ones_like(place, dtype=torch.bool)
        return (place >= self.edit.pos[0]) & (place <= self.edit.pos[1])

    def _edited(self, tensor: Tensor, kept: dict[str, Tensor]) -> Tensor:
        where = self._positions(tensor)
        if CHANGED[self.edit.how] in ("slots", "rows"):
            slots = kept.get("slots", tensor)
            belongs = (where[:, None] & self._columns).expand(slots.shape)
            if self.edit.slot is not None:
                belongs = belongs & (slots == self.edit.slot)
            if self._other is not None:
                return torch.where(belongs, self._other, tensor)
            return tensor.masked_fill(belongs.unsqueeze(-1), 0)
        streams = tensor if self.edit.how == "gate" else tensor.reshape(*kept["gate"].shape, -1)
        chosen = torch.ones(streams.shape[2], dtype=torch.bool, device=tensor.device)
        if self.edit.stream is not None:
            chosen = torch.arange(len(chosen), device=tensor.device) == self.edit.stream
        chosen = where[:, None] & chosen
        if self.edit.how == "gate":
            return streams.masked_fill(chosen, float(self.edit.value or 0))
        chosen = chosen.unsqueeze(-1)
        if self.edit.how == "zero":
            return streams.masked_fill(chosen, 0).reshape(tensor.shape)
        return torch.where(chosen, streams * float(self.edit.value or 0), streams).reshape(
            tensor.shape
        )


class Pass:
    """Forward passes of one text in one condition; whoever edits is told where a pass begins."""

    def __init__(self, subject: Subject, editors: list[Editor]) -> None:
        self._subject, self._editors = subject, editors

    @contextmanager
    def made(self) -> Iterator[None]:
        with ExitStack() as stack:
            for editor in reversed(self._editors):  # of several taps the last to come acts first
                stack.enter_context(tapped(editor.memory, editor.wrap))
            yield

    def logits(self, ids: list[int], start: int = 0, cache=None, keep: bool = False):
        """Logits of ids that begin at position `start`, and the cache behind them."""
        for editor in self._editors:
            editor.start = start
        with self._subject.quiet():
            output = self._subject.model(
                self._subject.tensor([ids]), past_key_values=cache, use_cache=keep
            )
        return output.logits[0], output.past_key_values if keep else None

    def follow(self, last: Tensor, cache, start: int, steps: int, ends: set[int]):
        """Greedy continuation: ids and the log-probability of each; -1 and NaN behind an end."""
        ids = np.full(steps, -1, np.int64)
        found = np.full(steps, np.nan, np.float32)
        for step in range(steps):
            log_probs = last.float().log_softmax(-1)
            ids[step] = token = int(log_probs.argmax())
            found[step] = float(log_probs[token])
            if token in ends or step == steps - 1:
                break
            logits, cache = self.logits([token], start + step, cache, keep=True)
            last = logits[-1]
        return ids, found


def editors_of(
    subject: Subject, tokenizer, edits: tuple[MemoryEdit, ...], length: int
) -> list[Editor]:
    """Raises UsageError: an edit of what is not there."""
    if not subject.memories:
        raise UsageError(
            f"{subject.name} has no memory, so there is nothing to edit; give a model with one"
        )
    editors = []
    for edit in edits:
        _check(subject, edit, length)
        for memory in subject.memories:
            if edit.layer in (None, memory.layer_id):
                other = _slots_of(subject, tokenizer, edit, memory)
                editors.append(Editor(edit, memory, other))
    return editors


def _slots_of(subject: Subject, tokenizer, edit: MemoryEdit, memory: Memory) -> Tensor | None:
    """Slots [C] that the last position of the text of a swap reads."""
    if edit.how != "swap":
        return None
    ids = subject.encode(tokenizer, str(edit.value))
    compressed = memory.compression.cpu().numpy()[ids].astype(np.int64)
    hasher = memory.hasher_of(subject.memories)
    slots = hasher.slots(hasher.segments(compressed)[-1], memory.layer_id)[-1]
    return torch.as_tensor(slots).to(memory.offsets.device)


def _check(subject: Subject, edit: MemoryEdit, length: int) -> None:
    first = subject.memories[0]
    chosen = [m for m in subject.memories if edit.layer in (None, m.layer_id)]
    rows = max((int(memory.primes.sum()) for memory in chosen), default=0)
    config = subject.config
    streams = int(getattr(config, "hc_mult", None) or getattr(config, "hc_count", None) or 1)
    known = {
        "layer": subject.memory_layers,
        "order": range(2, first.max_ngram_size + 1),
        "head": range(first.n_heads),
        "stream": range(streams),
        "slot": range(rows),
    }
    for key, there in known.items():
        value = getattr(edit, key)
        if value is not None and value not in there:
            has = ", ".join(map(str, there)) if len(there) < 20 else f"0-{len(there) - 1}"
            raise UsageError(f"{edit}: {key} {value} is not among the model's: {has}")
    if edit.pos is not None and edit.pos[1] >= length:
        raise UsageError(f"{edit}: positions of the text and what is generated are 0-{length - 1}")


def run(
    model, tokenizer, text, edits, patch, generate, topk, controls, seed, progress
) -> Intervention:
    subject = Subject.of(model)
    ids = subject.encode(tokenizer, text)
    if generate < 0 or controls < 0 or not 1 <= topk <= subject.config.vocab_size:
        raise UsageError("generate and controls are 0 or more, topk 1 or more")
    if len(ids) + generate > subject.context:
        raise UsageError(
            f"{len(ids):,} tokens and {generate:,} generated ones are more than the "
            f"{subject.context:,} that {subject.name} reads; shorten the text or generate fewer"
        )
    editors = editors_of(subject, tokenizer, edits, len(ids) + generate)
    touched = {editor.memory.layer_id for editor in editors} | set(patch.slots if patch else ())
    total, ends = 2 + controls, {tokenizer.eos_token_id}
    outs: list[dict[int, Tensor]] = []
    found, continued = [], []
    for number, passes in enumerate((Pass(subject, []), Pass(subject, editors))):
        applied = patch.applied(subject.model) if patch and number else nullcontext()
        with applied, passes.made():
            with _hearing(subject, touched if controls else set()) as out:
                logits, cache = passes.logits(ids, keep=generate > 0)
            last = logits[-1]
            found.append(logits.float().log_softmax(-1))
            continued.append(passes.follow(last, cache, len(ids), generate, ends))
        outs.append(out)
        if progress:
            progress(number + 1, total)
    measured = _measure(found, ids, min(topk, found[0].shape[-1]))
    control = _controls(subject, ids, found[0], outs, controls, seed, progress)
    generated = np.stack([one for one, _ in continued])
    return Intervention(
        edits=tuple(map(str, edits)),
        patched=patch.rows if patch else 0,
        tokens=token_texts(tokenizer, ids),
        next_texts=nested_texts(tokenizer, measured["next_ids"]),
        generated_texts=tuple(
            token_texts(tokenizer, [i for i in row if i >= 0]) for row in generated
        ),
        token_ids=np.array(ids),
        special=subject.special(tokenizer, ids),
        generated=generated,
        generated_log_prob=np.stack([one for _, one in continued]),
        **measured,
        **control,
        provenance=provenance(
            [subject.model],
            tokenizer,
            describe_texts([text]),
            {"edits": [str(e) for e in edits], "generate": generate, "topk": topk,
             "controls": controls},
            seed,
        ),
    )  # fmt: skip


@contextmanager
def _hearing(subject: Subject, layers: set[int]) -> Iterator[dict[int, Tensor]]:
    """What the memories of these layers add in one pass."""
    outs: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for memory in subject.memories:
            if memory.layer_id in layers:

                def keep(name: str, tensor: Tensor, layer=memory.layer_id) -> None:
                    if name == "out":
                        outs[layer] = tensor

                stack.enter_context(heard(memory, keep))
        yield outs


def _surprisal(log_probs: Tensor, ids: list[int]) -> np.ndarray:
    """Of each token given those before, [P]; NaN at 0."""
    return np.roll(next_surprisal(log_probs, ids), 1)


def _kl(first: Tensor, second: Tensor) -> np.ndarray:
    """KL(first || second) at each position; no more than a block of them at once."""
    parts = [
        (a.exp() * (a - b)).nan_to_num(0).sum(-1)
        for a, b in zip(first.split(128), second.split(128), strict=True)
    ]
    return torch.cat(parts).clamp_min(0).cpu().numpy()


def _measure(found: list[Tensor], ids: list[int], k: int) -> dict[str, np.ndarray]:
    listed = [log_probs.topk(k, -1).indices for log_probs in found]
    probs = [[p.gather(-1, tops).exp() for p in found] for tops in listed]
    ranks = [[_ranks(p, tops) for p in found] for tops in listed]
    return {
        "surprisal": np.stack([_surprisal(log_probs, ids) for log_probs in found]),
        "kl": _kl(*found),
        "next_ids": torch.stack(listed).cpu().numpy(),
        "next_probs": torch.stack([torch.stack(one) for one in probs]).cpu().numpy(),
        "next_ranks": torch.stack([torch.stack(one) for one in ranks]).cpu().numpy(),
    }


def _ranks(log_probs: Tensor, tops: Tensor) -> Tensor:
    """Rank from 1 of tokens [P, k] among all."""
    values = log_probs.gather(-1, tops)
    counts = [(log_probs > values[:, i, None]).sum(-1) for i in range(tops.shape[1])]
    return torch.stack(counts, -1) + 1


def _controls(subject, ids, intact, outs, controls, seed, progress) -> dict:
    """Statistics over runs in which random vectors as long as the change are added."""
    if not controls:
        return {}
    generator = torch.Generator().manual_seed(seed)
    streams = {m.layer_id: _streams(subject, outs[0].get(m.layer_id)) for m in subject.memories}
    before = _surprisal(intact, ids)
    changes, kls = [], []
    for number in range(controls):
        with ExitStack() as stack:
            for memory in subject.memories:
                layer = memory.layer_id
                if layer in outs[0]:
                    first, second = (o[layer].reshape(streams[layer]).float() for o in outs)
                    drawn = torch.randn(first.shape, generator=generator).to(first)
                    size = (second - first).norm(dim=-1, keepdim=True)
                    noise = drawn * size / drawn.norm(dim=-1, keepdim=True)

                    def add(_out: Tensor, new=first + noise, like=outs[0][layer]) -> Tensor:
                        return new.reshape(like.shape).to(like)

                    stack.enter_context(tapped(memory, at_out(add)))
            log_probs = Pass(subject, []).logits(ids)[0].float().log_softmax(-1)
        changes.append(_surprisal(log_probs, ids) - before)
        kls.append(_kl(intact, log_probs))
        if progress:
            progress(3 + number, 2 + controls)
    return {"control_surprisal": _statistics(changes), "control_kl": _statistics(kls)}


def _streams(subject: Subject, out: Tensor | None) -> tuple[int, ...]:
    """Shape [1, P, M, d] of what a memory adds."""
    return () if out is None else (*out.shape[:2], -1, subject.config.hidden_size)


def _statistics(runs: list[np.ndarray]) -> np.ndarray:
    found = np.stack(runs)
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    return np.stack([found.mean(0), low, high]).astype(np.float32)
