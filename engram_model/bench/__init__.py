"""Every kernel against what one would use instead, side by side in one run, correctness first.

`engram bench` runs stages of `STAGES`; each gives rows. Absolute times mean something on a GPU
only; what counts are ratios within a row, and the share of the copy bandwidth of the same run.
"""

from importlib import import_module

# stage -> module with a function of that name; those of "cpu" need no GPU
STAGES = {
    "hash": "lookup",
    "gather": "lookup",
    "constant_time": "lookup",
    "gate": "injection",
    "gate_backward": "injection",
    "inject_forward": "injection",
    "inject_backward": "injection",
    "table": "table",
    "table_size": "table",
    "layer": "layer",
    "decode": "model",
    "site": "mixing",
    "step": "model",
    "curves": "model",
    "offload": "offload",
    "counters": "counters",
    "cpu_hash": "cpu",
    "cpu_gather": "cpu",
    "cpu_constant_time": "cpu",
}


def stage(name: str):
    """The function that runs a stage: takes a `Machine`, yields `Row`s."""
    return getattr(import_module(f"engram_model.bench.{STAGES[name]}"), name)
