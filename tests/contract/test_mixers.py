"""Every token mixer keeps every promise of the contract: no skips, no exemptions."""

from __future__ import annotations

import pytest

from paribus.evaluation.contract import CHECKS
from paribus.nn.component import MIXERS


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", MIXERS.names())
def test_mixer(name: str, check: str) -> None:
    CHECKS[check](name)
