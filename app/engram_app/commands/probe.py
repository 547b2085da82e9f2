"""`engram probe`: one probe of one checkpoint, its finding printed and its result saved."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_app.console import command_line, number, print_json, print_rows, print_text, progress
from engram_app.opening import check_out, open_documents, open_model
from engram_model.errors import UsageError

if TYPE_CHECKING:
    from engram_probes.results import Result

app = typer.Typer(
    help="One probe: print its finding, save its result.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
DEFAULT_DATA = "world:?seed=0&split=valid&tokens=20K"

Checkpoint = Annotated[
    str, typer.Argument(metavar="CKPT", help="A folder, or the name of a bundled checkpoint.")
]
Text = Annotated[str | None, typer.Option(help="One text to read.")]
Data = Annotated[
    str | None,
    typer.Option(metavar="SPEC", help=f"A corpus. Without it and --text: {DEFAULT_DATA}"),
]
Twin = Annotated[str | None, typer.Option(metavar="CKPT", help="A model to compare with.")]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Save the result here; `load_result` opens it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Documents = Annotated[int, typer.Option(min=1, help="Most documents to read.")]
Seed = Annotated[int, typer.Option(help="Of every random choice.")]


@app.command()
def gates(
    checkpoint: Checkpoint,
    text: Annotated[str, typer.Option(help="The text to read.")],
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Where the memory speaks: score, gate and what it adds, on every token of a text."""
    _check(out)
    from engram_probes import gate_map

    model, tokenizer = open_model(checkpoint)
    result = gate_map(model, tokenizer, text)
    result = result.with_provenance(command=command_line())
    _show(result, _gate_rows(result), as_json, out)


@app.command()
def lens(
    checkpoint: Checkpoint,
    text: Text = None,
    data: Data = None,
    twin: Twin = None,
    out: Out = None,
    documents: Documents = 200,
    tokens: Annotated[str, typer.Option(help="Most tokens to read.")] = "50K",
    topk: Annotated[int, typer.Option(min=1, help="k of the overlap of likeliest tokens.")] = 5,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What each depth of the model would predict: when is the prediction settled?

    With --twin DIR holds this model's lens, and in DIR/twin and DIR/difference the other's and
    their difference.
    """
    _check(out)
    texts, corpus = _texts(text, data, documents)
    lenses: list[Any] = []
    for name in [checkpoint, *([twin] if twin else [])]:
        lenses.append(_lens(name, texts, number(tokens), topk, seed))
    lenses = [_with_origin(found, corpus) for found in lenses]
    results = {"": lenses[0]}
    if twin:
        results |= {"twin": lenses[1], "difference": lenses[0].minus(lenses[1], seed)}
    found = results.get("difference", lenses[0])
    _show(found, _lens_rows(found), as_json, None)
    if out:
        for folder, result in results.items():
            result.save(out / folder)


@app.command()
def cka(
    checkpoint: Checkpoint,
    twin: Annotated[str, typer.Option(metavar="CKPT", help="The baseline: the matrix' rows.")],
    data: Data = None,
    out: Out = None,
    documents: Documents = 1000,
    positions: Annotated[
        str, typer.Option(help="entity (ends of entities), sampled, or auto: as the corpus allows.")
    ] = "auto",
    per_document: Annotated[int, typer.Option(min=1, help="Positions a document at most.")] = 8,
    permutations: Annotated[int, typer.Option(min=0, help="Of the null.")] = 100,
    k: Annotated[int, typer.Option(min=1, help="Rows that enter the soft alignment.")] = 5,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Which layers of two models hold alike representations."""
    _check(out)
    from engram_probes import cka as compare

    texts, corpus = _texts(None, data, documents)
    if positions == "auto":
        positions = "entity" if texts[0].get("spans") else "sampled"
    model, tokenizer = open_model(checkpoint)
    other, _ = open_model(twin)
    with progress("comparing layers", "documents") as update:
        result = compare(
            model,
            other,
            tokenizer,
            texts,
            positions=positions,
            per_document=per_document,
            permutations=permutations,
            k=k,
            seed=seed,
            progress=update,
        )
    _show(_with_origin(result, corpus), _cka_rows(result), as_json, out)


def _check(out: Path | None) -> None:
    if out is not None:
        check_out(out, "result.json")


def _texts(text: str | None, data: str | None, most: int) -> tuple[Any, dict | None]:
    """What to read, and the description of the corpus it comes from."""
    if text is not None and data is not None:
        raise UsageError("give --text or --data, not both")
    if text is not None:
        return text, None
    from engram_model.corpora import describe

    spec = data or DEFAULT_DATA
    documents = open_documents(spec, most)
    return documents, {**describe(spec), "documents": len(documents)}


def _lens(name: str, texts: Any, tokens: int, topk: int, seed: int):
    from engram_probes import logit_lens

    model, tokenizer = open_model(name)
    with progress(f"lens of {name}", "documents") as update:
        return logit_lens(
            model, tokenizer, texts, topk=topk, max_tokens=tokens, seed=seed, progress=update
        )


def _with_origin(result: "Result", corpus: dict | None) -> "Result":
    """With the command, and where the texts came from beside what was read of them."""
    origin = {} if corpus is None else {"corpus": {**result.provenance.corpus, "source": corpus}}
    return result.with_provenance(command=command_line(), **origin)


def _show(result: "Result", rows: list, as_json: bool, out: Path | None) -> None:
    """The finding and a table, or one JSON document; then the saved result."""
    from dataclasses import asdict

    headers, *body = rows
    if as_json:
        print_json(
            {
                "kind": result.kind,
                "summary": result.summary(),
                "facts": result.facts(),
                "table": [dict(zip(headers, row, strict=True)) for row in body],
                "provenance": asdict(result.provenance),
            }
        )
    else:
        print_text(result.summary())
        print_rows(headers, [[_cell(value) for value in row] for row in body])
    if out:
        result.save(out)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> float | None:
    """A number that JSON can hold."""
    import math

    return float(value) if math.isfinite(value) else None


def _gate_rows(result) -> list:
    """One row for each token and memory layer."""
    rows: list = [("position", "token", "layer", "score", "gate", "added", "next_surprisal")]
    values = {what: result.values(what) for what in ("score", "gate", "added")}
    for position, token in enumerate(result.tokens):
        for index, layer in enumerate(result.layers):
            numbers = [_plain(values[what][index, position]) for what in values]
            surprisal = _plain(result.next_surprisal[position])
            rows.append((position, token, layer, *numbers, surprisal))
    return rows


def _lens_rows(result) -> list:
    """KL by depth: of one model, or of two with their difference."""
    kl = result.metrics.index("kl")
    if result.kind == "lens":
        table = [result.mean, result.low, result.high]
        names = ["kl", "low", "high"]
    else:
        table = [*result.means, result.difference, result.low, result.high]
        names = [f"kl {result.model}", f"kl {result.other}", "difference", "low", "high"]
    columns = [array[kl] for array in table]
    return [("depth", *names)] + [
        (depth, *(_plain(column[depth]) for column in columns)) for depth in range(len(columns[0]))
    ]


def _cka_rows(result) -> list:
    """Soft alignment by layer."""
    arrays = (result.soft_index, result.soft_low, result.soft_high)
    return [("layer", "like", "low", "high")] + [
        (layer, *(_plain(array[layer]) for array in arrays))
        for layer in range(len(result.soft_index))
    ]
