"""Tests that need a CUDA GPU; `make test` leaves them out, `make test-gpu` runs them."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    """Where the answers of the CPU are looked for again; without a GPU, one clear line."""
    if not torch.cuda.is_available():
        pytest.fail("needs a CUDA GPU, and torch sees none; run these tests by `make test-gpu`", pytrace=False)
    return torch.device("cuda")
