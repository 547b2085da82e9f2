"""The JSON Schema of `result.json`: what a saved result of each kind holds."""

from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

from engram_probes.provenance import Provenance
from engram_probes.results import KINDS, SCHEMA, Result, result_class

ARRAY = {
    "axes": {"type": "array", "items": {"type": "string"}},
    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
    "dtype": {"type": "string"},
    "unit": {"type": "string"},
}


def result_schema() -> dict[str, Any]:
    """Of all kinds; published as docs/result.schema.json."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"engram.result/{SCHEMA}",
        "description": "result.json, the result of a probe; its arrays are in a file beside it.",
        "type": "object",
        "oneOf": [{"$ref": f"#/$defs/{kind}"} for kind in KINDS],
        "$defs": {
            **{kind: _of(result_class(kind)) for kind in KINDS},
            "an array": _object(ARRAY),
            "provenance": _json_type(Provenance),
        },
    }


def _of(result: type[Result]) -> dict[str, Any]:
    hints = get_type_hints(result)
    plain = [f for f in fields(result) if f.name not in (*result.axes, "provenance")]
    given = [f.name for f in plain if f.default is MISSING]  # those of older files, too
    always = [name for name in result.axes if type(None) not in get_args(hints[name])]
    arrays = {name: _array(axes, result.units.get(name, "")) for name, axes in result.axes.items()}
    properties = {
        "schema": {"const": SCHEMA},
        "kind": {"const": result.kind},
        "summary": {"type": "string"},
        "fields": _object({f.name: _json_type(hints[f.name]) for f in plain}, required=given),
        "arrays": _object(arrays, required=always),
        "arrays_sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "provenance": {"$ref": "#/$defs/provenance"},
    }
    return _object(properties)


def _array(axes: tuple[str, ...], unit: str) -> dict[str, Any]:
    return {
        "$ref": "#/$defs/an array",
        "properties": {"axes": {"const": list(axes)}, "unit": {"const": unit}},
    }


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(properties) if required is None else required,
        "properties": properties,
    }


def _json_type(hint: Any) -> dict[str, Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(hint).json_schema()
