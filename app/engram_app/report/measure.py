"""What a report measures: gates of a few texts, lens and alignment over a corpus."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from engram_app.console import progress
from engram_app.opening import open_model
from engram_model.errors import UsageError
from engram_probes.alignment import Alignment
from engram_probes.gate_profiles import GateProfile
from engram_probes.gates import GateMap
from engram_probes.lens import LogitLens
from engram_probes.lens_difference import LensDifference
from engram_probes.results import Result

DEFAULT_DATA = "world:?seed=0&split=valid&tokens=40K"
CHARACTERS = 4  # a token: how much of a corpus is looked at before it is tokenised
PERMUTATIONS, LIKE = 100, 5  # of the null; rows that enter the soft alignment


@dataclass(frozen=True)
class Spec:
    """What was asked for. tokens: most tokens of the corpus to read."""

    checkpoint: str
    twin: str | None
    data: str
    tokens: int
    seed: int


@dataclass
class Measured:
    """Results by name, and what became of the rest.

    Attributes:
        gates: name of the text -> its gate map.
        gate_profile: over the corpus; None without a memory.
        lens, twin_lens, difference, alignment: over the corpus; None without a twin.
        left_out: what could not be measured, and why.
        seconds: of each stage.
        facts: of the model, as `engram info` gives them.
    """

    gates: dict[str, GateMap] = field(default_factory=dict)
    gate_profile: GateProfile | None = None
    lens: LogitLens | None = None
    twin_lens: LogitLens | None = None
    difference: LensDifference | None = None
    alignment: Alignment | None = None
    left_out: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def results(self) -> dict[str, Result]:
        """All results, by the name of their folder."""
        named: dict[str, Result | None] = {
            **{f"gates-{index}": gates for index, gates in enumerate(self.gates.values(), 1)},
            "gate-profile": self.gate_profile,
            "lens": self.lens,
            "lens-twin": self.twin_lens,
            "lens-difference": self.difference,
            "cka": self.alignment,
        }
        return {name: result for name, result in named.items() if result is not None}


def measure(spec: Spec, command: str) -> Measured:
    """Run every probe that the checkpoints allow."""
    from engram_app.commands.info import describe as describe_checkpoint
    from engram_model.checkpoint import find_checkpoint
    from engram_model.corpora import describe

    found = Measured(facts=describe_checkpoint(find_checkpoint(spec.checkpoint)))
    with _timed(found, "opening"):
        documents = _corpus(spec)
        model, tokenizer = open_model(spec.checkpoint)
        twin = open_model(spec.twin)[0] if spec.twin else None
    with _timed(found, "gates"):
        _gates(found, spec, model, tokenizer, documents)
    with _timed(found, "lens"):
        _lens(found, spec, model, twin, tokenizer, documents)
    if twin is not None:
        with _timed(found, "alignment"):
            found.alignment = _alignment(spec, model, twin, tokenizer, documents)
    source = {**describe(spec.data), "documents": len(documents)}
    _with_origin(found, command, source)
    return found


def _corpus(spec: Spec) -> list[dict]:
    """Whole documents from the beginning, until they hold enough characters."""
    from engram_model.corpora import iter_documents

    documents, room = [], CHARACTERS * spec.tokens
    for document in iter_documents(spec.data):
        if room <= 0:
            break
        documents.append(document)
        room -= len(document["text"])
    return documents


def _gates(found: Measured, spec: Spec, model, tokenizer, documents: list[dict]) -> None:
    from engram_app.examples import examples
    from engram_model.memories import memories_of
    from engram_probes import gate_map, gate_profile

    if not memories_of(model):
        found.left_out.append("Gates: the model has no memory.")
        return
    with progress("gates", "texts") as update:
        for done, (name, text) in enumerate(examples().items(), 1):
            try:
                found.gates[name] = gate_map(model, tokenizer, text)
            except UsageError as error:  # the context of a small model
                found.left_out.append(f"Gates of the text “{name}”: {error}.")
            update(done, len(examples()))
    with progress("gates of the corpus", "documents") as update:
        found.gate_profile = gate_profile(
            model, tokenizer, documents, max_tokens=spec.tokens, seed=spec.seed, progress=update
        )


def _lens(found: Measured, spec: Spec, model, twin, tokenizer, documents: list[dict]) -> None:
    from engram_probes import logit_lens

    def run(one: Any, what: str) -> LogitLens:
        with progress(f"lens of {what}", "documents") as update:
            return logit_lens(
                one,
                tokenizer,
                documents,
                max_tokens=spec.tokens,
                seed=spec.seed,
                progress=update,
            )

    found.lens = run(model, "the model")
    if twin is None:
        return
    found.twin_lens = run(twin, "its twin")
    if found.twin_lens.depths != found.lens.depths:
        found.left_out.append("Difference of the lenses: the models have other numbers of blocks.")
        return
    found.difference = found.lens.minus(found.twin_lens, spec.seed)


def _alignment(spec: Spec, model, twin, tokenizer, documents: list[dict]) -> Alignment:
    from engram_probes import cka

    with progress("alignment", "documents") as update:
        return cka(
            model,
            twin,
            tokenizer,
            documents,
            positions="entity" if documents[0].get("spans") else "sampled",
            k=min(LIKE, twin.config.num_hidden_layers),
            permutations=PERMUTATIONS,
            seed=spec.seed,
            progress=update,
        )


def _with_origin(found: Measured, command: str, source: dict) -> None:
    """Say in every result which command asked for it, and where its texts came from."""
    found.gates = {
        name: gates.with_provenance(command=command) for name, gates in found.gates.items()
    }
    for name in ("gate_profile", "lens", "twin_lens", "difference", "alignment"):
        result = getattr(found, name)
        if result is not None:
            corpus = {**result.provenance.corpus, "source": source}
            setattr(found, name, result.with_provenance(command=command, corpus=corpus))


@contextmanager
def _timed(found: Measured, stage: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    found.seconds[stage] = round(time.monotonic() - started, 2)
