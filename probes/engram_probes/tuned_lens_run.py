"""Training a tuned lens: one forward pass of the model a batch, for all depths."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram_model.errors import CorpusError, EngramError, UsageError
from engram_probes.bootstrap import divide, ratio_interval
from engram_probes.capture import Subject, batches
from engram_probes.lens import METRICS
from engram_probes.lens_measure import check_head, chunk_size
from engram_probes.lens_run import LensRun, read_documents
from engram_probes.text import Documents, encode

LEFT_OUT = 10  # one document in so many
LEAST = 4  # distinct training tokens, times the width
MOST = float(np.finfo(np.float16).max)
PLACES = [list(METRICS).index("kl"), list(METRICS).index("log_prob")]


class Translators(nn.Module):
    """h -> h + weight h + bias at each depth; the last depth, which has none, stays as it is."""

    def __init__(self, depths: int, width: int) -> None:
        super().__init__()
        self.weight = nn.ParameterList(torch.zeros(width, width) for _ in range(depths))
        self.bias = nn.ParameterList(torch.zeros(width) for _ in range(depths))

    @classmethod
    def of(cls, weight: np.ndarray, bias: np.ndarray) -> "Translators":
        module = cls(*bias.shape)
        with torch.no_grad():
            for depth in range(len(bias)):
                module.weight[depth].copy_(torch.tensor(weight[depth]))
                module.bias[depth].copy_(torch.tensor(bias[depth]))
        return module

    def forward(self, residual: Tensor, depth: int) -> Tensor:
        """Residual [..., d] -> as the final norm would read it at the end, [..., d]."""
        if depth >= len(self.bias):
            return residual
        hidden = residual.to(self.bias[depth].dtype)
        hidden = hidden + F.linear(hidden, self.weight[depth], self.bias[depth])
        return hidden.to(residual.dtype)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """weight [D-1, d, d] float16, bias [D-1, d] float32.

        Raises:
            EngramError: training diverged.
        """
        weight = torch.stack(list(self.weight)).detach().cpu().numpy()
        bias = torch.stack(list(self.bias)).detach().cpu().numpy()
        if not (np.isfinite(bias).all() and np.abs(weight).max() < MOST):
            raise EngramError("training the tuned lens diverged; use a smaller learning rate")
        return weight.astype(np.float16), bias


@dataclass(frozen=True)
class Options:
    """See `tune_lens`."""

    tokens: int
    batch_tokens: int
    held_out_tokens: int
    lr: float
    chunk_tokens: int | None
    seed: int


@dataclass(frozen=True, eq=False)
class TunedRun:
    """Translators, and of plain and tuned lens on n documents left out: sums [n, 2, D] of KL and
    cross-entropy, counts [n, 2, 1]."""

    weight: np.ndarray
    bias: np.ndarray
    tokens: int
    corpus: dict[str, Any]
    sums: tuple[np.ndarray, np.ndarray]
    counts: np.ndarray

    @property
    def held_out_tokens(self) -> int:
        return int(self.counts[:, 0].sum())

    def curves(self, seed: int) -> dict[str, np.ndarray]:
        """mean, low, high, each [2, 2, D]."""
        intervals = [ratio_interval(sums, self.counts, seed) for sums in self.sums]
        return {
            "mean": np.stack([divide(sums.sum(0), self.counts.sum(0)) for sums in self.sums]),
            "low": np.stack([low for low, _ in intervals]),
            "high": np.stack([high for _, high in intervals]),
        }


def train(
    subject: Subject,
    tokenizer,
    texts,
    options: Options,
    progress: Callable[[int, int | None], None] | None,
) -> TunedRun:
    """Train on most documents, then measure on those left out."""
    corpus = Corpus(subject, tokenizer, texts, options)
    trainer = Trainer(subject, options)
    for batch in batches(corpus, lambda one: len(one.ids), options.batch_tokens):
        trainer.step(batch)
        if progress:
            progress(min(trainer.tokens, options.tokens), options.tokens)
        if trainer.tokens >= options.tokens:
            break
    corpus.check()
    weight, bias = trainer.translators.arrays()
    saved = Translators.of(weight, bias).to(subject.model.device)  # as rounded
    plain, tuned = (corpus.measure(translate) for translate in (None, saved))
    return TunedRun(
        weight=weight,
        bias=bias,
        tokens=trainer.tokens,
        corpus=corpus.documents.description(),
        sums=(_sums(plain), _sums(tuned)),
        counts=tuned.counts[:, PLACES, None],
    )


def _sums(run: LensRun) -> np.ndarray:
    return np.array([1, -1])[:, None] * run.sums[:, PLACES]


@dataclass(frozen=True, eq=False)
class Document:
    """Ids of a document, and the positions of them that count."""

    ids: list[int]
    usual: np.ndarray


class Corpus:
    """Documents to train on, pass after pass; of the others some are kept in `left_out`.

    A text's checksum decides, so that a text told twice is never on both sides.
    """

    def __init__(self, subject: Subject, tokenizer, texts: Any, options: Options) -> None:
        self._subject, self._tokenizer = subject, tokenizer
        self._texts, self._options = texts, options
        self.documents = Documents(texts)  # the first pass
        if self.documents.single:
            raise UsageError("a lens is tuned on many texts; give a list of str or a Dataset")
        self.left_out: list[str] = []
        self._left_out_tokens = self._tokens = 0

    def __iter__(self) -> Iterator[Document]:
        for document in self.documents:
            if not self._is_left_out(document["text"]):
                one = self._document(document["text"])
                self._tokens += len(one.usual)
                yield one
            elif self._left_out_tokens < self._options.held_out_tokens:
                self.left_out.append(document["text"])
                self._left_out_tokens += len(self._document(document["text"]).usual)
        self.check()
        given = True
        while given:  # an iterator that is used up gives no more
            given = False
            for document in Documents(self._texts):
                if not self._is_left_out(document["text"]):
                    given = True
                    yield self._document(document["text"])

    def check(self) -> None:
        """Raises CorpusError: too little text to train on, or to measure with."""
        least = LEAST * self._subject.config.hidden_size
        if self._tokens < min(least, self._options.tokens) or len(self.left_out) < 2:
            raise CorpusError(
                f"too little text to tune a lens: {self._tokens:,} tokens to train on and "
                f"{len(self.left_out)} documents left out to measure; {least:,} tokens and 2 "
                "documents are the least"
            )

    def measure(self, translate: Translators | None) -> LensRun:
        """The lens of the documents left out."""
        documents, chunk = Documents(self.left_out), self._options.chunk_tokens
        return read_documents(
            self._subject, self._tokenizer, documents, chunk_tokens=chunk, translate=translate
        )

    def _is_left_out(self, text: str) -> bool:
        content = f"{self._options.seed} {text}".encode("utf-8", "surrogatepass")
        return int(hashlib.sha256(content).hexdigest(), 16) % LEFT_OUT == 0

    def _document(self, text: str) -> Document:
        ids = encode(self._tokenizer, text)[: self._subject.context]
        self._subject.check_vocabulary(ids)
        return Document(ids, np.flatnonzero(~self._subject.special(self._tokenizer, ids)))


class Trainer:
    """Adam on the translators; the model stays as it is."""

    def __init__(self, subject: Subject, options: Options) -> None:
        config, device = subject.config, subject.model.device
        self._subject, self._options = subject, options
        self.translators = Translators(len(subject.layers), config.hidden_size).to(device)
        self._chunk = options.chunk_tokens or chunk_size(config.vocab_size, device)
        self._optimizer: torch.optim.Optimizer | None = None
        self.tokens = 0

    def step(self, batch: list[Document]) -> None:
        """One forward pass of the model, and one step of the translators of all depths."""
        residuals = self._subject.residuals([one.ids for one in batch])
        if self._optimizer is None:
            check_head(self._subject, residuals)
        row = np.repeat(np.arange(len(batch)), [len(one.usual) for one in batch])
        column = np.concatenate([one.usual for one in batch])
        if not len(row):
            return
        depths = [depth[row, column] for depth in residuals.depths[:-1]]
        optimizer = self._optimizer = self._optimizer or self._adam(depths)
        optimizer.zero_grad()
        for start in range(0, len(row), self._chunk):
            these = slice(start, start + self._chunk)
            self._backward([depth[these] for depth in depths],
                           residuals.last_hidden[row[these], column[these]], len(row))  # fmt: skip
        left = max(0.0, 1 - self.tokens / self._options.tokens)
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * left
        optimizer.step()
        self.tokens += len(row)

    def _backward(self, depths: list[Tensor], last_hidden: Tensor, tokens: int) -> None:
        subject = self._subject
        with torch.no_grad():
            final = subject.head(last_hidden).float().softmax(-1)
        for index, depth in enumerate(depths):
            logits = subject.head(subject.norm(self.translators(depth, index)))
            # What the gradient of the mean of KL(final || layer) is at the logits.
            gradient = (logits.detach().float().softmax(-1) - final) / tokens
            own = [self.translators.weight[index], self.translators.bias[index]]
            logits.backward(gradient.to(logits.dtype), inputs=own)

    def _adam(self, depths: list[Tensor]) -> torch.optim.Optimizer:
        """A bias is as large as the residuals that it is added to, so its steps are too."""
        lr = self._options.lr
        groups = [{"params": list(self.translators.weight), "full_lr": lr}] + [
            {"params": [bias], "full_lr": lr * depth.float().square().mean().sqrt().item()}
            for bias, depth in zip(self.translators.bias, depths, strict=True)
        ]
        return torch.optim.Adam(groups, lr=lr)
