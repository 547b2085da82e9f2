"""The part of a model card that says how well the model does and what it knows.

All of it is read from folders of `engram eval`; each is shown with the command that computes it
again.
"""

from pathlib import Path
from typing import Any

from engram_model.corpora import public_spec
from engram_model.errors import CheckpointError
from engram_model.eval_folder import read_folder, weights_sha256
from engram_model.eval_run import ALL_DATA, ITEMS
from engram_model.evaluate import DEFAULT_DATA
from engram_model.markdown import table

EXAMPLES = 3
KNOWLEDGE = ("facts", "knowledge")  # suites that examples are taken from
LOSSES = ("source", "nats a token", "95%", "bits a byte", "documents", "tokens")
TASKS = ("accuracy", "95%", "chance-corrected", "written without options", "items")


def read_evaluation(folder: str | Path, checkpoint: str | Path) -> dict[str, Any]:
    """What a card keeps of an evaluation.

    Raises:
        CheckpointError: the evaluation is not whole, or was of other weights.
    """
    config, metrics, items = read_folder(folder)
    if config["weights_sha256"] != weights_sha256(checkpoint):
        raise CheckpointError(
            f"{folder} was measured on other weights than {checkpoint}'s; run engram eval again"
        )
    options = config["options"]
    options["data"] = options["data"] and public_spec(options["data"])
    options["facts"] = options["facts"] and Path(options["facts"]).name
    return {
        "options": options,
        "device": config["device"].partition(":")[0],
        "sources": metrics["sources"],
        "suites": metrics["tasks"],
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


def evaluations_section(name: str, evaluations: list[dict[str, Any]]) -> list[str]:
    """Paragraphs: losses, accuracy by tier and by suite, examples; of each evaluation.

    name: of the checkpoint, in commands.
    """
    if not evaluations:
        return []
    return [
        "## What it does and knows",
        "One model, one seed. Intervals (95%) are over documents, people or phrases, not over "
        "trainings. Closed questions have four options; the one with the largest log-likelihood "
        "is the choice.",
        *(text for one in evaluations for text in _evaluation(name, one)),
    ]


def _evaluation(name: str, one: dict[str, Any]) -> list[str]:
    device = "a GPU" if one["device"] == "cuda" else "a CPU"
    parts = [f"### `{command(name, one['options'])}`", f"Run on {device}."]
    if one["options"]["items"] is not None and one["suites"]:
        return [*parts, *_short(one)]
    tiers = one["suites"].get("knowledge", {}).get("tier", {})
    return [
        *parts,
        *([_losses(one["sources"])] if one["sources"] else []),
        *([_knowledge(tiers)] if tiers else []),
        *([_suites(one["suites"])] if one["suites"] else []),
        *_example_list("Facts it has (it writes the answer by itself):", one["examples"]["has"]),
        *_example_list("Facts it lacks:", one["examples"]["lacks"]),
    ]


def command(name: str, options: dict[str, Any]) -> str:
    """What computes an evaluation again. Options that change no number are left out."""
    everything = options["items"] is None and options["suites"]
    alone = options["data"] == DEFAULT_DATA and not options["facts"] and not everything
    data = options["data"] and not alone and options["data"] != ALL_DATA
    tasks = options["suites"] and not everything and not alone
    parts = [
        f"engram eval {name}",
        "--all" if everything else "",
        f'--data "{options["data"]}"' if data else "",
        f"--tasks {','.join(options['suites'])}" if tasks else "",
        f"--facts {options['facts']}" if options["facts"] else "",
        f"--items {options['items']}" if options["items"] not in (None, ITEMS) else "",
        f"--seed {options['seed']}" if options["seed"] else "",
    ]
    return " ".join(part for part in parts if part)


def _short(one: dict[str, Any]) -> list[str]:
    """A sample of the items: a row a suite is enough."""
    options, lines = one["options"], []
    if losses := one["sources"].get("all"):
        lines.append(f"{losses['loss']:.4f} nats a token on `{options['data']}`.")
    rows = [
        [suite, f"{row['accuracy']:.3f}", row["items"]]
        for suite, groups in one["suites"].items()
        for row in [groups["all"]["all"]]
    ]
    lines.append(f"{options['items']} items of each suite, drawn by seed:")
    return [" ".join(lines), table(("suite", "accuracy", "items"), rows)]


def _losses(sources: dict[str, dict]) -> str:
    rows = [
        [
            source,
            f"{loss['loss']:.4f}",
            f"{loss['low']:.3f} to {loss['high']:.3f}",
            f"{loss['bits_per_byte']:.4f}",
            f"{loss['documents']:,}",
            f"{loss['tokens']:,}",
        ]
        for source, loss in sources.items()
    ]
    return table(LOSSES, rows)


def _knowledge(tiers: dict[str, dict]) -> str:
    """Facts of the world by exposure."""
    header = ("knowledge, by tellings an epoch", *TASKS)
    return table(header, [[tier, *_cells(row)] for tier, row in tiers.items()])


def _suites(suites: dict[str, dict]) -> str:
    return table(("suite", *TASKS), [[n, *_cells(g["all"]["all"])] for n, g in suites.items()])


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
