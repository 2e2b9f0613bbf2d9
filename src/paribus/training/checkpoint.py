"""Checkpoints: safetensors and JSON, no pickle; a folder that is renamed into place once it is whole.

``checkpoints/00000120/`` holds model.safetensors, optimizer.safetensors and state.json, which is written last and names
the hashes of the other two. Loading takes the newest checkpoint whose hashes hold; anything else is ignored, and
removed by the next save.
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .files import read_json, sha256, sync_file, sync_folder, write_json

_KEEP = 2
_UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class Progress:
    """Where a run stands besides its tensors."""

    step: int = 0
    """Steps done."""
    elapsed_seconds: float = 0.0
    batches_sha256: str = ""
    """Rolling hash of all batches consumed."""
    journal_events: int = 0
    """Events in the journal by then; a checkpoint counts only beside a journal that has them."""


def save_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write a checkpoint of `progress.step` steps and remove all but the newest two.

    Raises:
        OSError: it could not be written; the older checkpoints stay.
    """
    final = folder / f"{progress.step:08d}"
    temporary = folder / _UNFINISHED
    # The run's folder is locked: what lies here was left by a process that was killed, or is a damaged checkpoint.
    for left in (temporary, final):
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        hashes = {
            "model.safetensors": _write(_model_tensors(model), temporary / "model.safetensors"),
            "optimizer.safetensors": _write(_optimizer_tensors(model, optimizer), temporary / "optimizer.safetensors"),
        }
        write_json(temporary / "state.json", {**asdict(progress), "sha256": hashes, "torch_rng": _rng_state()})
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder)
    kept = [path for path in _checkpoints(folder) if path <= final][:_KEEP]  # a later one was found damaged
    for path in _checkpoints(folder):
        if path not in kept:
            shutil.rmtree(path)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, journal_events: float = math.inf
) -> Progress:
    """Put the newest whole checkpoint into `model` and `optimizer`; step 0 and nothing changed when there is none.

    Args:
        journal_events: events that the journal still has; a checkpoint that needs more is passed over.

    Raises:
        ValueError: the tensors are not those of `model`: other code wrote them.
    """
    for path in _checkpoints(folder):
        state = read_json(path / "state.json")
        if not isinstance(state, dict) or not _is_whole(path, state) or state["journal_events"] > journal_events:
            continue
        _load_model(path, model)
        if optimizer is not None:
            _load_optimizer(model, optimizer, load_file(path / "optimizer.safetensors"))
            torch.set_rng_state(torch.tensor(bytearray.fromhex(state["torch_rng"]), dtype=torch.uint8))
        return Progress(**{field.name: state[field.name] for field in fields(Progress)})
    return Progress()


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first; temporary folders of killed writers begin with a dot and do not count."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.name.isdigit()), reverse=True)


def _is_whole(path: Path, state: dict[str, Any]) -> bool:
    hashes = state.get("sha256", {})
    files = {"model.safetensors", "optimizer.safetensors"}
    known = {"torch_rng", *(field.name for field in fields(Progress))}
    return (
        known <= state.keys()
        and set(hashes) == files
        and all((path / name).is_file() and sha256(path / name) == digest for name, digest in hashes.items())
    )


def _write(tensors: dict[str, Tensor], path: Path) -> str:
    """Write a safetensors file and return its hash."""
    try:
        save_file(tensors, path)
    except SafetensorError as problem:
        raise OSError(f"checkpoint '{path.parent.parent}' cannot be written: {problem}") from None
    sync_file(path)
    return sha256(path)


def _load_model(path: Path, model: nn.Module) -> None:
    tensors = load_file(path / "model.safetensors")
    known = {name: tensor.shape for name, tensor in _model_tensors(model).items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != known:
        raise ValueError(
            f"checkpoint '{path}' holds other tensors than this code's model; remove the run to train anew"
        )
    model.load_state_dict(tensors, strict=False)  # tied weights are stored once


def _rng_state() -> str:
    return bytes(torch.get_rng_state().tolist()).hex()


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every distinct tensor once: tied weights are stored under their first name."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.detach().cpu().contiguous()
    return tensors


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State tensors as ``<parameter name>/<state key>``."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return tensors


def _load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parameter_name, _, key = name.rpartition("/")
        parameter = parameters[parameter_name]
        optimizer.state[parameter][key] = tensor.to(parameter.device)
