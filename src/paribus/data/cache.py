"""Folders that are made once, by one process, and never trusted half-written.

A prepared folder has a ``manifest.json`` with the size and SHA-256 of its other files. It is written under a
temporary name and renamed; a lock lets any number of processes ask for the same folder at once. Every file is
hashed whenever the folder is asked for, so that what a power cut loses is noticed and made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def cache_folder() -> Path:
    """Where prepared data lies: the environment's ``PARIBUS_CACHE``, or else ``~/.cache/paribus``."""
    named = os.environ.get("PARIBUS_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "paribus"


def prepared_folder(folder: Path, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The manifest of `folder`, which `write` fills if it is missing or does not match its manifest.

    Args:
        write: writes all files into the folder it is given and returns what the manifest shall say.

    Returns:
        What `write` returned, plus ``files``: the size in bytes and the SHA-256 of every file.
    """
    # First without the lock: a finished cache may be read-only.
    manifest = _sound_manifest(folder)
    if manifest is not None:
        return manifest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / f".{folder.name}.lock"):
        manifest = _sound_manifest(folder)
        if manifest is not None:
            return manifest
        temporary = folder.parent / f".{folder.name}.tmp"
        # Holding the lock, whatever lies here was left behind by a process that was killed.
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            manifest = write(temporary)
            manifest["files"] = {path.name: _describe(path) for path in sorted(temporary.iterdir())}
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return manifest


def stable_hash(value: Any) -> str:
    """The SHA-256 of a JSON value, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the system releases it even when the process is killed."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sound_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, if every file it names is there with its size and hash."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        sound = all(_describe(folder / name) == known for name, known in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if sound else None


def _describe(path: Path) -> dict[str, Any]:
    """Size and hash of one file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}
