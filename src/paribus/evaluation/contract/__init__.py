"""The contract of components as checks: the tests run them over every file, a user runs them on his own.

Each check takes a registered name, or the path of a user's file, and raises an AssertionError that names the
component, the property and the numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from .channels import CHANNELS_ONLY
from .construction import CONSTRUCTION
from .numerics import NUMERICS
from .semantics import SEMANTICS
from .subjects import CHANNEL, MIXER, Kind

__all__ = ["CHANNEL_CHECKS", "CHECKS", "CheckResult", "run_channel_checks", "run_checks"]

Check = Callable[[str], None]


def _of_kind(kind: Kind) -> dict[str, Check]:
    return {check: partial(function, kind) for check, function in {**NUMERICS, **CONSTRUCTION}.items()}


CHECKS: dict[str, Check] = {**SEMANTICS, **_of_kind(MIXER)}
"""The contract of token mixers."""
CHANNEL_CHECKS: dict[str, Check] = {**CHANNELS_ONLY, **_of_kind(CHANNEL)}
"""The contract of channel mixers."""


@dataclass(frozen=True)
class CheckResult:
    """What one check found."""

    check: str
    passed: bool
    message: str
    """Why it did not pass; empty if it did."""
    seconds: float


def run_checks(name: str) -> list[CheckResult]:
    """Run the contract on the token mixer `name`, a registered name or a file's path; all checks are run.

    Raises:
        ValueError: there is no such mixer, or its file cannot be used.
    """
    return _run(MIXER, name, CHECKS)


def run_channel_checks(name: str) -> list[CheckResult]:
    """The same for a channel mixer."""
    return _run(CHANNEL, name, CHANNEL_CHECKS)


def _run(kind: Kind, name: str, checks: Mapping[str, Check]) -> list[CheckResult]:
    kind.registry.component(name, kind.base)
    results = []
    for check, function in checks.items():
        start, message = time.perf_counter(), ""
        try:
            function(name)
        except Exception as problem:  # a component under test may raise anything; that is its result
            kind_of_problem = "" if isinstance(problem, AssertionError) else f"{type(problem).__name__}: "
            message = f"{kind_of_problem}{problem}"
        results.append(CheckResult(check, not message, message, time.perf_counter() - start))
    return results
