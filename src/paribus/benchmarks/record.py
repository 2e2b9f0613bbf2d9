"""Results as lines on the screen and as dated rows of a CSV file, each with the machine and versions that made it."""

from __future__ import annotations

import csv
import io
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from paribus.training.files import write_text
from paribus.training.sources import environment

_FLAGS = ("avx512_bf16", "amx_bf16")


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
        "bf16_instructions": bf16_instructions(),
    }


def bf16_instructions() -> str:
    """The processor's instructions for bfloat16 products, as Linux lists them; "none" if there are none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return " ".join(flag for flag in _FLAGS if flag in flags) or "none"


def show(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Print `columns` of `rows`, numbers to the right."""
    lines = [columns, *(tuple(_cell(row[column]) for column in columns) for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)), flush=True)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def append_rows(results: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Append `rows` with the machine's facts to NAME.csv in `results`; columns that older rows lack are empty there."""
    path = results / f"{name}.csv"
    facts = machine()
    old: list[dict[str, Any]] = []
    if path.exists():
        old = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    every = [*old, *({**row, **facts} for row in rows)]
    columns = list(dict.fromkeys(column for row in every for column in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(every)
    results.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def _commit() -> str:
    """The commit of this package's own sources; empty where they are installed without git."""
    folder = Path(__file__).parent
    own = ["git", "ls-files", "--error-unmatch", Path(__file__).name]
    describe = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        subprocess.run(own, cwd=folder, capture_output=True, check=True)
        return subprocess.run(describe, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
