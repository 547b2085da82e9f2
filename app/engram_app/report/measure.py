"""Running the parts of a report, one after the other; what is finished is kept."""

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from engram_app.console import say
from engram_app.opening import open_model
from engram_app.report.kept import Kept
from engram_app.report.parts.base import Inputs, KeyNumber, Part, Results, Section
from engram_app.report.spec import Spec
from engram_model.errors import CorpusError, UsageError
from engram_probes.provenance import Provenance, provenance
from engram_probes.results import Result

ONE_SEED = (
    "Each model was trained once: intervals are over documents and say nothing about other "
    "training seeds."
)


@dataclass(frozen=True)
class Stage:
    """A part that was measured. seconds: that it took; notes: what it left out, and why."""

    part: Part
    results: Results
    seconds: float
    notes: list[str] = field(default_factory=list)

    @cached_property
    def section(self) -> Section:
        return self.part.section(self.results)

    @cached_property
    def numbers(self) -> list[KeyNumber]:
        return self.part.key_numbers(self.results)


@dataclass(frozen=True)
class Measured:
    """All that a report tells.

    Attributes:
        stages: in the order of the page.
        provenance: of the models and the corpus.
        left_out: parts that could not be measured, and why.
        seconds: of each stage.
        facts: of the model, as `engram info` gives them.
    """

    stages: list[Stage]
    provenance: Provenance
    left_out: list[str]
    seconds: dict[str, float]
    facts: dict[str, Any]

    def results(self) -> Results:
        """All results, by the name of their folder."""
        return {name: found for stage in self.stages for name, found in stage.results.items()}

    def key_numbers(self) -> list[KeyNumber]:
        return [number for stage in self.stages for number in stage.numbers]

    def findings(self) -> list[str]:
        """One sentence a part, the strongest first."""
        ranked = sorted(self.stages, key=lambda stage: stage.part.rank)
        return [stage.section.finding for stage in ranked]

    def alerts(self) -> list[str]:
        """What a reader must know before believing the numbers, each once."""
        said = list(self.left_out)
        for stage in self.stages:
            said += [*stage.notes, *stage.part.alerts(stage.results)]
        if len(self.provenance.models) == 1:
            said.append("No twin was given: nothing here says what the memory changed.")
        return list(dict.fromkeys([*said, ONE_SEED]))


def measure(spec: Spec, command: str, work: Path) -> Measured:
    """Run every part; of the default ones those that the models and the corpus allow.

    Args:
        work: folder in which finished parts are kept, and found again by a second run.

    Raises:
        UsageError, CorpusError: a part that was asked for by name does not apply.
    """
    from engram_app.commands.info import describe as describe_checkpoint
    from engram_model.checkpoint import find_checkpoint

    facts = describe_checkpoint(find_checkpoint(spec.checkpoint))
    started = time.monotonic()
    inputs = _open(spec)
    came = _provenance(spec, inputs, command)
    seconds = {"opening": round(time.monotonic() - started, 2)}
    left_out: list[str] = []
    parts = _plan(spec, inputs, left_out)
    kept, stages = Kept(work, came), []
    for part in parts:
        try:
            stage = _stage(part, inputs, came, kept)
        except (UsageError, CorpusError) as error:
            _leave_out(part, str(error), spec, left_out, type(error))
            continue
        seconds[part.name] = stage.seconds
        if stage.results:
            stages.append(stage)
        else:
            left_out += stage.notes
    if not stages:
        raise UsageError(f"nothing could be measured: {' '.join(left_out)}")
    return Measured(stages, came, left_out, seconds, facts)


def _open(spec: Spec) -> Inputs:
    model, tokenizer = open_model(spec.checkpoint)
    twin = open_model(spec.twin)[0] if spec.twin else None
    documents, tokens = _corpus(spec, tokenizer)
    checkpoints = tuple(name for name in (spec.checkpoint, spec.twin) if name)
    return Inputs(model, twin, tokenizer, checkpoints, documents, tokens, spec.seed)


def _corpus(spec: Spec, tokenizer: Any) -> tuple[list[dict], int]:
    """Whole documents from the beginning, until they hold enough tokens; how many those are."""
    from engram_model.corpora import iter_documents
    from engram_probes.text import encode

    documents, tokens = [], 0
    for document in iter_documents(spec.data):
        if document["text"].strip():
            documents.append(document)
            tokens += len(encode(tokenizer, document["text"]))
        if tokens >= spec.tokens:
            break
    if not documents:
        raise CorpusError(f"{spec.data} is empty: there is no text to read")
    return documents, tokens


def _provenance(spec: Spec, inputs: Inputs, command: str) -> Provenance:
    from engram_model.corpora import describe
    from engram_probes.text import Documents

    texts = Documents(inputs.documents)
    for _ in texts:
        pass
    source = {**describe(spec.data), "documents": len(inputs.documents)}
    corpus = {**texts.description(), "tokens": inputs.tokens, "source": source}
    models = [model for model in (inputs.model, inputs.twin) if model is not None]
    came = provenance(models, inputs.tokenizer, corpus, {}, spec.seed)
    return replace(came, command=command)


def _plan(spec: Spec, inputs: Inputs, left_out: list[str]) -> list[Part]:
    """The parts that apply, each with its size on stderr before anything is run."""
    parts = []
    say(f"the corpus: {inputs.size}, from {spec.data}")
    for part in spec.parts:
        if reason := part.unfit(inputs):
            _leave_out(part, reason, spec, left_out)
            say(f"{part.name}: left out, {reason}")
            continue
        say(f"{part.name}: {part.size(inputs)}")
        parts.append(part)
    return parts


def _leave_out(
    part: Part,
    reason: str,
    spec: Spec,
    left_out: list[str],
    error: type[UsageError | CorpusError] = UsageError,
) -> None:
    """Of the default parts; one that was asked for by name must be measured."""
    if part.name in spec.asked:
        raise error(f"{part.name} cannot be measured: {reason}")
    left_out.append(f"Left out: {part.name}, {reason}.")


def _stage(part: Part, inputs: Inputs, came: Provenance, kept: Kept) -> Stage:
    """Measure a part, or open what an earlier run measured of it."""
    depends = part.depends(inputs)
    found = kept.find(part, depends)
    if found is not None:
        say(f"{part.name}: kept from the run that was stopped")
        return Stage(part, *found)
    started, own = time.monotonic(), replace(inputs, notes=[])
    results = {name: _with_origin(r, came) for name, r in part.measure(own).items()}
    stage = Stage(part, results, round(time.monotonic() - started, 2), own.notes)
    kept.keep(part, depends, stage.results, stage.seconds, stage.notes)
    return stage


def _with_origin(result: Result, came: Provenance) -> Result:
    """Say which command asked for it, and where its texts came from."""
    corpus = result.provenance.corpus
    if corpus.get("sha256") == came.corpus["sha256"]:
        corpus = {**corpus, "source": came.corpus["source"]}
    return result.with_provenance(command=came.command, corpus=corpus)
