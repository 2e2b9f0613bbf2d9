"""The contract of components as checks: the tests run them over every file, a user runs them on his own.

Each check takes a registered name, or the path of a user's file, and raises an AssertionError that names the
component, the property and the numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from paribus.nn.channel import Channel
from paribus.nn.component import CHANNELS
from paribus.nn.mixer import Mixer

from .channels import ALONE, CHANNELS_ONLY
from .construction import CONSTRUCTION
from .numerics import NUMERICS
from .semantics import NEIGHBOUR_SEMANTICS, SEMANTICS
from .subjects import CHANNEL, MIXER, NEIGHBOUR, Check, Kind
from .tasks import TASK_CHECKS

__all__ = [
    "CHANNEL_CHECKS",
    "CHECKS",
    "NEIGHBOUR_CHECKS",
    "CheckResult",
    "channel_checks",
    "run_channel_checks",
    "run_checks",
]


def _of_kind(kind: Kind, checks: Mapping[str, Check]) -> dict[str, Callable[[str], None]]:
    all_checks = {**checks, **NUMERICS, **CONSTRUCTION, **TASK_CHECKS}
    return {check: partial(function, kind) for check, function in all_checks.items()}


CHECKS = _of_kind(MIXER, SEMANTICS)
"""The contract of token mixers."""
CHANNEL_CHECKS = _of_kind(CHANNEL, {**CHANNELS_ONLY, **ALONE})
"""The contract of channel mixers that look at each token alone."""
NEIGHBOUR_CHECKS = _of_kind(NEIGHBOUR, {**CHANNELS_ONLY, **NEIGHBOUR_SEMANTICS})
"""The contract of channel mixers that look at neighbouring tokens: that of token mixers, but for how far they see."""


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
    MIXER.registry.component(name, MIXER.base)
    return _run(name, CHECKS)


def channel_checks(name: str) -> dict[str, Callable[[str], None]]:
    """The contract that the channel mixer `name` keeps; errors as in `run_checks`."""
    alone = issubclass(CHANNELS.component(name, Mixer), Channel)
    return CHANNEL_CHECKS if alone else NEIGHBOUR_CHECKS


def run_channel_checks(name: str) -> list[CheckResult]:
    """The same as `run_checks` for a channel mixer."""
    return _run(name, channel_checks(name))


def _run(name: str, checks: Mapping[str, Callable[[str], None]]) -> list[CheckResult]:
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
