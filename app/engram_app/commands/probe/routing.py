"""`engram probe routing`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from engram_app.commands.probe.common import (
    Changes,
    Checkpoint,
    Data,
    Documents,
    Json,
    Out,
    Seed,
    Text,
    Twin,
    check,
    names,
    plain,
    show,
    texts_of,
    with_origin,
)
from engram_app.console import number, progress
from engram_app.opening import open_model


def routing(
    checkpoint: Checkpoint,
    text: Text = None,
    data: Data = None,
    twin: Twin = None,
    out: Out = None,
    documents: Documents = 1000,
    tokens: Annotated[str, typer.Option(help="Most tokens of a corpus to read.")] = "50K",
    changes: Changes = "zero,noise,other,shuffle",
    permutations: Annotated[int, typer.Option(min=1, help="Shifts of mechanisms.")] = 100,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Which experts are chosen, and whether the memory changes the choice.

    Loads, entropies, what experts specialise in; and of a token's experts the share that it keeps
    when the memory is silenced, beside changes as large that leave it as it is. With --twin the
    other model's result is in DIR/twin.
    """
    check(out)
    texts, corpus = texts_of(text, data, documents)
    results: list[Any] = []
    for name in [checkpoint, *([twin] if twin else [])]:
        found = _routing(name, texts, names(changes), number(tokens), permutations, seed)
        results.append(with_origin(found, corpus))
    show(results[0], _rows(results), as_json, out)
    if out and twin:
        results[1].save(Path(out) / "twin")


def _routing(name: str, texts: Any, changes: list, tokens: int, permutations: int, seed: int):
    from engram_probes import expert_routing

    model, tokenizer = open_model(name)
    with progress(f"routing of {name}", "documents") as update:
        return expert_routing(
            model,
            tokenizer,
            texts,
            changes=changes,
            max_tokens=tokens,
            permutations=permutations,
            seed=seed,
            progress=update,
        )


def _rows(results: list) -> list:
    """One row for each model and layer; what is kept under each change of the first's memory."""
    columns = ("evenness", "router_entropy", "information")
    kept = results[0].changes
    rows: list = [("model", "layer", *columns, "information_null", *(f"kept {c}" for c in kept))]
    for result in results:
        name = result.provenance.models[0]["name"]
        for index, layer in enumerate(result.layers):
            values = [getattr(result, column)[index] for column in columns]
            values.append(result.information_null[:, index].mean())
            shares = [plain(value) for value in result.kept[:, 0, index]]
            shares += [None] * (len(kept) - len(shares))
            rows.append((name, layer, *map(plain, values), *shares))
    return rows
