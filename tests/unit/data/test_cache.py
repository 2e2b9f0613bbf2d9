"""Prepared folders: made once, whole or not at all, and made again when damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paribus.data.cache import cache_folder, prepared_folder


class Writer:
    """Writes one file and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, place: Path) -> dict[str, Any]:
        self.calls += 1
        (place / "a.bin").write_bytes(b"abc")
        return {"name": "a"}


def test_it_is_written_once(tmp_path: Path) -> None:
    write = Writer()
    first = prepared_folder(tmp_path / "x" / "y", write)
    assert first == prepared_folder(tmp_path / "x" / "y", write)
    assert first["name"] == "a" and first["files"]["a.bin"]["bytes"] == 3
    assert write.calls == 1


@pytest.mark.parametrize("damage", ["shorter", "same size", "missing", "no manifest", "half a manifest"])
def test_a_damaged_folder_is_written_again(tmp_path: Path, damage: str) -> None:
    folder, write = tmp_path / "y", Writer()
    sound = prepared_folder(folder, write)
    manifest = folder / "manifest.json"
    if damage == "shorter":
        (folder / "a.bin").write_bytes(b"ab")
    elif damage == "same size":
        (folder / "a.bin").write_bytes(b"abd")
    elif damage == "missing":
        (folder / "a.bin").unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes()[:20])
    assert prepared_folder(folder, write) == sound
    assert write.calls == 2 and (folder / "a.bin").read_bytes() == b"abc"


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(place: Path) -> dict[str, Any]:
        (place / "a.bin").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        prepared_folder(tmp_path / "y", fail)
    assert [path.name for path in tmp_path.iterdir()] == [".y.lock"]


def test_what_a_killed_process_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".y.tmp").mkdir()
    (tmp_path / ".y.tmp" / "half").write_bytes(b"half")
    assert set(prepared_folder(tmp_path / "y", Writer())["files"]) == {"a.bin"}


def test_the_environment_names_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PARIBUS_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("PARIBUS_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "paribus"
