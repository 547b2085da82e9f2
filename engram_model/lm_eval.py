"""Benchmarks of lm-evaluation-harness (the extra `lm-eval`) on a causal model.

Log-likelihoods come from `engram_model.scoring`, as for our own suites.
"""

import os
from pathlib import Path
from typing import Any

from engram_model.errors import CorpusError, UsageError
from engram_model.intervals import DRAWS
from engram_model.scoring import opening_id, score_rows

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager
except ImportError:
    raise UsageError(
        "lm-eval is not installed; run `pip install 'engram-workbench[lm-eval]'`"
    ) from None

MOST_NEW = 256  # tokens of an answer, where a task does not say


def run_tasks(
    model, tokenizer, tasks: tuple[str, ...], limit: int | None = None, batch: int = 8
) -> dict[str, Any]:
    """Task -> its metrics, standard errors and number of items.

    Args:
        tasks: names that lm-eval knows, or paths of YAML files named as their task.
        limit: items of each task (None: all).
        batch: rows of the context's length at a time.

    Raises:
        UsageError: no such task.
        CorpusError: a task's data cannot be had, such as without a network.
    """
    files = [Path(task) for task in tasks if task.endswith(".yaml")]
    manager = TaskManager(
        include_path=[str(file.parent) for file in files] or None,
        include_defaults=len(files) < len(tasks),  # thousands of files to read
    )
    names = [Path(task).stem if task.endswith(".yaml") else task for task in tasks]
    known = manager.match_tasks(names)
    if missing := [name for name in names if name not in known]:
        raise UsageError(f"lm-eval has no task {missing[0]!r}; `lm-eval ls tasks` names them")
    try:
        found = simple_evaluate(
            EngramLM(model, tokenizer, batch),
            tasks=list(names),
            task_manager=manager,
            limit=limit,
            log_samples=False,
            bootstrap_iters=DRAWS,
            confirm_run_unsafe_code=os.environ.get("HF_ALLOW_CODE_EVAL") == "1",
        )
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorpusError(f"lm-eval {','.join(names)}: {first}; is the network needed?") from error
    return {
        name: {
            **{key: value for key, value in row.items() if isinstance(value, int | float)},
            "items": found["n-samples"].get(name, {}).get("effective"),
        }
        for name, row in found["results"].items()
    }


class EngramLM(TemplateLM):
    """A causal model as lm-eval sees one; every text begins with `<bos>`, as in training."""

    def __init__(self, model, tokenizer, batch: int = 8):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.context = model.config.max_position_embeddings
        self.batch = batch * self.context

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        return opening_id(self.tokenizer)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs):
        return self.tokenizer(string, add_special_tokens=False)["input_ids"]

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs):
        """(summed log-likelihood, whether greedy decoding writes it) of each continuation."""
        rows = (self._row([*context, *rest]) for _, context, rest in requests)
        scores = score_rows(self.model, rows, self.batch)
        ends = [len(rest) for _, _, rest in requests]
        return [
            (float(one.log_probs[-end:].sum()), bool(one.top[-end:].all()))
            for one, end in zip(scores, ends, strict=True)
        ]

    def _row(self, ids: list[int]) -> list[int]:
        opened = ids if ids[0] == self.prefix_token_id else [self.prefix_token_id, *ids]
        return opened[-self.context - 1 :]

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False):
        """Log-likelihood of whole texts, in windows without overlap as in `evaluate`."""
        return [self._rolling(request.args[0]) for request in requests]

    def _rolling(self, text: str) -> float:
        ids = [self.prefix_token_id, *self.tok_encode(text)]
        starts = range(0, len(ids) - 1, self.context)
        rows = (ids[start : start + self.context + 1] for start in starts)
        return float(sum(s.log_probs.sum() for s in score_rows(self.model, rows, self.batch)))

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        return [self._generate(*request.args) for request in requests]

    def _generate(self, prompt: str, arguments: dict[str, Any]) -> str:
        """Greedy, one text at a time: padding would reach the memory."""
        import torch

        most = arguments.get("max_gen_toks", MOST_NEW)
        most = min(most, self.context // 2)
        ids = self._row(self.tok_encode(prompt) or [self.prefix_token_id])[most - self.context :]
        given = torch.tensor([ids], device=self.model.device)
        with torch.inference_mode():
            written = self.model.generate(given, max_new_tokens=most, do_sample=False)
        text = self.tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True)
        stops = arguments.get("until") or []
        for stop in [stops] if isinstance(stops, str) else stops:
            text = text.split(stop)[0] if stop else text
        return text
