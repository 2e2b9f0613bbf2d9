"""The folder of a run: who may write in it, what is finished, what is stale."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paribus.evaluation.metrics import METRICS

from .files import read_json, write_json
from .run import SCHEMA_VERSION, Run
from .sources import changed_sources, environment, source_hashes

_RECORD = {"run", "fingerprint", "sources", "environment", "manifests"}


def find_run(root: Path, run: Run) -> Path:
    """The folder of this training below `root`, whatever name it was given; a new one when there is none."""
    fingerprint = run.fingerprint()
    for path in sorted(root.glob(f"*-{fingerprint[:8]}")):
        record = read_json(path / "run.json")
        if isinstance(record, dict) and record.get("fingerprint") == fingerprint:
            return path
    return root / run.folder_name()


def refuse_other_settings(root: Path, run: Run) -> None:
    """Refuse to train under a name that other settings already have.

    Raises:
        ValueError: a folder below `root` has the name of `run` and another fingerprint.
    """
    for path in sorted(root.glob("*/run.json")):
        record = read_json(path)
        if not isinstance(record, dict) or record.get("fingerprint") == run.fingerprint():
            continue
        settings = record.get("run")
        if isinstance(settings, dict) and settings.get("name") == run.name:
            differing = ", ".join(differences(settings, run.to_json())[:3])
            raise ValueError(
                f"run name '{run.name}' is taken by '{path.parent}' with other settings ({differing}); "
                "choose another (name=...), or remove that folder"
            )


def read_record(folder: Path) -> dict[str, Any]:
    """run.json of a run.

    Raises:
        ValueError: `folder` is not a run.
    """
    record = read_json(folder / "run.json")
    if not isinstance(record, dict) or not record.keys() >= _RECORD:
        raise ValueError(f"'{folder}' is not a run: it has no readable run.json")
    return record


def read_result(folder: Path) -> dict[str, Any] | None:
    """result.json of a finished run; None when it is absent or not whole."""
    result = read_json(folder / "result.json")
    return result if isinstance(result, dict) and "status" in result else None


def outcome(result: Mapping[str, Any], split: str) -> str:
    """How a run did on a split, or what diverged in it, in words."""
    if result["status"] == "diverged":
        return str(result["divergence"])
    metric = result["metric"]
    return f"{result['scores'][split][metric]:.4f} {METRICS[metric].title} ({split})"


def open_record(
    folder: Path, run: Run, manifests: dict[str, Any], accept_stale: bool, num_processes: int = 1
) -> dict[str, Any]:
    """The run.json of `folder`, written now if the run is new.

    Args:
        num_processes: how many train it from here on; all numbers that a run has seen are in its environment.

    Raises:
        ValueError: the folder was begun by other code or on other data, and may not be continued silently.
    """
    if not (folder / "run.json").exists():
        new = {
            "schema_version": SCHEMA_VERSION,
            "run": run.to_json(),
            "fingerprint": run.fingerprint(),
            "sources": source_hashes(run),
            "environment": {**environment(), "processes": [num_processes]},
            "manifests": manifests,
        }
        write_json(folder / "run.json", new)
        return new
    record = read_record(folder)
    if record["fingerprint"] != run.fingerprint():
        raise ValueError(f"'{folder}' holds a run with other settings; choose another folder")
    if record["manifests"] != manifests:
        raise ValueError(
            f"'{folder}' was trained on other data (the corpora's manifests differ); remove it to train anew"
        )
    changed = changed_sources(record["sources"], run)
    if changed and not accept_stale:
        shown = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise ValueError(f"'{folder}' is stale: {shown} changed since; remove it to train anew, or pass --accept-stale")
    processes = record["environment"].get("processes", [1])
    if processes[-1] != num_processes:
        record["environment"]["processes"] = [*processes, num_processes]
        write_json(folder / "run.json", record)
    return record


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the lock ends with the process, however it ends.

    Raises:
        ValueError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(f"'{folder}' is being trained by process {file.read().strip() or 'unknown'}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        for left in folder.glob(".*.tmp"):  # by a process that was killed while writing
            left.unlink()
        yield


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """``optimizer.lr: 0.001 → 0.003`` for every leaf that differs."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = []
        for key in sorted({*a, *b}):
            found += differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if a == b else [f"{path}: {a} → {b}"]
