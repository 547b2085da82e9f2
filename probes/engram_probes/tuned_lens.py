"""The tuned lens: a trained affine map at each depth, so that it is read in its own basis."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engram_model.errors import CheckpointError, UsageError
from engram_probes.provenance import provenance
from engram_probes.results import Result, read_result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects
    import torch

    from engram_probes.tuned_lens_run import Translators

LENSES = ("plain", "tuned")
METRICS = {
    "kl": "KL(final || layer)",
    "cross_entropy": "Cross-entropy of the true next token",
}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TunedLens(Result):
    """Translators of the D - 1 depths before the last: h + weight h + bias, h of width d.

    The curves are of documents that training left out; K = 2 metrics, see `METRICS`, in nats.

    Attributes:
        model: name of the model that they belong to; its checksum is in the provenance.
        weight: [D-1, d, d] float16. bias: [D-1, d] float32. Both zero: the plain lens.
        tokens: tokens trained on, each as often as it was read.
        held_out, held_out_tokens: documents left out of training that were measured; their tokens.
        mean: of the plain and of the tuned lens, [2, K, D].
        low, high: 95% interval by bootstrap over documents, [2, K, D].
    """

    kind: ClassVar[str] = "tuned-lens"
    files: ClassVar[tuple[str, str]] = ("tuned_lens.json", "tuned_lens.safetensors")
    axes: ClassVar[dict[str, tuple[str, ...]]] = {
        "weight": ("depth", "output", "input"),
        "bias": ("depth", "output"),
        "mean": ("lens", "metric", "depth"),
        "low": ("lens", "metric", "depth"),
        "high": ("lens", "metric", "depth"),
    }
    units: ClassVar[dict[str, str]] = {"mean": "nats", "low": "nats", "high": "nats"}

    model: str
    memory_layers: tuple[int, ...]
    tokens: int
    held_out: int
    held_out_tokens: int
    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def load(cls, path: str | Path) -> "TunedLens":
        """What `save` wrote into a folder, as a rule that of the checkpoint.

        Raises:
            CheckpointError: there is none, or it is damaged or something else.
        """
        folder = Path(path)
        if not (folder / cls.files[0]).is_file():
            raise CheckpointError(
                f"no tuned lens in {folder}: it has no {cls.files[0]}; train one with "
                "`engram tune-lens CKPT --data SPEC`"
            )
        found = read_result(folder, cls.files)
        if not isinstance(found, cls):
            raise CheckpointError(f"{folder / cls.files[0]} holds a {found.kind!r}, no tuned lens")
        return found

    @property
    def sha256(self) -> str:
        """Checksum of the translators."""
        digest = hashlib.sha256()
        for array in (self.weight, self.bias):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def belongs_to(self, model) -> bool:
        """Whether it was trained for a model of these weights."""
        from engram_probes.capture import Subject
        from engram_probes.provenance import weights_sha256

        weights = weights_sha256(Subject.of(model).model)
        return weights == self.provenance.models[0]["weights_sha256"]

    def check(self, model) -> None:
        """Raises UsageError: it was trained for another model, or for other weights of this one."""
        if not self.belongs_to(model):
            from engram_probes.capture import Subject

            raise UsageError(
                f"this tuned lens is that of other weights ({self.model}), not of "
                f"{Subject.of(model).name}; train one with tune_lens or `engram tune-lens`"
            )

    def module(self, device: "str | torch.device" = "cpu") -> "Translators":
        """The translators as a torch module, called with a residual [..., d] and its depth.

        It is what TransformerLens's `logit_lens` takes as `lens`.
        """
        from engram_probes.tuned_lens_run import Translators

        return Translators.of(self.weight, self.bias).to(device)

    def facts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "tokens": self.tokens,
            "held_out": self.held_out,
            "sha256": self.sha256[:12],
        }

    def summary(self) -> str:
        plain, tuned = self.mean[:, 0, :-1]
        middle = len(plain) // 2
        blocks = "block" if middle == 1 else "blocks"
        return (
            f"Tuned on {self.tokens:,} tokens, KL(final || layer) of {self.model} is "
            f"{tuned[middle]:.2f} nats after {middle} {blocks} where the plain lens has "
            f"{plain[middle]:.2f}, and {tuned.mean():.2f} instead of {plain.mean():.2f} over all "
            f"depths but the last, on {self.held_out_tokens:,} tokens of {self.held_out:,} "
            "documents left out."
        )

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each lens, metric and depth."""
        import pandas as pd

        lens, metric, depth = (index.ravel() for index in np.indices(self.mean.shape))
        return pd.DataFrame(
            {
                "lens": np.array(LENSES, dtype=object)[lens],
                "metric": np.array(list(METRICS), dtype=object)[metric],
                "depth": depth,
                "mean": self.mean.ravel(),
                "low": self.low.ravel(),
                "high": self.high.ravel(),
            }
        )

    def curve(self, lens: str, what: str = "kl") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, low and high of one lens on the documents left out, each [D]."""
        if lens not in LENSES or what not in METRICS:
            raise UsageError(
                f"no {what!r} of {lens!r}: use {' or '.join(METRICS)} of {' or '.join(LENSES)}"
            )
        place = LENSES.index(lens), list(METRICS).index(what)
        return self.mean[place], self.low[place], self.high[place]

    def figure(self, what: str = "kl") -> "plotly.graph_objects.Figure":
        """Plain and tuned lens by depth, on the documents left out."""
        from engram_probes.figures.tuned_lens import tuned_figure

        return tuned_figure(self, what)


def tune_lens(
    model,
    tokenizer,
    texts,
    *,
    tokens: int = 200_000,
    batch_tokens: int = 1024,
    held_out_tokens: int = 20_000,
    lr: float = 1e-3,
    chunk_tokens: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> TunedLens:
    """Train the tuned lens of a model (Belrose et al. 2023, arXiv 2303.08112).

    Each depth's translator, at first the identity, is trained to lessen KL(final || layer), read
    through the model's own final norm and unembedding, which stay as they are. Every tenth
    document, by a checksum of its text, is left out of training and measured at the end.

    Args:
        model: an Engram model, another causal model of `transformers`, or a bridge.
        tokenizer: its tokenizer; texts are read as `<bos>` + text, cut to the context.
        texts: a list of str or a Dataset with a column `text`, in the order of training; shuffle
            it before if its kinds of text follow one another. Read again from the start until
            `tokens` are reached, if it can be.
        tokens: to train on.
        batch_tokens: in a step, padding included; at least one document.
        held_out_tokens: stop measuring after the left-out document that reaches so many.
        lr: of Adam, falling to zero along a straight line; a bias takes it times the size (root
            mean square) of the residual at its depth.
        chunk_tokens: tokens whose logits are held at a time; changes memory, not results.
        seed: of which documents are left out, and of the intervals.
        progress: called with (tokens done, tokens in all).

    Returns:
        A `TunedLens`; `save` it into the checkpoint's folder.

    Raises:
        UsageError: an option out of range.
        CorpusError: too little text.
        EngramError: the model's head does more than norm and unembedding, or training diverged.
    """
    from engram_probes.capture import Subject
    from engram_probes.tuned_lens_run import Options, train

    if min(tokens, batch_tokens, held_out_tokens) < 1 or not lr > 0:
        raise UsageError("tokens, batch_tokens, held_out_tokens and lr must be more than 0")
    subject = Subject.of(model)
    options = Options(tokens, batch_tokens, held_out_tokens, lr, chunk_tokens, seed)
    run = train(subject, tokenizer, texts, options, progress)
    settings = {
        "tokens": tokens,
        "batch_tokens": batch_tokens,
        "held_out_tokens": held_out_tokens,
        "lr": lr,
    }
    return TunedLens(
        provenance=provenance([subject.model], tokenizer, run.corpus, settings, seed),
        model=subject.name,
        memory_layers=subject.memory_layers,
        tokens=run.tokens,
        held_out=len(run.sums[0]),
        held_out_tokens=run.held_out_tokens,
        weight=run.weight,
        bias=run.bias,
        **run.curves(seed),
    )
