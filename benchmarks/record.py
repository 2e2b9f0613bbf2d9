"""Results as dated rows of a CSV file, each with the machine and the versions that made it."""

from __future__ import annotations

import csv
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from paribus.training.sources import environment

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """When and on what: processor, cores, threads, versions and the commit (with + when files differ from it)."""
    facts = environment()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "processor": facts["processor"],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": facts["cpu_capability"],
        "torch": facts["torch"],
        "transformers": facts["transformers"],
        "commit": _commit(),
    }


def append_rows(name: str, rows: list[dict[str, Any]]) -> None:
    """Append `rows`, all with the same keys, to results/NAME.csv.

    Raises:
        ValueError: the file has other columns.
    """
    path = RESULTS / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    columns = list(rows[0])
    with path.open("a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        header = next(csv.reader(file), None)
        if header not in (None, columns):
            raise ValueError(f"{path.name} has the columns {header}; these results have {columns}")
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if header is None:
            writer.writeheader()
        writer.writerows(rows)


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
