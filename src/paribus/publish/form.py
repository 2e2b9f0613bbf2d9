"""The form in which the models of a task are published.

A form is one file of ``tasks``, and beside it, under the same name, what the model card says of use.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..data.images.pixels import INSTALL
from ..nn.config import ParibusConfig
from ..nn.registry import Registry
from ..nn.task import TaskModel

FORMS = Registry("tasks", __name__.rpartition(".")[0], Path(__file__).parent)
PROOF_ROWS = 2
PROOF_TEXT = "Ceteris paribus, naïvely."
_PROOF_TOKENS = 64
_PLAIN = "causal_lm"

Symbols = PreTrainedTokenizerBase | Sequence[str]
"""What the numbers of a model stand for: the tokenizer of one that reads text, else the names of the classes."""


class Form(ABC):
    """How one model is published.

    Args:
        model: the one that is written; its config may be changed.
        symbols: what its numbers stand for.

    Raises:
        ValueError: symbols that are not the model's, a model that cannot be published in this form, or a package
            that this needs and that is not installed.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """Optional packages, as they are imported."""
    what: ClassVar[str]
    """Such a model, as a card calls it."""
    packages: ClassVar[str] = "`torch` and `transformers>=5.8,<6`"
    library: ClassVar[str] = "transformers"
    """What loads the folder."""
    pipeline_tag: ClassVar[str]
    auto_class: ClassVar[str]
    """Which class of transformers loads the model."""
    code: ClassVar[str] = "."
    """The folder, within what is published, of the model and its code."""
    proved: ClassVar[str]
    """What the proof holds, as a card says it."""
    checked: ClassVar[str]
    """What was done besides comparing that."""

    def __init__(self, model: TaskModel, symbols: Any) -> None:
        for package in self.needs:
            if find_spec(package) is None:
                raise ValueError(f"{self.what} cannot be published: the package {package} is missing; {INSTALL}")
        self.model = model
        self.symbols = symbols

    @abstractmethod
    def facts(self) -> dict[str, object]:
        """What the card's table says of what the model reads: label -> number or short text."""

    def commands(self) -> dict[str, object]:
        """What the card's commands name, besides the folder."""
        return {}

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write what stands beside model and code; the model's config is written afterwards."""

    @abstractmethod
    def proof(self, folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Inputs and what they give here and now, and what else `prove.py` has to know of them.

        Args:
            folder: where everything else has been written.
        """

    @staticmethod
    @abstractmethod
    def read_symbols(folder: Path, config: ParibusConfig) -> Symbols:
        """The symbols in the published `folder`."""


class TextForm(Form):
    """Of models that read text."""

    padding_side: ClassVar[str]
    split_special_tokens: ClassVar[bool | None] = None
    """Whether text that spells a special token stays text; None: as the tokenizer has it."""

    def __init__(self, model: TaskModel, symbols: PreTrainedTokenizerBase) -> None:
        super().__init__(model, copy.deepcopy(symbols))
        tokens, known = len(symbols), model.config.vocab_size
        if tokens > known:
            raise ValueError(f"the tokenizer has {tokens} tokens; the model knows {known}")

    def facts(self) -> dict[str, object]:
        config = self.model.config
        return {
            "configured for sequences up to, tokens": config.max_position_embeddings,
            "vocabulary, tokens": config.vocab_size,
        }

    def write(self, folder: Path) -> None:
        tokenizer = self.symbols
        tokenizer.model_max_length = min(tokenizer.model_max_length, self.model.config.max_position_embeddings)
        # These are saved only if they were given at the start.
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = self.padding_side
        if self.split_special_tokens is not None:
            tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = self.split_special_tokens
        tokenizer.save_pretrained(folder)

    def proof(self, folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        config = self.model.config
        length = min(_PROOF_TOKENS, config.max_position_embeddings)
        ids = torch.randint(config.vocab_size, (PROOF_ROWS, length), generator=torch.Generator().manual_seed(0))
        text_ids = self.symbols(PROOF_TEXT)["input_ids"]
        tensors = {"input_ids": ids, "logits": self.model(ids).logits, "text_ids": torch.tensor(text_ids)}
        return tensors, {"text": PROOF_TEXT, "decoded": str(self.symbols.decode(text_ids))}

    @staticmethod
    def read_symbols(folder: Path, config: ParibusConfig) -> Symbols:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        return tokenizer


class ImageForm(Form):
    """Of models that read images; their config gets the names of the classes."""

    def __init__(self, model: TaskModel, symbols: Sequence[str]) -> None:
        super().__init__(model, tuple(symbols))
        known = model.settings.num_classes
        if len(self.symbols) != known or len(set(self.symbols)) != known:
            raise ValueError(
                f"the classes are called {', '.join(map(repr, self.symbols))}; the model knows {known}, "
                "and as many different names are needed"
            )
        model.config.id2label = dict(enumerate(self.symbols))
        model.config.label2id = {name: number for number, name in enumerate(self.symbols)}

    def facts(self) -> dict[str, object]:
        image = self.model.config.image_config
        return {
            "images": f"{image.size} x {image.size} pixels of {image.num_channels} channels, in patches of "
            f"{image.patch_size} x {image.patch_size}",
            "classes": f"{len(self.symbols)}: {', '.join(self.symbols)}",
        }

    def commands(self) -> dict[str, object]:
        image = self.model.config.image_config
        return {"size": image.size, "num_channels": image.num_channels, "last_class": len(self.symbols) - 1}

    @staticmethod
    def read_symbols(folder: Path, config: ParibusConfig) -> Symbols:
        names: Any = config.id2label
        return tuple(names[number] for number in sorted(names))


def task_name(config: Any) -> str:
    """The task of a model's config; one that is not of this library is taken for a causal language model's."""
    return config.task["name"] if config.model_type == ParibusConfig.model_type else _PLAIN
