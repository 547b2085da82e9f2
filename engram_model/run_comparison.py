"""Two models compared by the valid loss at the end of their training, over seeds.

For runs whose weights were not kept: the training log is enough. With no texts to draw, the spread
between seeds is all there is, so each side needs two seeds at least. The 95% interval is Welch's
(unequal variances); a difference is decided if it leaves out zero.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engram_model.comparison import Difference
from engram_model.errors import CheckpointError, UsageError

LOG = "training_log.json"
SAME = ("preset", "overrides")  # of the seeds of one side
EQUAL = ("tokens", "context", "batch", "accumulate", "valid")  # options of both sides


def is_run(folder: str | Path) -> bool:
    """Whether a folder has the log of a finished training."""
    return (Path(folder) / LOG).is_file()


def compare_runs(first: Sequence[str | Path], second: Sequence[str | Path]) -> Difference:
    """The valid loss of the first side minus the second's.

    Args:
        first, second: folders with training_log.json, one a seed of the model.

    Raises:
        CheckpointError: a log is damaged or has no valid loss at its end.
        UsageError: one seed on a side, a seed twice, or trainings of other length or texts.
    """
    from scipy.stats import ttest_ind

    sides = [[_read(folder) for folder in folders] for folders in (first, second)]
    for folders, logs in zip((first, second), sides, strict=True):
        _check_side(folders, logs)
    _check_equal([*first, *second], [log for logs in sides for log in logs])
    losses = [[_final_loss(log) for log in logs] for logs in sides]
    first_mean, second_mean = (float(np.mean(of_side)) for of_side in losses)
    interval = ttest_ind(*losses, equal_var=False).confidence_interval(0.95)
    return Difference(
        what="loss, valid at the end of training",
        first=first_mean,
        second=second_mean,
        difference=first_mean - second_mean,
        low=float(interval.low),
        high=float(interval.high),
        seeds_first=losses[0],
        seeds_second=losses[1],
        units=sum(map(len, losses)),
    )


def _read(folder: str | Path) -> dict[str, Any]:
    try:
        log = json.loads((Path(folder) / LOG).read_text(encoding="utf-8"))
        _final_loss(log)
        log["options"]["seed"]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"{folder} has no {LOG} with a valid loss at its end; train with --valid ({error!r})"
        ) from None
    return log


def _final_loss(log: dict[str, Any]) -> float:
    [loss] = [
        e["eval_loss"] for e in log["history"] if "eval_loss" in e and e["step"] == log["step"]
    ]
    return loss


def _check_side(folders: Sequence[str | Path], logs: list[dict[str, Any]]) -> None:
    seeds = [log["options"]["seed"] for log in logs]
    if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
        raise UsageError(
            f"{folders[0]}: two seeds or more are needed on each side, each once; given are {seeds}"
        )
    for folder, log in zip(folders, logs, strict=True):
        for name in SAME:
            if log[name] != logs[0][name]:
                raise UsageError(
                    f"{folder} has {name} {log[name]}, {folders[0]} has {logs[0][name]}: "
                    "they are no seeds of one model"
                )


def _check_equal(folders: Sequence[str | Path], logs: list[dict[str, Any]]) -> None:
    for folder, log in zip(folders, logs, strict=True):
        for name in EQUAL:
            given, other = log["options"][name], logs[0]["options"][name]
            if given != other:
                raise UsageError(
                    f"{folder} was trained with {name} {given}, {folders[0]} with {other}"
                )
