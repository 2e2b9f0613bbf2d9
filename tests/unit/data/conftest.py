"""Small corpora, different in content, made anew for each test."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

Write = Callable[..., str]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def write_text(tmp_path: Path) -> Write:
    """Writes a file of seeded sentences, a paragraph a line with blank lines between; gives its path."""

    def write(name: str = "text.txt", paragraphs: int = 400, seed: int = 0) -> str:
        source = random.Random(seed)
        words = ["tree", "river", "stone", "naïve", "über", "水", "cloud", "seven", "🎉", "walks"]
        lines = (" ".join(source.choices(words, k=source.randint(20, 60))) + "." for _ in range(paragraphs))
        path = tmp_path / name
        path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    return write
