"""What a model of any task makes of a prompt."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from paribus.evaluation.picture import grid
from paribus.evaluation.sample_text import sample_text

from .form import task_name
from .runs import load_any

_COLUMNS = 10


def generate(folder: Path, prompt: str, *, num_tokens: int = 200, seed: int = 0, out: Path | None = None) -> str:
    """What the run or published model in `folder` makes of `prompt`.

    A causal language model continues it, a masked one fills in its mask tokens. A generator of images draws one image
    for each class that it names, separated by commas, into the PNG file `out`.

    Returns:
        The text, or the name of the file.

    Raises:
        ValueError: neither a run nor a published model; a prompt that does not fit; a classifier, which makes nothing;
            `out` for text, or none for images.
    """
    model, symbols = load_any(folder)
    task = task_name(model.config)
    if task == "image_classification":
        raise ValueError(f"'{folder}' classifies images and makes nothing; `paribus evaluate` says how well it does")
    if (out is None) == (task == "image_generation"):
        makes, needed = ("images", "a file is needed: --out FILE.png") if out is None else ("text", "leave out --out")
        raise ValueError(f"'{folder}' makes {makes}; {needed}")
    if out is not None:
        return str(_draw(model, symbols, prompt, seed, out))
    if task == "masked_lm":
        return _fill(model, symbols, prompt)
    return sample_text(model, symbols, prompt, num_tokens, seed)


@torch.no_grad()
def _fill(model: Any, tokenizer: Any, prompt: str) -> str:
    """The prompt, each mask token replaced by the likeliest token, all at once."""
    ids = torch.tensor([tokenizer(prompt, split_special_tokens=False)["input_ids"]])
    hidden = ids == tokenizer.mask_token_id
    if not hidden.any():
        raise ValueError(f"the prompt hides nothing; write {tokenizer.mask_token} for each token to be filled in")
    if ids.shape[1] > model.config.max_position_embeddings:
        raise ValueError(
            f"the prompt has {ids.shape[1]} tokens; the model reads {model.config.max_position_embeddings}"
        )
    likeliest = model.eval()(input_ids=ids).logits.argmax(-1)
    text: str = tokenizer.decode(torch.where(hidden, likeliest, ids)[0])
    return text


@torch.no_grad()
def _draw(model: Any, names: Sequence[str], prompt: str, seed: int, out: Path) -> Path:
    """One image of each class that the prompt names, as one picture."""
    classes = torch.tensor([_class_number(part.strip(), names) for part in prompt.split(",")])
    image = model.config.image_config
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(classes), image.num_channels, image.size, image.size, generator=generator)
    images = model.eval().sample(noise, classes, **model.config.sampling)
    out.write_bytes(base64.b64decode(grid(images, _COLUMNS).partition(",")[2]))
    return out


def _class_number(text: str, names: Sequence[str]) -> int:
    if text in names:
        return list(names).index(text)
    if text.isdigit() and int(text) < len(names):
        return int(text)
    raise ValueError(f"the prompt names the class '{text}'; allowed: 0 to {len(names) - 1}, {', '.join(names)}")
