"""A trained model as a Hugging Face folder: written beside its place, proved, then renamed."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig

from ..nn.task import TaskModel
from ..training.files import sync_file, sync_folder
from .card import model_card
from .flatten import ENTRY, flatten
from .form import FORMS, Form, Symbols, task_name

PROOF = "proof.safetensors"


class ProofFailed(RuntimeError):
    """What was written does not load, or does not compute what the model computes."""


def publish_model(model: TaskModel, symbols: Symbols, out: Path, *, card: Mapping[str, object], name: str) -> Path:
    """Write `model` and all code that it needs to the folder `out`, proved to load without this library.

    Args:
        symbols: what the model's numbers stand for: the tokenizer of a model of text, the names of the classes of a
            model of images.
        out: absent, empty, or an earlier publication, which is replaced once the new one is proved.
        card: measured facts for the model card: label -> number or short text.
        name: the card's title.

    Returns:
        `out`.

    Raises:
        ValueError: `out` holds something else; the symbols are not the model's; a file of the model cannot be
            published; or a package that this task needs is not installed.
        ProofFailed: a bare process could not load it or found other numbers; what was written is kept beside
            `out`, which stays as it was.
    """
    out = out.absolute()
    if out.exists() and not (out.is_dir() and (_is_publication(out) or not any(out.iterdir()))):
        raise ValueError(f"'{out}' exists and is not a published model; choose another folder")
    task = model.config.task["name"]
    sources, blocks = flatten(task, model.config.blocks)
    model = copy.deepcopy(model).cpu().eval()
    model.config.blocks = blocks
    form: Form = FORMS.component(task, Form)(model, symbols)
    work = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    code = work / form.code
    code.mkdir(parents=True)
    try:
        for module, text in sources.items():
            (code / f"{module}.py").write_text(text, encoding="utf-8")
        (work / "README.md").write_text(model_card(form, card, name=name, folder=out.name), encoding="utf-8")
        _write_model(form, work)
        _prove(work)
    except ProofFailed:
        raise
    except BaseException:
        shutil.rmtree(work)
        raise
    _put_in_place(work, out)
    return out


def load_published(folder: Path) -> tuple[Any, Any]:
    """The model in a Hugging Face folder, by the code in that folder, and what its numbers stand for.

    Returns:
        The model, and its tokenizer or the names of its classes. A folder that was not published from here is taken
        for a causal language model.

    Raises:
        ValueError: the folder holds no model.
    """
    code = folder / ("denoiser" if (folder / "model_index.json").is_file() else ".")
    if not (code / "config.json").is_file():
        raise ValueError(f"'{folder}' is not a published model: it has no config.json")
    config = AutoConfig.from_pretrained(code, trust_remote_code=True)
    form: type[Form] = FORMS.component(task_name(config), Form)
    model = getattr(transformers, form.auto_class).from_pretrained(code, trust_remote_code=True)
    return model, form.read_symbols(folder, model.config)


def _is_publication(folder: Path) -> bool:
    return (folder / PROOF).is_file() and any(
        (place / f"{ENTRY}.py").is_file() for place in (folder, folder / "denoiser")
    )


@torch.no_grad()
def _write_model(form: Form, folder: Path) -> None:
    """Weights, configs, what stands beside them, and the proof with what its last bits depend on."""
    classes = {"AutoConfig": "ParibusConfig", "AutoModel": "ParibusModel"}
    classes[form.auto_class] = type(form.model).__name__
    form.model.config.auto_map = {auto_class: f"{ENTRY}.{name}" for auto_class, name in classes.items()}
    form.write(folder)
    form.model.save_pretrained(folder / form.code)
    tensors, facts = form.proof(folder)
    known = {
        "task": form.model.config.task["name"],
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / PROOF, metadata=known | facts)


def _prove(folder: Path) -> None:
    """Run `prove.py` on `folder` in a process of its own."""
    script = Path(__file__).with_name("prove.py")
    command = [sys.executable, "-I", str(script), str(folder), str(folder / PROOF)]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode:
        output = (result.stderr + result.stdout).strip()
        reason = output.splitlines()[-1] if output else f"exit status {result.returncode}"
        log = folder / "proof.log"
        log.write_text(output, encoding="utf-8")
        raise ProofFailed(f"the published model fails its proof: {reason} (see '{log}')")


def _put_in_place(work: Path, out: Path) -> None:
    """Rename `work` to `out`, removing an earlier publication there."""
    for path in work.rglob("*"):
        if path.is_file():
            path.chmod(work.stat().st_mode & 0o666)  # weights were written for the owner alone
            sync_file(path)
    sync_folder(work)
    earlier = work.with_name(f"{work.name}.earlier")
    if out.exists():
        os.rename(out, earlier)
    os.rename(work, out)
    sync_folder(out.parent)
    if earlier.exists():
        shutil.rmtree(earlier)
