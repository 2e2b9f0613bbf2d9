"""A masked language model: a tokenizer that reads its mask token in text, and the pipeline fill-mask."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from paribus.nn.task import TaskModel

from ..form import TextForm


class MaskedLM(TextForm):
    """Loaded by AutoModelForMaskedLM.

    Raises:
        ValueError: the tokenizer's mask token is not the one that hides tokens from the model.
    """

    what = "A masked language model, which fills in hidden tokens,"
    pipeline_tag = "fill-mask"
    auto_class = "AutoModelForMaskedLM"
    padding_side = "right"
    split_special_tokens = False  # else the mask token, written in a text, would stay text
    proved = "token ids and the logits that they must give"
    checked = "filled a hidden token through the pipeline"

    def __init__(self, model: TaskModel, symbols: PreTrainedTokenizerBase) -> None:
        super().__init__(model, symbols)
        found, needed = symbols.mask_token_id, model.settings.mask_token
        if found != needed:
            raise ValueError(f"the tokenizer's mask token is {found}; the model's is {needed}, and they must be equal")

    def proof(self, folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors, facts = super().proof(folder)
        text = f"a{self.symbols.mask_token}b"
        ids = torch.tensor([self.symbols(text)["input_ids"]])
        (place,) = (ids[0] == self.symbols.mask_token_id).nonzero()[:, 0]
        tensors["filled"] = self.model(ids).logits[0, place].softmax(-1)
        return tensors, {**facts, "masked": text}
