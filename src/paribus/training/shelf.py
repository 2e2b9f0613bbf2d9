"""The run folders below a root: listed, compared, removed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .files import read_json
from .folder import differences, locked, outcome, read_record, read_result
from .journal import read_journal
from .run import Run
from .sources import changed_sources


def list_runs(root: Path) -> Iterator[str]:
    """One line a run: name, state, score, tokens; and whether the code changed since."""
    for record_path in sorted(root.glob("*/run.json")):
        folder = record_path.parent
        record = read_json(record_path)
        if not isinstance(record, dict) or "run" not in record:
            yield f"{folder.name:<56} unreadable run.json"
            continue
        yield f"{folder.name:<56} {_state(folder)}{_staleness(record)}"


def compare_runs(folders: Sequence[Path]) -> Iterator[str]:
    """The settings in which the runs differ from the first, then their results.

    Raises:
        ValueError: a folder that is not a run, or runs on data with different manifests.
    """
    records = [read_record(folder) for folder in folders]
    for folder, record in zip(folders[1:], records[1:], strict=True):
        if record["manifests"] != records[0]["manifests"]:
            raise ValueError(f"'{folder}' and '{folders[0]}' were trained on different data; they cannot be compared")
    for folder, record in zip(folders[1:], records[1:], strict=True):
        yield f"{folders[0].name} → {folder.name}"
        for line in differences(records[0]["run"], record["run"]):
            yield f"  {line}"
    for folder in folders:
        yield f"{folder.name:<56} {_state(folder)}"


def remove_run(folder: Path) -> None:
    """Delete a run folder.

    Raises:
        ValueError: it is not a run, or one in progress.
    """
    read_record(folder)
    with locked(folder):
        shutil.rmtree(folder)


def _state(folder: Path) -> str:
    result = read_result(folder)
    if result is None:
        events = read_journal(folder / "journal.jsonl")
        return f"unfinished, {events[-1]['step'] if events else 0:,} steps"
    if result["status"] == "diverged":
        return f"diverged: {outcome(result, 'test')}"
    return f"{outcome(result, 'test')}, {result['tokens']:,} tokens, {result['parameters']:,} parameters"


def _staleness(record: dict[str, Any]) -> str:
    try:
        changed = changed_sources(record["sources"], Run.from_json(record["run"]))
    except (ValueError, OSError):
        return "  [stale: its settings or files no longer exist]"
    return f"  [stale: {len(changed)} source files changed since]" if changed else ""
