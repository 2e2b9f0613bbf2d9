"""Every channel mixer keeps every promise of its contract."""

from __future__ import annotations

import pytest

from paribus.evaluation.contract import CHANNEL_CHECKS
from paribus.nn.component import CHANNELS


@pytest.mark.parametrize("check", CHANNEL_CHECKS)
@pytest.mark.parametrize("name", CHANNELS.names())
def test_channel(name: str, check: str) -> None:
    CHANNEL_CHECKS[check](name)
