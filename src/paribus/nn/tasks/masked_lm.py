"""Masked language modelling: predict tokens that were hidden from their surroundings on both sides."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import MaskedLMOutput as _MaskedLMOutput

from ..config import ParibusConfig
from ..language import LanguageModel
from ..loss import IGNORE, language_losses


@dataclass
class MaskedLMOutput(_MaskedLMOutput):
    """What the model returns."""

    losses: dict[str, Tensor] | None = None
    """In training, the parts that `loss` is the sum of: cross_entropy, z_loss, and those of the blocks."""


class ParibusForMaskedLM(LanguageModel):
    """The backbone and a linear head over the vocabulary (Devlin et al. 2018, arXiv:1810.04805, section 3.1).

    Differs: BERT has one more map, activation and norm before its head; here the backbone's last norm is all.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of masked language modelling.

        Raises:
            ValueError: a negative token.
        """

        mask_token: int = 253
        """The id that hides a token; 253 is that of the byte tokenizer."""

        def __post_init__(self) -> None:
            if self.mask_token < 0:
                raise ValueError(f"task masked_lm: mask_token is {self.mask_token}; the number of a token is needed")

    causal = False

    def __init__(self, config: ParibusConfig) -> None:
        super().__init__(config)
        if self.settings.mask_token >= config.vocab_size:
            raise ValueError(
                f"task masked_lm: mask_token is {self.settings.mask_token}; vocab_size is {config.vocab_size}, "
                "and a smaller number is needed"
            )
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        return_logits: bool = True,
        output_hidden_states: bool | None = None,
        z_loss: float = 0.0,
    ) -> MaskedLMOutput:
        """Run the model; arguments not named here are those of the backbone.

        Args:
            labels: [B, T], the true token where one is to be predicted, -100 elsewhere.
            return_logits: False leaves the logits out, so that a training step never holds B · T · V numbers.
            z_loss: in training, weight of the mean of log(Σ exp logits)², which keeps logits from drifting.

        Returns:
            loss (mean, nats; in training the sum of `losses`, else the cross entropy alone), logits [B, T, V],
            hidden_states.
        """
        hidden = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=bool(output_hidden_states),
        )
        x = hidden.last_hidden_state
        loss, losses = None, None
        if labels is not None:
            places = (labels.flatten() != IGNORE).nonzero()[:, 0]  # few of all: the head reads no others
            asked = self.reduced(x.flatten(0, 1).index_select(0, places))
            targets = labels.flatten()[places]
            loss, losses = language_losses(asked[None], self.head.weight, targets[None], hidden.losses, z_loss)
        return MaskedLMOutput(
            loss=loss,
            logits=self.head(self.reduced(x)) if return_logits else None,
            hidden_states=hidden.hidden_states,
            losses=losses,
        )
