"""`engram probe slots`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from engram_app.commands.probe.common import (
    Checkpoint,
    Json,
    Out,
    Text,
    check,
    index_of,
    plain,
    show,
    slots_of,
)
from engram_app.console import command_line, print_text
from engram_app.opening import open_model
from engram_model.errors import UsageError


def slots(
    checkpoint: Checkpoint,
    text: Text = None,
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", help="A corpus: who else reads these rows?")
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the corpus' index here, or open the one here."),
    ] = None,
    most: Annotated[int, typer.Option(min=0, help="Tenants of a row that are named.")] = 3,
    topk: Annotated[int, typer.Option(min=0, help="Tokens kept of what a row says.")] = 5,
    ngram: Annotated[
        str | None, typer.Option(help='Only the rows that an n-gram reads: " Diana, Princess".')
    ] = None,
    rows: Annotated[
        str | None, typer.Option(metavar="[LAYER:]ROW,...", help="Only these rows of the table.")
    ] = None,
    compression: Annotated[
        bool, typer.Option("--compression", help="Which raw tokens share a compressed id.")
    ] = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Which rows a text reads, what they say, who else hashes there; how a corpus uses the rows.

    With --text and a corpus DIR holds the trace of the text, and DIR/load the use of the rows.
    With --ngram or --rows it holds these rows alone: how long, what they say, who reads them. With
    --compression it holds which raw tokens no row can tell apart.
    """
    check(out)
    asked = {"--text": text, "--ngram": ngram, "--rows": rows, "--compression": compression or None}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: give one of them")
    if not given and data is None and index is None:
        raise UsageError(
            f"give one of {', '.join(asked)}, a corpus with --data, or the index of one with "
            "--index"
        )
    from engram_probes import audit_compression, inspect_rows, inspect_slots, row_load
    from engram_probes.memory_tables import tables_of

    model, tokenizer = open_model(checkpoint)
    found = index_of(model, tokenizer, data, index, "--data")
    if compression:
        counts = None if found is None else found.raw_counts
        audit = audit_compression(tokenizer, tables_of(model).compression, counts)
        if found is not None:
            audit = audit.with_provenance(corpus=found.corpus)
        shared = audit.to_frame()[audit.raw_tokens > 1]
        show(audit.with_provenance(command=command_line()), _frame_rows(shared), as_json, out)
        return
    if ngram is not None or rows is not None:
        inspected = inspect_rows(
            model,
            tokenizer,
            slots_of(rows, "--rows"),
            ngram=ngram,
            corpus=found,
            most=most,
            topk=topk,
        )
        table = _frame_rows(inspected.to_frame())
        show(inspected.with_provenance(command=command_line()), table, as_json, out)
        return
    load = None if found is None else row_load(found, tokenizer)
    results: dict[str, Any] = {}
    if text is not None:
        results[""] = inspect_slots(model, tokenizer, text, found, most=most, topk=topk)
    if load is not None:
        results["load" if results else ""] = load
    results = {name: r.with_provenance(command=command_line()) for name, r in results.items()}
    first = results[""]
    show(
        first,
        _trace_rows(first) if text is not None else _frame_rows(first.to_frame()),
        as_json,
        None,
    )
    if "load" in results and not as_json:
        print_text(results["load"].summary())
    for folder, result in results.items():
        if out:
            result.save(out / folder)


def _trace_rows(result: Any) -> list:
    """One row for each token, layer and order; of each head its row, norm and tenants."""
    names = ["position", "token", "layer", "order", "ngram", "rows", "norms"]
    corpus = result.tenants is not None
    rows: list = [(*names, "count", "tenants", "expected", "most frequent") if corpus else names]
    for position, token in enumerate(result.tokens):
        for index, layer in enumerate(result.layers):
            for order, texts in enumerate(result.ngram_texts):
                heads = slice(order * result.n_heads, (order + 1) * result.n_heads)
                place = (index, position, heads)
                row = [position, token, layer, order + 2, texts[position]]
                row += [_joined(result.slots[place]), _joined(result.row_norm[place], ".2f")]
                rows.append(row + (_others(result, place, order) if corpus else []))
    return rows


def _others(result: Any, place: tuple, order: int) -> list:
    """Own count, tenants of each head, their expected number, the most frequent one of each."""
    layer, position, heads = place
    named = [cell[0] for cell in result.tenant_texts[layer][position][heads] if cell and cell[0]]
    return [
        int(result.ngram_counts[order, position]),
        _joined(result.tenants[place]),
        plain(result.tenants_expected[place].mean()),
        " | ".join(named),
    ]


def _joined(values: Any, form: str = "") -> str:
    return " ".join(format(value, form) for value in values.tolist())


def _frame_rows(frame: Any) -> list:
    known = frame.astype(object).where(frame.notna(), None)
    return [tuple(frame.columns), *(tuple(row) for row in known.values.tolist())]
