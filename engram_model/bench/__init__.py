"""Every kernel against what one would use instead, side by side in one run, correctness first.

`engram bench` runs stages of `STAGES`; each gives rows. Absolute times mean something on a GPU
only; what counts are ratios within a row, and the share of the copy bandwidth of the same run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Stage:
    """One thing that is measured.

    module: has a function of that name which takes a `Machine` and yields `Row`s.
    gpu: whether it needs one.
    kind: first word of the file of its results, `<kind>-<name>.json`.
    """

    name: str
    module: str
    gpu: bool = True
    kind: str = "kernels"

    @property
    def function(self) -> Callable:
        return getattr(import_module(self.module), self.name)


def stages(package: str, homes: dict[str, str], **fields) -> dict[str, Stage]:
    """Stages by name, from name -> module of the package."""
    return {name: Stage(name, f"{package}.{home}", **fields) for name, home in homes.items()}


STAGES = {
    **stages(
        "engram_model.bench",
        {
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
        },
    ),
    **stages(
        "engram_model.bench",
        {"cpu_hash": "cpu", "cpu_gather": "cpu", "cpu_constant_time": "cpu"},
        gpu=False,
    ),
}
