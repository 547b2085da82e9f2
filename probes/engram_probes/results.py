"""What a probe returns: arrays, labels, units and provenance, saved as JSON and safetensors.

Nothing here needs torch or a model: a result saved on one machine opens on any other.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from engram_model.errors import CheckpointError
from engram_model.files import write_whole
from engram_probes.provenance import Provenance

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

SCHEMA = 1
JSON_FILE, ARRAYS_FILE = "result.json", "arrays.safetensors"
KINDS = {
    "attention": "attention.AttentionPatterns",
    "attention-map": "head_maps.AttentionMap",
    "attribution": "attribution.Attribution",
    "edit": "editing.Edit",
    "gates": "gates.GateMap",
    "gate-profile": "gate_profiles.GateProfile",
    "intervention": "interventions.Intervention",
    "lens": "lens.LogitLens",
    "lens-difference": "lens_difference.LensDifference",
    "cka": "alignment.Alignment",
    "cka-training": "alignment_training.TrainingAlignment",
    "suppress": "suppression.Suppression",
    "slots": "slots.SlotTrace",
    "compression": "compression_audit.CompressionAudit",
    "row-contexts": "contexts.RowContexts",
    "routing": "routing.ExpertRouting",
    "row-load": "row_use.RowLoad",
    "rows": "row_inspection.RowInspection",
    "linear": "linear.LinearProbe",
    "tuned-lens": "tuned_lens.TunedLens",
    "patch": "patching.AttributionPatching",
    "predictions": "predictions.Predictions",
    "token-comparison": "token_comparison.TokenComparison",
}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Result:
    """Base of every probe's result.

    Attributes:
        provenance: what was measured, on what, with what.
        kind: name of the kind of result in files.
        axes: of every array field, the names of its axes.
        units: of every number that has one.
        files: what `save` writes: the JSON document, and the arrays.
    """

    kind: ClassVar[str]
    files: ClassVar[tuple[str, str]] = (JSON_FILE, ARRAYS_FILE)
    axes: ClassVar[dict[str, tuple[str, ...]]]
    units: ClassVar[dict[str, str]]

    provenance: Provenance

    def __post_init__(self) -> None:
        for name, array in self.arrays().items():
            if array.ndim != len(self.axes[name]):
                raise ValueError(
                    f"{type(self).__name__}.{name} has shape {array.shape}, "
                    f"its axes are {', '.join(self.axes[name])}"
                )
            array.setflags(write=False)

    def arrays(self) -> dict[str, np.ndarray]:
        """The array fields by name; optional ones that are None are left out."""
        values = {name: getattr(self, name) for name in self.axes}
        return {name: value for name, value in values.items() if value is not None}

    def facts(self) -> dict[str, Any]:
        """A few short facts for the one-line and the notebook view."""
        raise NotImplementedError

    def summary(self) -> str:
        """The finding in one plain sentence."""
        raise NotImplementedError

    def to_frame(self) -> "pandas.DataFrame":
        """The numbers as a long table."""
        raise NotImplementedError

    def figure(self, *args, **kwargs) -> "plotly.graph_objects.Figure":
        """The result drawn; `figure.layout.meta["alt"]` says in words what it shows."""
        raise NotImplementedError

    def with_provenance(self, **changes: Any):
        """The same result with other provenance, e.g. `corpus=` and `command=` set by a door."""
        return replace(self, provenance=replace(self.provenance, **changes))

    def save(self, path: str | Path) -> Path:
        """Write `result.json` and `arrays.safetensors`, or what `files` names, into a folder.

        The folder is made if need be; other files there are left alone. The JSON holds the checksum
        of the arrays and is written last, so that a broken-off save is noticed.

        Returns:
            The folder.
        """
        from safetensors.numpy import save

        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        content = save({n: np.ascontiguousarray(a) for n, a in self.arrays().items()})
        json_file, arrays_file = self.files
        write_whole(folder / arrays_file, content)
        document = json.dumps(self._document(content), indent=1, allow_nan=False)
        write_whole(folder / json_file, document + "\n")
        return folder

    def _document(self, content: bytes) -> dict[str, Any]:
        scalars = [f.name for f in fields(self) if f.name not in (*self.axes, "provenance")]
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "summary": self.summary(),
            "fields": {name: getattr(self, name) for name in scalars},
            "arrays": {
                name: {
                    "axes": self.axes[name],
                    "shape": array.shape,
                    "dtype": str(array.dtype),
                    "unit": self.units.get(name, ""),
                }
                for name, array in self.arrays().items()
            },
            "arrays_sha256": hashlib.sha256(content).hexdigest(),
            "provenance": asdict(self.provenance),
        }

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={value!r}" for name, value in self.facts().items())
        return f"{type(self).__name__}({facts})"

    def _repr_html_(self) -> str:
        from engram_probes.html import card

        return card(self)


def result_class(kind: str) -> type[Result]:
    """The class of the results of a kind."""
    module, name = KINDS[kind].split(".")
    return getattr(import_module(f"engram_probes.{module}"), name)


def load_result(path: str | Path) -> Result:
    """Open what `save` wrote, as the class that was saved.

    Raises:
        CheckpointError: no result there, one of a newer version, or a damaged one.
    """
    return read_result(Path(path), Result.files)


def read_result(folder: Path, files: tuple[str, str]) -> Result:
    """Open the result in these two files of a folder; see `load_result`."""
    from safetensors.numpy import load

    json_file, arrays_file = files
    document = _read_json(folder, json_file)
    try:
        content = (folder / arrays_file).read_bytes()
        kind = result_class(document["kind"])
        if hashlib.sha256(content).hexdigest() != document["arrays_sha256"]:
            raise CheckpointError(
                f"{folder / arrays_file} is damaged: its checksum is not the one in {json_file}"
            )
        arrays: dict[str, Any] = dict.fromkeys(kind.axes)
        return kind(
            **{**arrays, **load(content)},
            **{name: _tuples(value) for name, value in document["fields"].items()},
            provenance=Provenance(**document["provenance"]),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} is damaged: {type(error).__name__}: {error}") from error


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        document = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"no result in {folder}: it has no {name}; give a folder that save() wrote"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / name} cannot be read: {error}") from error
    if not isinstance(document, dict) or document.get("kind") not in KINDS:
        raise CheckpointError(f"{folder / name} is not the result of a probe")
    if document.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{folder} has schema {document.get('schema')}, this version reads {SCHEMA}; "
            "update engram-workbench"
        )
    return document


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
