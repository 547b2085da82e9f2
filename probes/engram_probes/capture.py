"""Running a model for its probes: residuals at every depth, and all that its memories compute.

Texts are read as `<bos>` + text. Batches are padded to the right, where nothing before can see it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engram_model.errors import UsageError
from engram_model.memories import Memory, Tap, memories_of, text_config
from engram_probes.provenance import model_name
from engram_probes.text import encode

CPU_TOKENS, GPU_TOKENS = 4096, 65536  # most in a batch; on a GPU few leave it idle
GPU_NUMBERS = 2**30  # most in the residuals of a batch
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "norm_f")


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that is looked at: an Engram model, or another causal model of `transformers`.

    Attributes:
        model: the causal model itself.
        base: what runs before its head.
        layers: its blocks.
        collapse: residual of any depth -> [batch, positions, d], as the model's own head reads it.
        alone: a vector [.., d] that all streams were given, and nothing else -> the same.
        norm, head: final norm and unembedding.
        memories: its memories in the order of their layers; empty for a model without.
    """

    model: nn.Module
    base: nn.Module
    layers: list[nn.Module]
    collapse: Callable[[Tensor], Tensor]
    alone: Callable[[Tensor], Tensor]
    norm: nn.Module
    head: nn.Module
    memories: list[Memory]

    @classmethod
    def of(cls, model) -> "Subject":
        """From a model, or from a TransformerBridge of one.

        Raises:
            UsageError: not a causal language model, or one whose blocks or final norm are hidden.
        """
        model = getattr(model, "original_model", model)
        if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
            raise UsageError(
                f"{type(model).__name__} is not a causal language model of transformers; open one "
                "with engram_model.load or AutoModelForCausalLM"
            )
        base = model.base_model
        base = getattr(base, "language_model", getattr(base, "decoder", base))
        collapse, alone, norm = _end_of(base)
        return cls(
            model=model,
            base=base,
            layers=_blocks(base, text_config(model).num_hidden_layers),
            collapse=collapse,
            alone=alone,
            norm=norm,
            head=model.get_output_embeddings(),
            memories=list(memories_of(model).values()),
        )

    @property
    def name(self) -> str:
        return model_name(self.model)

    @property
    def memory_layers(self) -> tuple[int, ...]:
        return tuple(memory.layer_id for memory in self.memories)

    @property
    def context(self) -> int:
        """Most tokens it can read, `<bos>` included."""
        return int(self.config.max_position_embeddings)

    @property
    def config(self) -> Any:
        """Of the language model."""
        return text_config(self.model)

    @property
    def tokens_at_once(self) -> int:
        """Most tokens of a batch, padding included."""
        if self.model.device.type == "cpu":
            return CPU_TOKENS
        numbers = (len(self.layers) + 1) * self.config.hidden_size  # a token
        return max(CPU_TOKENS, min(GPU_TOKENS, GPU_NUMBERS // numbers))

    def encode(self, tokenizer, text: str) -> list[int]:
        """Ids of `<bos>` + text.

        Raises:
            UsageError: an empty text, or one longer than the context.
        """
        if not text.strip():
            raise UsageError("the text is empty; give at least a word")
        ids = encode(tokenizer, text)
        if len(ids) > self.context:
            raise UsageError(
                f"the text has {len(ids):,} tokens with <bos> and {self.name} reads "
                f"{self.context:,}; shorten it"
            )
        self.check_vocabulary(ids)
        return ids

    def check_vocabulary(self, ids: list[int]) -> None:
        vocabulary = self.config.vocab_size
        if max(ids) >= vocabulary:
            raise UsageError(
                f"token id {max(ids)} is outside the vocabulary of {self.name} ({vocabulary:,}); "
                "use the tokenizer it was trained with"
            )

    def special(self, tokenizer, ids: list[int]) -> np.ndarray:
        """Bool [positions]: special tokens and position 0, which statistics leave out."""
        special = np.isin(np.array(ids), tokenizer.all_special_ids)
        special[0] = True
        return special

    def logits(self, ids: list[int]) -> Tensor:
        """One text -> [positions, vocabulary]."""
        with self.quiet():
            return self.model(self.tensor([ids]), use_cache=False).logits[0]

    def run(self, batch: list[list[int]]) -> None:
        """A batch of texts, for what listens."""
        with self.quiet():
            self.model(self.tensor(batch), use_cache=False, logits_to_keep=1)

    def residuals(self, batch: list[list[int]]) -> "Residuals":
        """Run a batch and keep the collapsed residual of every depth."""
        depths: list[Tensor] = []
        last: list[Tensor] = []

        def before(_module, args, kwargs) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            depths.append(self.collapse(hidden))

        def after(_module, _args, output) -> None:
            depths.append(self.collapse(output[0] if isinstance(output, tuple) else output))

        with ExitStack() as hooks, self.quiet():
            hooks.enter_context(
                _removed(self.layers[0].register_forward_pre_hook(before, with_kwargs=True))
            )
            for layer in self.layers:
                hooks.enter_context(_removed(layer.register_forward_hook(after)))
            hooks.enter_context(
                _removed(self.base.register_forward_hook(lambda _m, _a, out: last.append(out[0])))
            )
            output = self.model(self.tensor(batch), use_cache=False, logits_to_keep=1)
        return Residuals(depths, last[-1], output.logits[:, -1])

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """No gradients, no dropout."""
        training = self.model.training
        if training:  # through a bridge a change of mode takes as long as a short text
            self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            if training:
                self.model.train()

    def tensor(self, batch: list[list[int]]) -> Tensor:
        """Texts of any lengths -> [batch, longest], padded with 0."""
        padded = np.zeros((len(batch), max(map(len, batch))), np.int64)
        for row, ids in zip(padded, batch, strict=True):
            row[: len(ids)] = ids
        return torch.from_numpy(padded).to(self.model.device)


@dataclass(frozen=True, eq=False)
class Residuals:
    """One batch of a model.

    depths: blocks + 1 tensors [batch, positions, d], embedding first, streams collapsed.
    last_hidden: after the final norm, as the model gave it to its head, [batch, positions, d].
    last_logits: the model's own logits at the last position of the batch, [batch, vocabulary].
    """

    depths: list[Tensor]
    last_hidden: Tensor
    last_logits: Tensor


class MemoryTrace:
    """While open, keeps what every memory computes in the next forward pass of one text.

    It listens beside whatever else is tapped: hooks of a TransformerBridge stay live, and what
    they return is what is kept.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._kept: dict[int, dict[str, Tensor]] = {m.layer_id: {} for m in subject.memories}
        self._hooks = ExitStack()

    def __enter__(self) -> "MemoryTrace":
        for memory in self._subject.memories:
            self._listen(memory)
        return self

    def __exit__(self, *_exception) -> None:
        self._hooks.close()

    def _listen(self, memory: Memory) -> None:
        kept = self._kept[memory.layer_id]

        def keep(name: str, tensor: Tensor) -> None:
            if name in ("slots", "value", "score", "gate", "out"):
                kept[name] = tensor

        def before(_module, args, kwargs) -> None:
            kept["hidden"] = args[0] if args else kwargs["hidden"]

        hook = memory.register_forward_pre_hook(before, with_kwargs=True)
        self._hooks.enter_context(_removed(hook))
        self._hooks.enter_context(heard(memory, keep))

    def arrays(self) -> dict[str, np.ndarray]:
        """Fields of a `GateMap`, stacked over layers."""
        layers = [self._layer(kept) for kept in self._kept.values()]
        return {name: np.stack([layer[name] for layer in layers]) for name in layers[0]}

    def _layer(self, kept: dict[str, Tensor]) -> dict[str, np.ndarray]:
        shape = *kept["gate"][0].shape, -1  # [p, M, d], however the model lays its streams out
        hidden, out = kept["hidden"][0].reshape(shape), kept["out"][0].reshape(shape)
        fields = {
            "scores": kept["score"][0].float(),
            "gate": kept["gate"][0].float(),
            "value_norm": kept["value"][0].float().norm(dim=-1),
            "added_norm": out.float().norm(dim=-1),
            "residual_norm": hidden.float().norm(dim=-1),
            "slots": kept["slots"][0],
        }
        return {name: tensor.cpu().numpy() for name, tensor in fields.items()}


def check_vocabularies(first: Subject, second: Subject) -> None:
    """Refuse two models whose positions do not correspond."""
    sizes = first.config.vocab_size, second.config.vocab_size
    checksums = {
        getattr(subject.model.config, "tokenizer_sha256", None) for subject in (first, second)
    } - {None}
    if sizes[0] != sizes[1] or len(checksums) > 1:
        raise UsageError(
            f"{first.name} and {second.name} have other vocabularies ({sizes[0]:,} and "
            f"{sizes[1]:,} tokens), so their positions do not correspond; compare models of "
            "one tokenizer, or in CKA give the other's as tokenizer_b"
        )


def text_ids(subject: Subject, tokenizer, text: str, whole: bool) -> list[int]:
    """Ids of a document, cut to the context; of one that must be whole, refused where longer."""
    if whole:
        return subject.encode(tokenizer, text)
    ids = encode(tokenizer, text)[: subject.context]
    subject.check_vocabulary(ids)
    return ids


def next_surprisal(log_probs: Tensor, ids: list[int]) -> np.ndarray:
    """-ln of the probability of each true next token, nats: [p, vocabulary] -> float32 [p], NaN at
    the last."""
    following = torch.tensor(ids[1:], device=log_probs.device)[:, None]
    found = np.full(len(ids), np.nan, dtype=np.float32)
    found[:-1] = -log_probs[:-1].gather(-1, following)[:, 0].cpu().numpy()
    return found


def batches(documents: Iterable, length: Callable, most: int) -> Iterator[list]:
    """Neighbouring documents, as many as fit into `most` tokens when padded; at least one."""
    batch: list = []
    longest = 0
    for document in documents:
        longest = max(longest, length(document))
        if batch and longest * (len(batch) + 1) > most:
            yield batch
            batch, longest = [], length(document)
        batch.append(document)
    if batch:
        yield batch


@contextmanager
def tapped(memory: Memory, wrap: Callable[[Tap | None], Tap]) -> Iterator[None]:
    """While open, `wrap(tap)` stands in each forward pass for the tap that the memory has then.

    It works through a TransformerBridge, which sets its tap anew in every pass, and nests.
    """
    outer: list[Tap | None] = []

    def before(module, _args) -> None:
        outer.append(module.tap)
        module.tap = wrap(module.tap)

    def after(module, *_arguments) -> None:
        module.tap = outer.pop()

    # Prepended: of several that are open, the last to come is the first to go.
    after_hook = memory.register_forward_hook(after, always_call=True, prepend=True)
    with _removed(memory.register_forward_pre_hook(before)), _removed(after_hook):
        yield


@contextmanager
def heard(memory: Memory, keep: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While open, `keep(name, tensor)` is told what the memory computes, as others left it."""

    def wrap(outer: Tap | None) -> Tap:
        def tap(name: str, tensor: Tensor) -> Tensor:
            tensor = tensor if outer is None else outer(name, tensor)
            keep(name, tensor)
            return tensor

        return tap

    with tapped(memory, wrap):
        yield


@contextmanager
def _removed(handle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _blocks(base: nn.Module, number: int) -> list[nn.Module]:
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return list(module)
    raise UsageError(
        f"{type(base).__name__} has no list of its {number} blocks, so its residuals cannot be read"
    )


def _end_of(base: nn.Module) -> tuple[Callable, Callable, nn.Module]:
    """How a model's end reads its residual: collapse, alone and norm of a `Subject`."""
    mixer = getattr(base, "hyper_connection_mixer", None)  # it norms as it collapses
    if mixer is not None:
        streams = base.config.hc_count
        return mixer, lambda vector: mixer(torch.cat([vector] * streams, -1)), nn.Identity()
    return getattr(base, "collapse", nn.Identity()), nn.Identity(), _final_norm(base)


def _final_norm(base: nn.Module) -> nn.Module:
    for name in FINAL_NORMS:
        if isinstance(getattr(base, name, None), nn.Module):
            return getattr(base, name)
    raise UsageError(
        f"{type(base).__name__} has no final norm under the names {', '.join(FINAL_NORMS)}"
    )
