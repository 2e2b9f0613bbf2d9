"""A causal language model: a tokenizer that pads at the left, and `generate`."""

from __future__ import annotations

from ..form import TextForm


class CausalLM(TextForm):
    """Loaded by AutoModelForCausalLM."""

    what = "A causal language model"
    pipeline_tag = "text-generation"
    auto_class = "AutoModelForCausalLM"
    padding_side = "left"  # generate() continues each row from its last column
    proved = "token ids and the logits that they must give"
    checked = "generated the same tokens with and without cache"
