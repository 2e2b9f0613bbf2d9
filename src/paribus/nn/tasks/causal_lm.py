"""Causal language modelling: predict the next token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..cache import StateCache
from ..config import ParibusConfig
from ..language import LanguageModel
from ..loss import IGNORE, language_losses


@dataclass
class CausalLMOutput(CausalLMOutputWithPast):
    """What the model returns."""

    losses: dict[str, Tensor] | None = None
    """In training, the parts that `loss` is the sum of: cross_entropy, z_loss, and those of the blocks."""


class ParibusForCausalLM(LanguageModel, GenerationMixin):
    """The backbone and a linear head over the vocabulary, with `generate`."""

    @dataclass(frozen=True)
    class Config:
        """Settings of causal language modelling."""

        prefix: bool = False
        """Whether `prefix_length` may be given: that many first tokens then see one another both ways."""

    causal = True
    _is_stateful = True  # states cannot be cropped: transformers then refuses assisted generation by itself

    def __init__(self, config: ParibusConfig) -> None:
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: StateCache | None = None,
        prefix_length: Tensor | None = None,
        labels: Tensor | None = None,
        targets: Tensor | None = None,
        use_cache: bool = False,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        z_loss: float = 0.0,
    ) -> CausalLMOutput | tuple[Any, ...]:
        """Run the model; arguments not named here are those of the backbone.

        Args:
            labels: [B, T], the input ids themselves; shifted here. -100 carries no loss.
            targets: [B, T], already shifted: the target of each position.
            logits_to_keep: only the last so many positions (or the positions in a tensor); 0 is all.
            return_logits: False leaves the logits out, so that a training step never holds B · T · V numbers.
            output_attentions: not true, which raises ValueError; peft says None.
            z_loss: in training, weight of the mean of log(Σ exp logits)², which keeps logits from drifting.

        Returns:
            loss (mean, nats; in training the sum of `losses`, else the cross entropy alone), logits [B, T, V],
            past_key_values, hidden_states.
        """
        if output_attentions:
            raise ValueError("output_attentions is true; this model returns no attention weights")
        hidden = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            prefix_length=prefix_length,
            use_cache=use_cache,
            output_hidden_states=bool(output_hidden_states),
        )
        x = self.reduced(hidden.last_hidden_state)
        if targets is None and labels is not None:
            targets = functional.pad(labels, (0, 1), value=IGNORE)[:, 1:]
        loss, losses = None, None
        if targets is not None:
            loss, losses = language_losses(x, self.head.weight, targets, hidden.losses, z_loss)
        logits = None
        if return_logits:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.head(x[:, kept])
        output = CausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=hidden.past_key_values,
            hidden_states=hidden.hidden_states,
            losses=losses,
        )
        return output if return_dict is not False else output.to_tuple()

    def _prepare_cache_for_generation(  # type: ignore[override]  # the rest is passed by position and not needed
        self, generation_config: Any, model_kwargs: dict[str, Any], *rest: Any
    ) -> None:
        """Give `generate` a cache of states in place of a cache of keys and values."""
        implementation = generation_config.cache_implementation
        if implementation not in (None, "dynamic"):
            raise ValueError(f"cache_implementation is '{implementation}'; states allow only 'dynamic' or none")
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = StateCache(self.model.num_states)

    @torch.no_grad()
    def state_bytes(self, length: int) -> int:
        """Bytes carried from token to token after `length` tokens, for one sequence, measured."""
        device = self.head.weight.device
        cache = StateCache(self.model.num_states)
        ids = torch.zeros(1, length, dtype=torch.long, device=device)
        self.model(input_ids=ids, past_key_values=cache)
        return cache.num_bytes()
