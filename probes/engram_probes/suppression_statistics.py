"""What tasks keep: chance-corrected shares and changes of log-probability, with intervals.

Before and after are two measurements of the same items, so every draw of the bootstrap takes the
same people, phrases or documents for both.
"""

from typing import Any

import numpy as np

from engram_model.intervals import mean_interval, unseen_share
from engram_model.tasks import Item
from engram_probes.bootstrap import divide, interval
from engram_probes.suppression import AFTER, BEFORE


def measure(
    items: list[Item], credit: np.ndarray, log_prob: np.ndarray, seed: int
) -> dict[str, Any]:
    """Fields of a `Suppression`.

    Args:
        credit, log_prob: [runs, items]: before, after, and each control.
        seed: of the bootstrap.
    """
    tasks = tuple(dict.fromkeys(item.suite for item in items))
    places = np.array([tasks.index(item.suite) for item in items], dtype=np.int64)
    found = []
    for index in range(len(tasks)):
        of_task = np.flatnonzero(places == index)
        asked = [items[i] for i in of_task]
        found.append(_task(asked, credit[:, of_task], log_prob[:, of_task], seed))
    return {
        "tasks": tasks,
        "reasons": tuple(str(one.pop("reasons")) for one in found),
        # The task is the last axis: [conditions, tasks], [controls, tasks] or [tasks].
        **{name: np.stack([one[name] for one in found], -1) for name in found[0]},
        "item_task": places,
        "item_ids": tuple(item.id for item in items),
        "item_credit": credit[: AFTER + 1],
        "item_log_prob": log_prob[: AFTER + 1],
    }


def _task(items: list[Item], credit: np.ndarray, log_prob: np.ndarray, seed: int) -> dict:
    """The same of one task, without its axis."""
    names = [item.entity for item in items]
    _, owner = np.unique(names, return_inverse=True)
    entities = int(owner.max()) + 1
    chance = np.array([1 / len(item.options) for item in items])
    above, size = _by_entity(credit - chance, owner), np.bincount(owner)
    nats = _by_entity(log_prob, owner)
    accuracy = [mean_interval(one, names, seed) for one in credit[: AFTER + 1]]
    low, high = (np.array(ends) for ends in zip(*accuracy, strict=True))
    reason = _reason(credit[BEFORE].mean(), low[BEFORE], high[BEFORE], chance.mean(), entities)

    def statistic(weights: np.ndarray) -> np.ndarray:
        """[2, runs - 1]: share kept, and change of log-probability, against before."""
        kept, mean = above @ weights, (nats @ weights) / (size @ weights)
        # A draw of people of whom nothing was known before says nothing about what is kept.
        known = kept[BEFORE] if kept[BEFORE] > 0 and not reason else 0.0
        return np.stack([divide(kept[AFTER:], np.array(known)), mean[AFTER:] - mean[BEFORE]])

    retained, change = statistic(np.ones(entities, dtype=np.int64))
    lowest, highest = interval(statistic, entities, seed)
    if not reason and (credit[BEFORE] == credit[AFTER]).all():
        some = bool((log_prob[BEFORE] != log_prob[AFTER]).any())
        spread = unseen_share(entities) / (credit[BEFORE] - chance).mean() if some else 0.0
        lowest[0, 0] = 1 - spread
        highest[0, 0] = 1 + spread * (credit[BEFORE] < 1).any()
    return {
        "reasons": reason,
        "chance": chance.mean(),
        "accuracy": credit[: AFTER + 1].mean(-1),
        "accuracy_low": low,
        "accuracy_high": high,
        "retained": retained[0],
        "retained_low": lowest[0, 0],
        "retained_high": highest[0, 0],
        "log_prob": log_prob[: AFTER + 1].mean(-1),
        "change": change[0],
        "change_low": lowest[1, 0],
        "change_high": highest[1, 0],
        "items": np.int64(len(items)),
        "entities": np.int64(entities),
        "control_retained": retained[1:],
        "control_accuracy": credit[AFTER + 1 :].mean(-1),
        "control_change": change[1:],
    }


def _by_entity(values: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """[runs, items] -> sums [runs, entities]."""
    return np.stack([np.bincount(owner, run) for run in values])


def _reason(accuracy: float, low: float, high: float, chance: float, entities: int) -> str:
    """Why nothing can be said of what is kept; "" where something can."""
    if entities < 2:
        return "all items are of one entity, so that there is no interval"
    if low <= chance:
        return (
            f"accuracy before, {accuracy:.2f} ({low:.2f} to {high:.2f}), is not above chance, "
            f"{chance:.2f}"
        )
    return ""
