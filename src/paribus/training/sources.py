"""Which code a run used: hashes of the library's files, so that results of changed code are shown as stale."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from paribus.data.batches import Data
from paribus.nn.model_settings import read_model_config

from .run import Run

_PACKAGE = Path(__file__).parent.parent
_LIBRARIES = ("torch", "transformers", "accelerate", "numpy", "safetensors", "tokenizers")
_OPTIONAL = ("flash-linear-attention",)


def source_hashes(run: Run) -> dict[str, str]:
    """SHA-256 of every source file that may decide the numbers of `run`, by path inside the package.

    Of tasks, mixers, channel mixers, residual schemes and sources of data only those count that the run names; a user's
    file keeps its path as given.
    """
    hashes = {}
    for folder in ("nn", "nn/kernels", "data", "optim", "training", "evaluation"):
        for path in sorted((_PACKAGE / folder).glob("*.py")):
            hashes[str(path.relative_to(_PACKAGE))] = _sha256(path)
    for kind, name in sorted(_components(run.model)):
        own = name.endswith(".py")
        hashes[name if own else f"nn/{kind}/{name}.py"] = _sha256(
            Path(name) if own else _PACKAGE / f"nn/{kind}/{name}.py"
        )
    for path in _named_sources(run):
        if path.is_file():  # other data are the user's, which the manifests know
            hashes[str(path.relative_to(_PACKAGE))] = _sha256(path)
    return hashes


def changed_sources(recorded: Mapping[str, str], run: Run) -> list[str]:
    """Files that differ from the recorded ones."""
    now = source_hashes(run)
    return sorted(name for name in {*now, *recorded} if now.get(name) != recorded.get(name))


def environment() -> dict[str, Any]:
    """Versions and machine, as recorded in run.json."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        **{name: version(name) for name in _LIBRARIES},
        **{name: installed for name in _OPTIONAL if (installed := _installed(name)) is not None},
    }


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _components(model: Mapping[str, Any]) -> set[tuple[str, str]]:
    config = read_model_config(model)
    blocks = [config.block(name) for name in config.layer_blocks()]
    named = {("mixers", block.mixer["name"]) for block in blocks}
    named |= {("channels", block.channel["name"]) for block in blocks if block.channel is not None}
    return named | {("residuals", block.residual["name"]) for block in blocks}


def _named_sources(run: Run) -> Iterator[Path]:
    """The files of the task and of the data's sources, as far as they are the library's own."""
    task = read_model_config(run.model).task["name"]
    yield from (_PACKAGE / folder / "tasks" / f"{task}.py" for folder in ("nn", "training"))
    if isinstance(run.data, Data):
        yield from (_PACKAGE / f"data/corpora/{name}.py" for name in sorted(run.data.corpora))
    else:
        yield from sorted((_PACKAGE / "data/images").glob("*.py"))
        yield _PACKAGE / f"data/images/sets/{run.data.images}.py"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
