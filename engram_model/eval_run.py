"""One evaluation: losses of a corpus, what its spans show, closed questions, benchmarks."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

from engram_model import world
from engram_model.eval_folder import EvalFolder
from engram_model.evaluate import DEFAULT_DATA, ScoredDocument, by_source, score_documents
from engram_model.scoring import Progress
from engram_model.span_scores import by_span
from engram_model.tasks import Item, answer_items, by_suite, fact_items, world_items

ALL_DATA = "world:?seed=0&split=valid&tokens=518664"  # an epoch of valid
ITEMS = 50
Stage = Callable[[str], AbstractContextManager[Progress | None]]


@dataclass(frozen=True)
class EvalOptions:
    """What is evaluated.

    Attributes:
        data: a corpus for losses and spans; None: none.
        suites: of the world of `data` where that is one, else of seed 0.
        facts: a file of facts.
        items: of each suite and of the facts, drawn by seed; None: all.
        lm_eval: tasks of lm-evaluation-harness, which has to be installed.
        batch: rows of the context's length at a time; more where they are short.
        seed: of samples, options of facts and bootstraps.
    """

    data: str | None = None
    suites: tuple[str, ...] = ()
    facts: str | None = None
    items: int | None = ITEMS
    lm_eval: tuple[str, ...] = ()
    batch: int = 8
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan(options: EvalOptions, everything: bool = False) -> EvalOptions:
    """What nothing named stands for: the world's valid split and suites.

    everything: all of them and every item, beside what is named.
    """
    if everything:
        data = options.data or ALL_DATA
        return replace(options, data=data, suites=options.suites or ("all",), items=None)
    if options.data or options.suites or options.facts or options.lm_eval:
        return options
    return replace(options, data=DEFAULT_DATA, suites=("all",))


def task_items(options: EvalOptions) -> list[Item]:
    """The closed questions that are asked for. Raises UsageError, CorpusError."""
    items = []
    if options.suites:
        source = _world(options.data)
        items += world_items(source, options.suites, options.items, options.seed)
    if options.facts:
        items += fact_items(options.facts, options.items, options.seed)
    return items


def _world(data: str | None) -> world.World:
    from engram_model.corpora import parse

    specs = [part.spec for part in parse(data)] if data else []
    found = [spec for spec in specs if spec.startswith("world:")]
    return world.parse_spec(found[0] if found else "world:").world()


def run_evaluation(
    model,
    tokenizer,
    options: EvalOptions,
    stage: Stage = lambda name: nullcontext(),
    folder: EvalFolder | None = None,
    items: list[Item] | None = None,
) -> dict[str, Any]:
    """The numbers, fit for JSON.

    Args:
        model: a causal model in evaluation mode.
        stage: called with the name of each part; its context gives the progress of it.
        items: of `task_items`, where they were made already.
        folder: where documents, answers and numbers are written as soon as they are there.

    Returns:
        `data`, `sources`, `spans`, `tasks` and `lm_eval`, each empty where nothing was asked for.
    """
    if items is None:  # first: a mistake in what is asked for costs no time
        items = task_items(options)
    documents = _documents(model, tokenizer, options, stage)
    if folder:
        folder.keep_documents(documents)
    metrics: dict[str, Any] = {
        "data": options.data,
        "sources": _plain(by_source(documents, options.seed)) if documents else {},
        "spans": _plain(by_span(documents, options.seed)) if documents else {},
    }
    answers = []
    if items:
        with stage("answering") as update:
            answers = answer_items(model, tokenizer, items, batch=options.batch, progress=update)
    if folder:
        folder.keep_answers(answers)
    metrics["tasks"] = _plain(by_suite(answers, options.seed))
    metrics["lm_eval"] = {}
    if options.lm_eval:
        from engram_model.lm_eval import run_tasks

        with stage("lm-eval"):
            metrics["lm_eval"] = run_tasks(
                model, tokenizer, options.lm_eval, options.items, options.batch
            )
    if folder:
        folder.finish(metrics)
    return metrics


def _documents(model, tokenizer, options: EvalOptions, stage: Stage) -> list[ScoredDocument]:
    if options.data is None:
        return []
    with stage("evaluating") as update:
        return score_documents(model, tokenizer, options.data, batch=options.batch, progress=update)


def _plain(tree: Any) -> Any:
    """Dataclasses in nested dicts as dicts."""
    if isinstance(tree, dict):
        return {name: _plain(value) for name, value in tree.items()}
    return tree.to_dict()
