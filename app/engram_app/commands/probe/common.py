"""What the commands of `engram probe` share: options, texts, how a result is shown and saved."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_app.console import command_line, print_json, print_rows, print_text, progress
from engram_app.opening import check_out, open_documents
from engram_model.errors import UsageError

if TYPE_CHECKING:
    from engram_probes.results import Result

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
Changes = Annotated[
    str,
    typer.Option(metavar="NAME,...", help='Of the memory: zero, shuffle, noise, ...; "" for none.'),
]
Documents = Annotated[int, typer.Option(min=1, help="Most documents to read.")]
Seed = Annotated[int, typer.Option(help="Of every random choice.")]


def names(listed: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in listed.split(",") if name.strip()]


def check(out: Path | None) -> None:
    if out is not None:
        check_out(out, "result.json")


def texts_of(text: str | None, data: str | None, most: int) -> tuple[Any, dict | None]:
    """What to read, and the description of the corpus it comes from."""
    if text is not None and data is not None:
        raise UsageError("give --text or --data, not both")
    if text is not None:
        return text, None
    from engram_model.corpora import describe

    spec = data or DEFAULT_DATA
    documents = open_documents(spec, most)
    return documents, {**describe(spec), "documents": len(documents)}


def with_origin(result: "Result", corpus: dict | None) -> "Result":
    """With the command, and where the texts came from beside what was read of them."""
    origin = {} if corpus is None else {"corpus": {**result.provenance.corpus, "source": corpus}}
    return result.with_provenance(command=command_line(), **origin)


def index_of(model: Any, tokenizer: Any, data: str | None, folder: Path | None, name: str) -> Any:
    """The index of a corpus, kept in --index if given; or the one that is there.

    Args:
        data: what the option `name` says.
    """
    if data is None and folder is None:
        return None
    from engram_probes.slot_index import JSON_FILE, build_index, open_index

    if folder is None or not (folder / JSON_FILE).is_file():
        if data is None:
            return open_index(str(folder))  # says what is missing
        if folder is not None:
            check_out(folder, JSON_FILE)
        with progress("counting n-grams", "documents") as update:
            return build_index(model, tokenizer, data, folder, progress=update)
    index = open_index(folder)
    if data is not None:
        from engram_model.corpora import fingerprint

        if index.corpus.get("fingerprint") != fingerprint(data):
            raise UsageError(
                f"{folder} holds the index of another corpus ({index.corpus.get('spec')}); give "
                f"another folder, or leave out {name}"
            )
    return index


def show(result: "Result", rows: list, as_json: bool, out: Path | None) -> None:
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


def plain(value: Any) -> float | None:
    """A number that JSON can hold."""
    import math

    return float(value) if math.isfinite(value) else None


def numbers(option: str, text: str | None) -> list[int] | None:
    """What an option says: whole numbers with commas between."""
    if text is None:
        return None
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text}: give whole numbers with commas between") from None


def slots_of(text: str | None, option: str = "--slots") -> list[int] | dict[int, list[int]] | None:
    """`12,45`, rows of the one layer; or `1:12,1:45`, each with its layer."""
    if text is None or ":" not in text:
        return numbers(option, text)
    found: dict[int, list[int]] = {}
    for pair in text.split(","):
        layer, colon, row = pair.partition(":")
        if not colon:
            raise UsageError(f"{option} {text}: {pair} has no layer; write LAYER:ROW")
        [number], [slot] = numbers(option, layer) or [], numbers(option, row) or []
        found.setdefault(number, []).append(slot)
    return found
