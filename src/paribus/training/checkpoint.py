"""Checkpoints: safetensors and JSON, no pickle; a folder that is renamed into place once it is whole.

``checkpoints/00000120/`` holds model.safetensors, optimizer.safetensors and state.json, which is written last and names
the hashes of the others. Where other weights are evaluated than are trained (a moving average, a schedule-free
optimizer), evaluated.safetensors holds those. Loading takes the newest checkpoint whose hashes hold; anything else is
ignored, and removed by the next save.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paribus.optim.packing import pack_optimizer, unpack_optimizer
from paribus.optim.shares import share_as, whole

from .average import Average, evaluated_weights
from .files import read_json, sha256, sync_file, sync_folder, write_json

_KEEP = 2
_UNFINISHED = ".unfinished"
_NEEDED = {"model.safetensors", "optimizer.safetensors"}
_EVALUATED = "evaluated.safetensors"


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
    stability: dict[str, Any] = field(default_factory=dict)
    """What has been seen of it, as JSON."""


@dataclass(frozen=True)
class Contents:
    """What a checkpoint is made of besides progress: by file its tensors, all of them whole, and JSON."""

    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]


def gather(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None = None,
    scaler: torch.amp.GradScaler | None = None,
    *,
    keep: bool = True,
) -> Contents:
    """What a checkpoint holds, in memory that may be the model's; all processes of a run call this together.

    Args:
        optimizer: the bare one, in training mode.
        average: the moving average of the weights, if there is one.
        scaler: what scales the loss in fp16.
        keep: False leaves the tensors out, in processes that do not write.
    """
    packed, facts = pack_optimizer(model, optimizer, keep=keep)
    tensors = {"model.safetensors": _gathered(model, keep), "optimizer.safetensors": packed}
    with evaluated_weights(model, optimizer, average) as differ:
        if differ:  # copied, as the trained weights come back to where these are
            copies = {name: tensor.clone() for name, tensor in _gathered(model, keep).items()}
            tensors[_EVALUATED] = copies
    scaled = None if scaler is None else scaler.state_dict()
    return Contents(tensors, {"optimizer": facts, "scaler": scaled, **_generators(model)})


def save_checkpoint(folder: Path, contents: Contents, progress: Progress) -> None:
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
        hashes = {name: _write(tensors, temporary / name) for name, tensors in contents.tensors.items()}
        write_json(temporary / "state.json", {**asdict(progress), "sha256": hashes, **contents.facts})
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
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    journal_events: float = math.inf,
    average: Average | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Progress:
    """Go on from the newest whole checkpoint: all that `gather` was given is as it was then.

    Args:
        journal_events: events that the journal still has; a checkpoint that needs more is passed over.

    Returns:
        Where the run stands; step 0, and nothing changed, when there is no such checkpoint.

    Raises:
        ValueError: the tensors are not those of `model` or `optimizer`: other code wrote them.
    """
    for path, state in _whole_checkpoints(folder):
        if state["journal_events"] > journal_events:
            continue
        _load_model(path / "model.safetensors", model)
        unpack_optimizer(model, optimizer, load_file(path / "optimizer.safetensors"), state["optimizer"])
        if average is not None:
            average.load(load_file(path / _EVALUATED))
        if scaler is not None:
            scaler.load_state_dict(state["scaler"])
        _set_generators(model, state)
        return Progress(**{field.name: state[field.name] for field in fields(Progress)})
    return Progress()


def load_evaluated(folder: Path, model: nn.Module) -> int:
    """Put the weights that are evaluated and published, of the newest whole checkpoint, into `model`.

    Returns:
        The steps of that checkpoint; 0, and nothing changed, when there is none.

    Raises:
        ValueError: the tensors are not those of `model`: other code wrote them.
    """
    for path, state in _whole_checkpoints(folder):
        _load_model(path / (_EVALUATED if _EVALUATED in state["sha256"] else "model.safetensors"), model)
        return int(state["step"])
    return 0


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first; temporary folders of killed writers begin with a dot and do not count."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.name.isdigit()), reverse=True)


def _whole_checkpoints(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Checkpoints whose hashes hold, newest first, and their state.json."""
    for path in _checkpoints(folder):
        state = read_json(path / "state.json")
        if isinstance(state, dict) and _is_whole(path, state):
            yield path, state


def _is_whole(path: Path, state: dict[str, Any]) -> bool:
    hashes = state.get("sha256", {})
    known = {"torch_rng", "optimizer", "scaler", *(field.name for field in fields(Progress))}
    return (
        known <= state.keys()
        and _NEEDED <= set(hashes) <= {*_NEEDED, _EVALUATED}
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
    tensors = load_file(path)
    own = _distinct(model)
    known = {name: tensor.shape for name, tensor in own.items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != known:
        raise ValueError(
            f"checkpoint '{path.parent}' holds other tensors than this code's model; remove the run to train anew"
        )
    shares = {name: share_as(tensor, own[name]) for name, tensor in tensors.items()}
    model.load_state_dict(shares, strict=False)  # tied weights are stored once


def _gathered(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """The model's tensors, whole and on the CPU; nothing if they are not to be kept."""
    found = {}
    for name, tensor in _distinct(model).items():
        gathered = whole(tensor.detach())
        if keep:
            found[name] = gathered.cpu().contiguous()
    return found


def _distinct(model: nn.Module) -> dict[str, Tensor]:
    """Every distinct tensor once: tied weights are stored under their first name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def _generators(model: nn.Module) -> dict[str, str]:
    """The states of the generators that training draws from, on the CPU and on the model's device."""
    states = {"torch_rng": torch.get_rng_state()}
    device = next(model.parameters()).device
    if device.type == "cuda":
        states["cuda_rng"] = torch.cuda.get_rng_state(device)
    return {name: bytes(state.tolist()).hex() for name, state in states.items()}


def _set_generators(model: nn.Module, state: dict[str, Any]) -> None:
    torch.set_rng_state(_bytes(state["torch_rng"]))
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.set_rng_state(_bytes(state["cuda_rng"]), device)


def _bytes(digits: str) -> Tensor:
    return torch.tensor(bytearray.fromhex(digits), dtype=torch.uint8)
