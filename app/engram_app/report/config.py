"""The config file of a report: what to measure, and checks on what is found.

TOML, for example

    twin = "moe-mini"
    tokens = "20K"
    checks = ["lens.settling < 0", "gates.auc.entity > 0.7"]

A check compares a key number of report.json with a limit.
"""

import operator
import re
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engram_app.report.findings import KeyNumber
from engram_model.errors import EngramError, UsageError

OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
FORM = re.compile(r"\s*([\w.]+)\s*(>=|<=|>|<)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")
TYPES: dict[str, tuple[type, ...]] = {
    "twin": (str,),
    "data": (str,),
    "tokens": (str, int),
    "seed": (int,),
    "checks": (list,),
}


class CheckFailed(EngramError):
    """A check of the config does not hold; the report is written."""

    exit_code = 4


@dataclass(frozen=True)
class Check:
    """check: as it was written. value: of the key number; None: the report has no such number."""

    check: str
    value: float | None
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_config(file: Path) -> dict[str, Any]:
    """Options of the report. Raises UsageError: no such file, or not to be understood."""
    try:
        options = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as TOML: {error}") from None
    for name, value in options.items():
        if name not in TYPES:
            raise UsageError(f"{file}: no option {name!r}; there are {', '.join(TYPES)}")
        if not isinstance(value, TYPES[name]) or isinstance(value, bool):
            raise UsageError(f"{file}: {name} = {value!r} is no {TYPES[name][0].__name__}")
    for check in options.get("checks", ()):
        _parsed(check)
    return options


def run_checks(checks: Sequence[str], numbers: Sequence[KeyNumber]) -> list[Check]:
    """Each check with the number that it is about. A number that is not there fails it."""
    values = {number.id: number.value for number in numbers}
    found = []
    for check in checks:
        name, compare, limit = _parsed(check)
        value = values.get(name)
        found.append(Check(check, value, value is not None and compare(value, limit)))
    return found


def refuse_failed(checks: Sequence[Check], where: Path) -> None:
    """Raises CheckFailed with all checks that do not hold, in one line."""
    failed = [
        f"{c.check} (there is no such number)"
        if c.value is None
        else f"{c.check} (is {c.value:.4g})"
        for c in checks
        if not c.passed
    ]
    if failed:
        raise CheckFailed(
            f"{len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}; see {where}"
        )


def _parsed(check: Any) -> tuple[str, Any, float]:
    match = FORM.fullmatch(check) if isinstance(check, str) else None
    if match is None:
        raise UsageError(f"check {check!r}: write NUMBER > LIMIT, such as 'lens.settling < 0'")
    return match[1], OPERATORS[match[2]], float(match[3])
