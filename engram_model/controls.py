"""Controls of a memory: a part taken away, or the memory without what it is for.

Each is a few config fields over a preset with a memory: `preset_config(preset, **CONTROLS[name])`,
or `train(..., overrides=CONTROLS[name])`. A gain that a control also shows is not due to what the
control lacks. Layers, width, experts and seed stay as they are; `capacity_1` lacks the table's
parameters, `merged` all keys but one, `no_convolution` its weights.
"""

from typing import Any

from engram_model.errors import UsageError
from engram_model.presets import preset_config

CONTROLS: dict[str, dict[str, Any]] = {
    # Is it the rows, or the projections and the convolution around them? One row a head.
    "capacity_1": {"engram_vocab_size": 1},
    # Is it what the text says, or rows of any kind? Rows are chosen by the position alone: the same
    # in every text, so they still tell where a token is.
    "shuffled_hash": {"engram_hash": "position"},
    # Does the root in the released gate matter, which the paper does not print?
    "linear_gate": {"engram_gate": "linear"},
    # Must the memory be held back where the context does not want it? The value enters in full.
    "no_gate": {"engram_gate": "none"},
    # Does a look at the values of the tokens before help?
    "no_convolution": {"engram_kernel_size": 0},
    # Does it help that tokens of equal normalised text share their n-grams?
    "no_compression": {"engram_compressed_vocab_size": None},
    # Must each residual stream ask for itself? One key and gate (the paper's "w/o multi-branch").
    "merged": {"engram_multi_branch": False},
}


def control_fields(name: str, preset: str, changed: dict[str, Any]) -> dict[str, Any]:
    """The config fields of a control of a preset, and those changed beside.

    Raises:
        UsageError: no such control, a preset without a memory, or a change of the control's field.
    """
    if name not in CONTROLS:
        raise UsageError(f"no control {name!r}; there are {', '.join(CONTROLS)}")
    if not preset_config(preset).engram_layer_ids:
        raise UsageError(f"{preset} has no memory to take a control of")
    undone = [field for field in CONTROLS[name] if field in changed]
    if undone:
        raise UsageError(f"{undone[0]} is what the control {name} sets")
    return CONTROLS[name] | changed
