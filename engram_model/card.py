"""The model card: what a checkpoint is, what it was trained on and how well it does.

`card.json` holds the numbers, `README.md` shows them. Both are made from the checkpoint itself, the
token file it was trained on and folders of `engram eval`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engram_model.accounting import count_parameters
from engram_model.card_evaluations import evaluations_section, read_evaluation
from engram_model.corpora import public_spec
from engram_model.markdown import table
from engram_model.training.tokens import TokenFile, open_tokens


def write_card(
    checkpoint: str | Path,
    tokens: str | Path,
    evaluations: Sequence[str | Path] = (),
    about: str = "",
) -> dict:
    """Write a checkpoint's `card.json` and `README.md`.

    Args:
        checkpoint: folder with a trained model and its training_log.json.
        tokens: the token file it was trained on.
        evaluations: folders that `engram eval --out` wrote of this checkpoint.
        about: a paragraph on the corpus: what it is, whose, under which licence.

    Returns:
        What `card.json` holds.

    Raises:
        CheckpointError: an evaluation is not whole, or was of other weights.
    """
    from engram_model.checkpoint import load

    folder = Path(checkpoint)
    found = [read_evaluation(evaluation, folder) for evaluation in evaluations]
    model, _ = load(folder)
    log = json.loads((folder / "training_log.json").read_text())
    file = open_tokens(tokens)
    card = {
        "name": folder.name,
        "preset": log["preset"],
        "about": about,
        "parameters": count_parameters(model).to_dict(),
        "training": _training(log, file),
        "memory": [_memory(model, memory, file) for memory in model.model.memories],
        "evaluations": found,
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1))
    (folder / "README.md").write_text(render_card(card))
    return card


def _training(log: dict, file: TokenFile) -> dict:
    options, history = log["options"], log["history"]
    seconds = [entry["train_runtime"] for entry in history if "train_runtime" in entry]
    context = options["context"] or 1024
    seen = log["step"] * log["tokens_per_step"]
    return {
        "corpus": public_spec(file.meta["corpus"]["spec"]),
        "corpus_tokens": file.meta["tokens"],
        "tokens": seen,
        "epochs": round(seen / file.meta["tokens"], 2),
        "steps": log["step"],
        "sequences_per_step": log["tokens_per_step"] // context,
        "context": context,
        "learning_rate": options["lr"],
        "seed": options["seed"],
        # the clock of a resumed run began at the resume; a checkpoint from within a run has none
        "tokens_per_second": round(seen / seconds[0]) if seconds and not log["resumed"] else None,
        "device": log.get("device"),
        "final_loss": [entry["loss"] for entry in history if "loss" in entry][-1],
    }


def _memory(model, memory, file: TokenFile) -> dict:
    """Rows of a memory and how many different n-grams of the training text share one."""
    config = model.config
    ids = memory.compression.cpu().numpy().astype(np.int64)[file.tokens]
    primes = memory.primes.cpu().numpy()
    return {
        "layer": memory.layer_id,
        "width": config.engram_head_dim,
        "heads": config.engram_n_heads,
        "rows": int(primes.sum()),
        "orders": [
            {
                "order": order,
                "rows_per_head": round(float(rows.mean())),
                "distinct_ngrams": (distinct := distinct_ngrams(ids, order)),
                "distinct_per_row": round(distinct / float(rows.mean()), 1),
            }
            for order, rows in enumerate(primes, start=2)
        ],
    }


def distinct_ngrams(ids: np.ndarray, order: int) -> int:
    """Number of different n-grams of `order` in compressed ids [tokens]."""
    base = int(ids.max()) + 1
    keys = ids[order - 1 :].copy()
    for back in range(1, order):
        keys += ids[order - 1 - back : len(ids) - back] * base**back
    keys.sort()
    return int((np.diff(keys) != 0).sum()) + 1


def render_card(card: dict) -> str:
    """The card as Markdown."""
    counts, training = card["parameters"], card["training"]
    lines = [
        "---\nlicense: apache-2.0\nlanguage: en\n---",
        f"# {card['name']}",
        "A small research model, made to be looked into with engram-workbench. It writes English-"
        "like text and knows little: do not use it for anything else.",
        "## Size",
        table(
            ["parameters", "count"],
            [
                ["total", f"{counts['total']:,}"],
                ["active a token (all matrices multiplied)", f"{counts['active']:,}"],
                [
                    "active, the paper's way (memory's projections left out)",
                    f"{counts['active_paper']:,}",
                ],
                ["memory tables", f"{counts['table']:,}"],
                ["sparse (idle experts and tables)", f"{counts['sparse']:,}"],
            ],
        ),
        *_memory_section(card["memory"]),
        "## Training",
        _training_text(training),
        *([card["about"]] if card["about"] else []),
        *evaluations_section(card["name"], card["evaluations"]),
        "## Limits",
        f"{counts['total'] / 1e6:.1f} million parameters and one corpus: facts are confused, names "
        "invented, and no safety work was done. Text of other kinds than the corpus is out of "
        "reach.",
    ]
    return "\n\n".join(lines) + "\n"


def _training_text(training: dict) -> str:
    speed = training["tokens_per_second"]
    return (
        f"Corpus `{training['corpus']}` ({training['corpus_tokens']:,} tokens): "
        f"{training['tokens']:,} tokens in {training['steps']:,} steps of "
        f"{training['sequences_per_step']} sequences of {training['context']:,}, that is "
        f"{training['epochs']} epochs; peak learning rate {training['learning_rate']}, seed "
        f"{training['seed']}"
        + (f", {speed:,} tokens a second" if speed else "")
        + (f" on {training['device']}." if training["device"] else ".")
    )


def _memory_section(memories: list[dict]) -> list[str]:
    rows = [
        [
            memory["layer"],
            order["order"],
            memory["heads"],
            f"{order['rows_per_head']:,}",
            memory["width"],
            f"{order['distinct_ngrams']:,}",
            order["distinct_per_row"],
        ]
        for memory in memories
        for order in memory["orders"]
    ]
    header = [
        "layer",
        "order",
        "heads",
        "rows per head",
        "width",
        "distinct training n-grams",
        "n-grams per row",
    ]
    return ["## Memory", table(header, rows)] if rows else []
