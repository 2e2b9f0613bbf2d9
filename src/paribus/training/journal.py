"""The journal: one JSON object a line, appended as the run goes; a torn last line is dropped, never trusted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .files import write_text

JOURNAL = "journal.jsonl"
"""Its name in the folder of a run."""


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All whole events of the journal up to the first line that is not one."""
    if not path.exists():
        return []
    events = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            event = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(event, dict) or not {"event", "step"} <= event.keys():
            break
        events.append(event)
    return events


class Journal:
    """Appends events; on resuming, forgets those that came after the checkpoint.

    Attributes:
        num_events: how many there are by now.

    Args:
        path: its file; None counts events and writes nothing, as all but one of several processes do.
        kept_events: how many of those in the file at `path` stay.
    """

    def __init__(self, path: Path | None, kept_events: int) -> None:
        self.num_events = kept_events
        self._file = None
        if path is not None:
            kept = read_journal(path)[:kept_events]
            self.num_events = len(kept)
            write_text(path, "".join(json.dumps(event) + "\n" for event in kept))
            self._file = path.open("a")

    def write(self, event: str, step: int, **facts: Any) -> None:
        """Append one event; it reaches the operating system at once."""
        self.num_events += 1
        if self._file is not None:
            self._file.write(json.dumps({"event": event, "step": step, **facts}, allow_nan=False) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Make all events survive a loss of power."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close; what could not be written before, on a full disk, is given up."""
        try:
            self.sync()
        finally:
            if self._file is not None:
                self._file.close()
