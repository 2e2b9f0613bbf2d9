"""How good the model in a folder is on held-out text or images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from paribus.data.batches import Data, held_out
from paribus.data.cache import cache_folder
from paribus.data.images.batches import held_out_images
from paribus.data.images.spec import Images
from paribus.evaluation.bits_per_byte import DocumentBits, bits_per_byte, document_bits
from paribus.evaluation.flow_loss import flow_losses
from paribus.evaluation.image_errors import image_errors
from paribus.evaluation.masked_bits import hide, masked_document_bits

from .form import task_name
from .runs import load_any, open_run

_LONGEST_WINDOW = 1024
"""Tokens; a published folder does not say in what lengths it was trained."""
_MAX_DOCUMENT_BYTES = 8192
_MOST_DOCUMENTS, _MOST_IMAGES = 128, 1000


@dataclass(frozen=True)
class Evaluated:
    """What was measured."""

    metric: str
    """One of `paribus.evaluation.metrics.METRICS`."""
    values: dict[str, float]
    """By corpus or set of images; of several corpora, also of "all" together."""


def evaluate_folder(
    folder: Path, corpora: Sequence[str] | None, images: str | None, split: str, most: int | None
) -> Evaluated:
    """The metric of the task of a run or published model, on held-out documents or images.

    Args:
        corpora: names or paths, for a model of text; None takes the corpora of the run.
        images: a name or path, for a model of images; None takes the images of the run.
        split: "validation" or "test".
        most: documents (None: 128) or images (None: 1,000) at most.

    Raises:
        ValueError: neither kind of folder; a published folder, which knows no data, without any; data of the other
            kind; or images of other classes.
    """
    data: Data | Images | None = None
    if (folder / "run.json").is_file():
        run, model, symbols = open_run(folder)
        data = run.data
    else:
        model, symbols = load_any(folder)
    class_names = symbols if isinstance(symbols, tuple) else None
    of_text = class_names is None
    kind, wrong, option = ("text", images, "--corpus") if of_text else ("images", corpora, "--images")
    if wrong is not None:
        raise ValueError(f"'{folder}' reads {kind}; name some with {option}")
    if data is None and (corpora or images) is None:
        raise ValueError(f"'{folder}' does not say what {kind} it was trained on; name some with {option}")
    if class_names is None:
        return _on_text(model, symbols, _text(folder, data, corpora, model), split, most or _MOST_DOCUMENTS)
    return _on_images(model, class_names, Images(images) if images else data, split, most or _MOST_IMAGES)


def _text(folder: Path, data: Any, corpora: Sequence[str] | None, model: Any) -> Data:
    """What is read: of the run, or in windows that the model can take."""
    if corpora is None:
        assert isinstance(data, Data), "a run of text, as no corpus is named"
        return data
    weights = dict.fromkeys(corpora, 1.0)
    if data is not None:
        return replace(data, corpora=weights)
    length = min(model.config.max_position_embeddings, _LONGEST_WINDOW)
    return Data(weights, tokenizer=str(folder), sequence_length=length)


def _on_text(model: Any, tokenizer: Any, data: Data, split: str, most: int) -> Evaluated:
    documents = held_out(data, split, cache_folder(), most, _MAX_DOCUMENT_BYTES)
    corpora, length = sorted(data.corpora), data.sequence_length
    if task_name(model.config) == "masked_lm":
        hidden = masked_document_bits(model, hide(documents, tokenizer), length)
        return Evaluated("masked_bits_per_byte", _by_corpus(hidden, corpora))
    bits = document_bits(model, documents, length, tokenizer.eos_token_id)
    return Evaluated("bits_per_byte", _by_corpus(bits, corpora))


def _by_corpus(bits: Sequence[DocumentBits], corpora: Sequence[str]) -> dict[str, float]:
    values = {name: bits_per_byte([document for document in bits if document.corpus == name]) for name in corpora}
    return values if len(values) == 1 else {**values, "all": bits_per_byte(bits)}


def _on_images(model: Any, class_names: Sequence[str], data: Any, split: str, most: int) -> Evaluated:
    image = model.config.image_config
    found = held_out_images(data, split, image.size, image.num_channels, cache_folder(), most)
    if found.class_names != tuple(class_names):
        raise ValueError(
            f"images '{data.images}' have the classes {', '.join(found.class_names)}; the model knows "
            f"{', '.join(class_names)}, and the same in the same order are needed"
        )
    if task_name(model.config) == "image_classification":
        errors = image_errors(model, found.pixels, found.classes).errors
        return Evaluated("error_rate", {data.images: errors.mean().item()})

    def velocity(x: Tensor, times: Tensor, classes: Tensor) -> Tensor:
        v: Tensor = model.eval()(x, times, classes).velocity
        return v

    losses = flow_losses(velocity, found.pixels, found.classes)
    return Evaluated("flow_loss", {data.images: losses.mean().item()})
