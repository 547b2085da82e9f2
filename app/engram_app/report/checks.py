"""Checks of a report: a key number, or an end of its interval, against a limit.

For example "gates.auc > 0.7", or "lens.settling.high < 0".
"""

import operator
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engram_app.report.parts.base import KeyNumber
from engram_model.errors import EngramError, UsageError

OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
FORM = re.compile(r"\s*([\w.-]+)\s*(>=|<=|>|<)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")


class CheckFailed(EngramError):
    """A check of the config does not hold; the report is written."""

    exit_code = 4


@dataclass(frozen=True)
class Check:
    """check: as it was written. value: of the number; None: the report has no such number."""

    check: str
    value: float | None
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_checks(checks: Sequence[str], numbers: Sequence[KeyNumber]) -> list[Check]:
    """Each check with the number that it is about. A number that is not there fails it."""
    values = _values(numbers)
    found = []
    for check in checks:
        name, compare, limit = parse_check(check)
        value = values.get(name)
        found.append(Check(check, value, value is not None and compare(value, limit)))
    return found


def _values(numbers: Sequence[KeyNumber]) -> dict[str, float]:
    """By name; with an interval also its ends, `.low` and `.high`."""
    values = {}
    for number in numbers:
        values[number.id] = number.value
        if number.low is not None and number.high is not None:
            values |= {f"{number.id}.low": number.low, f"{number.id}.high": number.high}
    return values


def refuse_failed(checks: Sequence[Check], numbers: Sequence[KeyNumber], where: Path) -> None:
    """Raises CheckFailed with all checks that do not hold, in one line."""
    failed = [check for check in checks if not check.passed]
    if not failed:
        return
    said = [
        f"{check.check} (no such number)"
        if check.value is None
        else f"{check.check} (is {check.value:.4g})"
        for check in failed
    ]
    unknown = any(check.value is None for check in failed)
    there = f"; the numbers are {', '.join(_values(numbers))}" if unknown else ""
    raise CheckFailed(
        f"{len(failed)} of {len(checks)} checks failed: {'; '.join(said)}{there}; see {where}"
    )


def parse_check(check: Any) -> tuple[str, Any, float]:
    """Name, comparison and limit.

    Raises:
        UsageError: it cannot be understood.
    """
    match = FORM.fullmatch(check) if isinstance(check, str) else None
    try:
        limit = float(match[3]) if match else 0.0
    except ValueError:  # "1.2.3"
        match = None
    if match is None:
        raise UsageError(f"check {check!r}: write NUMBER > LIMIT, such as 'lens.settling < 0'")
    return match[1], OPERATORS[match[2]], limit
