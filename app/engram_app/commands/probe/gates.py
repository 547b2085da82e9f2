"""`engram probe gates`."""

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
    plain,
    show,
    texts_of,
    with_origin,
)
from engram_app.console import number, progress
from engram_app.opening import open_model


def gates(
    checkpoint: Checkpoint,
    text: Text = None,
    data: Data = None,
    out: Out = None,
    documents: Documents = 1000,
    tokens: Annotated[str, typer.Option(help="Most tokens of a corpus to read.")] = "50K",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Where the memory speaks.

    With --text: score, gate and what is added, on every token. Over a corpus: whether the gates
    tell where names and set phrases end, and what they do on other kinds of tokens.
    """
    check(out)
    import engram_probes as ep

    texts, corpus = texts_of(text, data, documents)
    model, tokenizer = open_model(checkpoint)
    if text is not None:
        result = with_origin(ep.gate_map(model, tokenizer, texts), corpus)
        show(result, _gate_rows(result), as_json, out)
        return
    with progress("reading gates", "documents") as update:
        found = ep.gate_profile(
            model, tokenizer, texts, max_tokens=number(tokens), seed=seed, progress=update
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
            rows.append((name, layer, *means, int(result.group_tokens[group])))
    return rows
