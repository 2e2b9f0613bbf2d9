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

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..nn.tasks.causal_lm import ParibusForCausalLM
from ..training.files import sync_file, sync_folder
from .card import model_card
from .flatten import AUTO_MAP, ENTRY, flatten

PROOF = "proof.safetensors"
_PROOF_ROWS, _PROOF_TOKENS = 2, 64
_PROOF_TEXT = "Ceteris paribus, naïvely."


class ProofFailed(RuntimeError):
    """What was written does not load, or does not compute what the model computes."""


def publish_model(
    model: ParibusForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    *,
    card: Mapping[str, object],
    name: str,
) -> Path:
    """Write `model` and all code that it needs to the folder `out`, proved to load without this library.

    Args:
        out: absent, empty, or an earlier publication, which is replaced once the new one is proved.
        card: measured facts for the model card: label -> number or short text.
        name: the card's title.

    Returns:
        `out`.

    Raises:
        ValueError: `out` holds something else; the tokenizer has more tokens than the model; or a file of the
            model cannot be published.
        ProofFailed: a bare process could not load it or found other numbers; what was written is kept beside
            `out`, which stays as it was.
    """
    out = out.absolute()
    if out.exists() and not (out.is_dir() and (_is_publication(out) or not any(out.iterdir()))):
        raise ValueError(f"'{out}' exists and is not a published model; choose another folder")
    known = model.config.vocab_size
    if len(tokenizer) > known:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens; the model knows {known}")
    sources, blocks = flatten(model.config.blocks)
    model = copy.deepcopy(model).cpu().eval()
    model.config.blocks = blocks
    model.config.auto_map = dict(AUTO_MAP)
    work = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    work.mkdir(parents=True)
    try:
        for module, text in sources.items():
            (work / f"{module}.py").write_text(text, encoding="utf-8")
        (work / "README.md").write_text(model_card(model, card, name=name, folder=out.name), encoding="utf-8")
        _write_model(model, tokenizer, work)
        _prove(work)
    except ProofFailed:
        raise
    except BaseException:
        shutil.rmtree(work)
        raise
    _put_in_place(work, out)
    return out


def load_published(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal language model and the tokenizer in a Hugging Face folder, by the code in that folder.

    Raises:
        ValueError: the folder holds no model.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"'{folder}' is not a published model: it has no config.json")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True), tokenizer


def _is_publication(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("config.json", PROOF, f"{ENTRY}.py"))


def _write_model(model: ParibusForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Weights, configs, tokenizer and proof."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    # generate() continues each row from its last column. The side is saved only if it was given at the start.
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    _write_proof(model, tokenizer, folder / PROOF)


@torch.no_grad()
def _write_proof(model: ParibusForCausalLM, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Ids and the logits they give here and now, with what the last bits depend on."""
    length = min(_PROOF_TOKENS, model.config.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (_PROOF_ROWS, length), generator=generator)
    text_ids = tokenizer(_PROOF_TEXT)["input_ids"]
    tensors = {"input_ids": ids, "logits": model(ids).logits, "text_ids": torch.tensor(text_ids)}
    facts: dict[str, str] = {
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "text": _PROOF_TEXT,
        "decoded": str(tokenizer.decode(text_ids)),
    }
    save_file(tensors, path, metadata=facts)


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
