"""What a report is to measure, from a config or from Python.

TOML, for example

    twin = "moe-mini"
    tokens = "20K"
    probes = ["gates", "lens", "suppress"]
    checks = ["lens.settling < 0", "gates.auc.entity > 0.7"]

    [suppress]
    how = "shuffle"
    items = 40

A table holds the options of the probe that it is named after: the fields of its part.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from engram_app.console import number
from engram_app.report.checks import parse_check
from engram_app.report.parts import DEFAULT, NAMES, part_class
from engram_app.report.parts.base import Count, Part, Tokens
from engram_model.errors import UsageError

DEFAULT_DATA = "world:?seed=0&split=valid&tokens=40K"
TYPES: dict[str, type | UnionType] = {
    "twin": str,
    "data": str,
    "tokens": str | int,
    "seed": int,
    "probes": list,
    "checks": list,
}


@dataclass(frozen=True)
class Spec:
    """What was asked for.

    Attributes:
        tokens: most tokens of the corpus to read; the last document is read whole.
        parts: in the order of the page.
        asked: names of the parts that were asked for, in `probes` or by a table of options; the
            others are the default's.
    """

    checkpoint: str
    twin: str | None
    data: str
    tokens: int
    seed: int
    parts: tuple[Part, ...]
    asked: frozenset[str] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """As in report.json."""
        plain = {n: getattr(self, n) for n in ("checkpoint", "twin", "data", "tokens", "seed")}
        return {**plain, "probes": {part.name: asdict(part) for part in self.parts}}


def read_config(file: Path) -> dict[str, Any]:
    """Options of the report, and `options`: the tables by name.

    Raises:
        UsageError: no such file, or not to be understood.
    """
    try:
        given = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as TOML: {error}") from None
    tables = {name: value for name, value in given.items() if isinstance(value, dict)}
    plain = {name: value for name, value in given.items() if name not in tables}
    for name, value in plain.items():
        if name not in TYPES:
            raise UsageError(f"{file}: no option {name!r}; there are {', '.join(TYPES)}")
        if not isinstance(value, TYPES[name]) or isinstance(value, bool):
            wanted = getattr(TYPES[name], "__name__", "number of tokens")
            raise UsageError(f"{file}: {name} = {value!r} is no {wanted}")
    for check in plain.get("checks", ()):
        parse_check(check)
    try:
        compose(plain.get("probes"), tables)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None
    return {**plain, "options": tables}


def compose(
    probes: Iterable[str] | None, options: Mapping[str, Mapping[str, Any]]
) -> tuple[tuple[Part, ...], frozenset[str]]:
    """The parts with their options, and the names of those that were asked for.

    Without `probes`: those that a report has by default, and those that have options.

    Raises:
        UsageError: no such probe or option, or a value that it cannot have.
    """
    names = (*DEFAULT, *options) if probes is None else tuple(dict.fromkeys(probes))
    for name in (*names, *options):
        if name not in NAMES:
            raise UsageError(f"no probe {name!r}; there are {', '.join(NAMES)}")
    if idle := [name for name in options if name not in names]:
        raise UsageError(f"[{idle[0]}] has options, but {idle[0]} is not among the probes")
    if not names:
        raise UsageError(f"probes is empty; there are {', '.join(NAMES)}")
    parts = tuple(_part(part_class(name), options.get(name, {})) for name in NAMES if name in names)
    return parts, frozenset(options if probes is None else names)


def _part(kind: type[Part], options: Mapping[str, Any]) -> Part:
    hints = get_type_hints(kind, include_extras=True)
    known = [field.name for field in fields(kind)]
    for name in options:
        if name not in known:
            has = f"its options are {', '.join(known)}" if known else "it has no options"
            raise UsageError(f"[{kind.name}] has no option {name!r}; {has}")
    return kind(
        **{
            name: _value(f"[{kind.name}] {name} = {value!r}", hints[name], value)
            for name, value in options.items()
        }
    )


def _value(said: str, hint: Any, value: Any) -> Any:
    """An option as its field has it."""
    if hint == Tokens:
        if isinstance(value, str):
            return number(value)
        return _value(said, int, value)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            choices = ", ".join(repr(choice) for choice in get_args(hint))
            raise UsageError(f"{said}: use one of {choices}")
        return value
    if get_origin(hint) is tuple:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_value(said, get_args(hint)[0], one) for one in values)
    kind, least = (int, 1) if hint == Count else (hint, 0)
    if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
        raise UsageError(f"{said} is no {kind.__name__}")
    if kind is int and value < least:
        raise UsageError(f"{said}: use {least} or more")
    return value
