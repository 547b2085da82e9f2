"""Alignments: saved ones of the pair and of its family, or one computed here."""

from typing import Any

from engram_app.explorer import cached
from engram_app.explorer.saved import Saved, all_saved, weights
from engram_app.explorer.state import Looking
from engram_probes.alignment import Alignment
from engram_probes.alignment_training import TrainingAlignment

DATA = "world:?seed=0&split=valid&tokens=20K"
DOCUMENTS = 200
OPTIONS: dict[str, Any] = {"positions": "entity"}
ROWS = 5  # that enter the soft alignment, where there are so many
COMPUTED = "computed"


def choices(looking: Looking) -> dict[str, Saved | None]:
    """What can be shown, by a short name: results of the pair first, else None: to be computed.

    Of a pair that has a saved result, or is part of one, also the other seeds and the training.
    """
    pair = weights(looking.path, looking.twin)
    known = all_saved(Alignment, TrainingAlignment)
    family = [one for one in known if set(pair) & set(one.weights)]
    own = [one for one in family if one.kind == Alignment.kind and one.weights == pair]
    own.sort(key=lambda one: -_measures(one))
    first: dict[str, Saved | None] = {one.name: one for one in own} or {COMPUTED: None}
    related = known if family else []
    return {**first, **{one.name: one for one in related if one not in own}}


def _measures(one: Saved) -> int:
    result = cached.saved(one.folder)
    return len(result.measures) if isinstance(result, Alignment) else 0


def label(name: str, one: Saved | None, looking: Looking) -> str:
    if one is None:
        return f"{looking.name} and {looking.twin_name}, computed here"
    if one.kind == TrainingAlignment.kind:
        result = cached.saved(one.folder)
        assert isinstance(result, TrainingAlignment)
        return f"over training: {result.model} and {result.model_b}"
    return f"{one.models[0]} and {one.models[1]} ({name})"


def compute(looking: Looking) -> Alignment:
    """Of the models looked at, on documents of the synthetic world."""
    assert looking.twin is not None
    key = ("alignment", DATA, DOCUMENTS, tuple(OPTIONS.items()))
    return cached.measured(key, (looking.path, looking.twin), _compare, slow=True)


def _compare(first: cached.Held, second: cached.Held, progress: Any) -> Alignment:
    from itertools import islice

    from engram_model.compression import tokenizer_sha256
    from engram_model.corpora import describe, iter_documents
    from engram_probes import cka

    one = tokenizer_sha256(first.tokenizer) == tokenizer_sha256(second.tokenizer)
    result = cka(
        first.model,
        second.model,
        first.tokenizer,
        list(islice(iter_documents(DATA), DOCUMENTS)),
        tokenizer_b=None if one else second.tokenizer,
        k=min(ROWS, second.model.config.num_hidden_layers),
        progress=progress,
        **OPTIONS,
    )
    corpus = {**result.provenance.corpus, "source": describe(DATA)}
    return result.with_provenance(corpus=corpus)


def reproduce(result: Alignment, looking: Looking) -> tuple[list[str], str]:
    """Command and Python of what `compute` gives."""
    options = ("--data", DATA, "--documents", str(DOCUMENTS), "--k", str(result.k))
    call = (
        f"ep.cka(model, twin, tokenizer, em.load_corpus({DATA!r}), "
        f"max_documents={DOCUMENTS}, k={result.k}, positions={result.positions!r})"
    )
    return looking.command("cka", *options, twin=True), looking.python(call, twin=True)
