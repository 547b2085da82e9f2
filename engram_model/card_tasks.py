"""The part of a model card that says what the model knows, from the folder of an evaluation."""

from pathlib import Path
from typing import Any

from engram_model.errors import CheckpointError
from engram_model.eval_folder import read_folder, weights_sha256
from engram_model.markdown import table

EXAMPLES = 3
KNOWLEDGE = ("facts", "knowledge")  # suites that examples are taken from
HEADER = ("accuracy", "95%", "chance-corrected", "written without options", "items")


def read_tasks(folder: str | Path, checkpoint: str | Path) -> dict[str, Any]:
    """What a card keeps of `engram eval --out`.

    Raises:
        CheckpointError: the evaluation is not whole, or was of other weights.
    """
    config, metrics, items = read_folder(folder)
    if config["weights_sha256"] != weights_sha256(checkpoint):
        raise CheckpointError(
            f"{folder} was measured on other weights than {checkpoint}'s; run engram eval again"
        )
    return {
        "options": config["options"],
        "suites": metrics["tasks"],
        "spans": metrics["spans"],
        "examples": _examples(items),
    }


def _examples(items: list[dict]) -> dict[str, list[dict]]:
    """Facts that the model would write, and facts told in training that it does not choose."""
    told = [item for item in items if item["suite"] in KNOWLEDGE and item.get("tier") != 0]
    has = [item for item in told if item["generated"]]
    lacks = [item for item in told if not item["credit"]]
    return {"has": [*map(_example, _spread(has))], "lacks": [*map(_example, _spread(lacks))]}


def _spread(items: list[dict]) -> list[dict]:
    """A few from all over the list: tiers and relations stand in order."""
    step = max(1, len(items) // EXAMPLES)
    return items[step // 2 :: step][:EXAMPLES]


def _example(item: dict) -> dict[str, Any]:
    names = ("prompt", "answer", "choice", "tier", "relation")
    return {name: item[name] for name in names if name in item}


def tasks_section(tasks: dict[str, Any]) -> list[str]:
    """Paragraphs: accuracy by tier and by suite, then examples."""
    suites, items = tasks["suites"], tasks["options"]["items"]
    tiers = suites.get("knowledge", {}).get("tier", {})
    return [
        "## What it knows",
        "Closed questions with four options; the option with the largest log-likelihood is the "
        "choice. Intervals are over people, phrases or documents. "
        + (f"A sample of {items} items a suite." if items else "All items."),
        *([_knowledge(tiers)] if tiers else []),
        table(("suite", *HEADER), [[n, *_cells(g["all"]["all"])] for n, g in suites.items()]),
        *_example_list("Facts it has (it writes the answer by itself):", tasks["examples"]["has"]),
        *_example_list("Facts it lacks:", tasks["examples"]["lacks"]),
    ]


def _knowledge(tiers: dict[str, dict]) -> str:
    """Facts of the world by exposure."""
    header = ("knowledge, by tellings an epoch", *HEADER)
    return table(header, [[tier, *_cells(row)] for tier, row in tiers.items()])


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['accuracy']:.3f}",
        f"{row['low']:.3f} to {row['high']:.3f}",
        f"{row['chance_corrected']:.3f}",
        f"{row['generated']:.3f}",
        f"{row['items']:,}",
    ]


def _example_list(title: str, examples: list[dict]) -> list[str]:
    return [title + "\n\n" + "\n".join(map(_line, examples))] if examples else []


def _line(example: dict[str, Any]) -> str:
    prompt = example["prompt"].removeprefix("Question: ").removesuffix("\nAnswer:")
    right = example["choice"] == example["answer"]
    chosen = "" if right else f" (it chooses{example['choice']})"
    return f"- {prompt} **{example['answer'].strip()}**{chosen}"
