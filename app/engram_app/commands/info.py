"""`engram info`: what a checkpoint is, without its weights."""

from pathlib import Path
from typing import Annotated, Any

import typer

from engram_app.console import print_json, print_rows


def info(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CKPT", help="A folder, or the name of a bundled checkpoint.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Architecture, parameters, memory, tokenizer and checksums of a checkpoint."""
    from engram_model.checkpoint import find_checkpoint

    document = describe(find_checkpoint(checkpoint))
    if as_json:
        print_json(document)
        return
    losses = document.pop("evaluation")
    rows = [
        (f"{section} {name}".strip().replace("_", " "), _cell(value))
        for section, facts in document.items()
        for name, value in (facts.items() if isinstance(facts, dict) else [("", facts)])
    ]
    print_rows(("what", "value"), rows)
    for spec, sources in losses.items():
        headers = ("source", "nats/token", "low", "high", "bits/byte")
        columns = ("loss", "low", "high", "bits_per_byte")
        table = [(name, *(f"{loss[c]:.4f}" for c in columns)) for name, loss in sources.items()]
        print_rows(headers, table, title=f"Losses stated by the card, on {spec}")


def describe(path: Path) -> dict[str, Any]:
    """All that is known of a checkpoint from its folder.

    Raises:
        CheckpointError: not an Engram checkpoint, or a damaged one.
    """
    import torch

    from engram_model.accounting import count_parameters
    from engram_model.checkpoint import check_weights, read_config
    from engram_model.config import EngramConfig
    from engram_model.errors import CheckpointError
    from engram_model.files import file_sha256
    from engram_model.modeling import EngramForCausalLM

    files = check_weights(path)
    try:
        config = EngramConfig(**read_config(path))
        with torch.device("meta"):
            model = EngramForCausalLM(config)
    except (TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{path}/config.json is damaged: {first}") from error
    return {
        "checkpoint": str(path),
        "architecture": _architecture(config),
        "parameters": count_parameters(model).to_dict(),
        "memory": _memory(config),
        "tokenizer": {
            "vocabulary": config.vocab_size,
            "compressed": config.engram_compressed_vocab_size,
            "sha256": config.tokenizer_sha256,
        },
        "sha256": {file.name: file_sha256(file) for file in files},
        "evaluation": evaluation(path),
    }


def _architecture(config) -> dict[str, Any]:
    return {
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "streams": config.hc_mult,
        "experts": config.n_routed_experts,
        "experts_per_token": config.num_experts_per_tok,
        "shared_experts": config.n_shared_experts,
        "dense_layers": config.first_k_dense_replace,
        "context": config.max_position_embeddings,
    }


def _memory(config) -> dict[str, Any]:
    layers = list(config.engram_layer_ids)
    if not layers:
        return {"layers": []}
    hasher = config.hasher(pad_id=0)
    return {
        "layers": layers,
        "orders": list(range(2, config.engram_max_ngram_size + 1)),
        "heads": config.engram_n_heads,
        "rows": {str(layer): hasher.rows(layer) for layer in layers},
        "row_width": config.engram_head_dim,
        "hash": config.engram_hash,
        "branches": config.engram_branches,
        "gate": config.engram_gate,
        "conv_taps": config.engram_kernel_size,
        "conv_dilation": config.engram_dilation,
        "seed": config.engram_seed,
    }


def evaluation(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Losses that the model card states: corpus -> source -> numbers; empty without a card."""
    import json

    try:
        card = json.loads((path / "card.json").read_text(encoding="utf-8"))
        evaluations = [(one["options"]["data"], one["sources"]) for one in card["evaluations"]]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {data: sources for data, sources in evaluations if data}


def _cell(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_cell(item)}" for name, item in value.items()) or "none"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
