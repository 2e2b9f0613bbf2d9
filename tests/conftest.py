"""What all tests share: one thread, no network, no state carried from test to test."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
NAN_MEMORY = (TESTS / "contract", TESTS / "unit" / "nn")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Whatever a test draws without a generator of its own is the same in every order of tests."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def uninitialized_memory_is_nan(request: pytest.FixtureRequest) -> Iterator[None]:
    """In the tests of models, what was never written reads as NaN: `torch.empty` usually returns zeros."""
    wanted = any(request.path.is_relative_to(folder) for folder in NAN_MEMORY)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or wanted)  # fills new memory with NaN as well
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small text for all tests that train."""
    from tests import small  # which imports the whole library, and most tests do not

    return small.write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of prepared corpora for all tests that train."""
    return tmp_path_factory.mktemp("cache")
