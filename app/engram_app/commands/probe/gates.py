"""`engram probe gates`."""

from pathlib import Path
from typing import Annotated

import typer

from engram_app.commands.probe.common import (
    Checkpoint,
    Data,
    Documents,
    Json,
    Out,
    Seed,
    Text,
    check,
    index_of,
    plain,
    show,
    texts_of,
    with_origin,
)
from engram_app.console import number, progress
from engram_app.opening import open_model
from engram_model.errors import UsageError


def gates(
    checkpoint: Checkpoint,
    text: Text = None,
    data: Data = None,
    out: Out = None,
    documents: Documents = 1000,
    tokens: Annotated[str, typer.Option(help="Most tokens of a corpus to read.")] = "50K",
    count_data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC", help="Over a corpus: also by n-gram, as often as this one has it."
        ),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the index of --count-data here, or open it."),
    ] = None,
    controls: Annotated[
        int, typer.Option(min=0, help="Hashes of other seeds that loads are compared with.")
    ] = 40,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Where the memory speaks.

    With --text: score, gate and what is added, on every token. Over a corpus: whether the gates
    tell where names and set phrases end, and what they do on other kinds of tokens; with the
    n-grams of --count-data, whether they open for frequent ones and close for colliding ones.
    """
    check(out)
    if text is not None and (count_data is not None or index is not None):
        raise UsageError("--count-data and --index go with a corpus; give --data, not --text")
    import engram_probes as ep

    texts, corpus = texts_of(text, data, documents)
    model, tokenizer = open_model(checkpoint)
    if text is not None:
        result = with_origin(ep.gate_map(model, tokenizer, texts), corpus)
        show(result, _gate_rows(result), as_json, out)
        return
    counted = index_of(model, tokenizer, count_data, index, "--count-data")
    with progress("reading gates", "documents") as update:
        found = ep.gate_profile(
            model,
            tokenizer,
            texts,
            max_tokens=number(tokens),
            index=counted,
            controls=controls,
            seed=seed,
            progress=update,
        )
    found = with_origin(found, corpus)
    show(found, _group_rows(found), as_json, out)


def _gate_rows(result) -> list:
    """One row for each token and memory layer."""
    rows: list = [("position", "token", "layer", "score", "gate", "added", "next_surprisal")]
    values = {what: result.values(what) for what in ("score", "gate", "added")}
    for position, token in enumerate(result.tokens):
        for index, layer in enumerate(result.layers):
            numbers = [plain(values[what][index, position]) for what in values]
            surprisal = plain(result.next_surprisal[position])
            rows.append((position, token, layer, *numbers, surprisal))
    return rows


def _group_rows(result) -> list:
    """One row for each group of tokens and memory layer, means over streams."""
    rows: list = [("group", "layer", *result.measures, "tokens")]
    for group, name in enumerate(result.groups):
        for index, layer in enumerate(result.layers):
            means = [plain(value) for value in result.group_mean[group, :, index].mean(-1)]
            rows.append((name, layer, *means, int(result.group_tokens[group, index])))
    return rows
