"""One layer: a norm and a residual around the token mixer, and around the channel mixer."""

from __future__ import annotations

from torch import Tensor, nn

from .component import make_channel, make_mixer
from .config import ParibusConfig
from .mixer import Context, Placement
from .norm import make_norm
from .state import State


class Block(nn.Module):
    """Pre-norm block: x += mixer(norm(x)); x += channel(norm(x)) (Xiong et al. 2020, arXiv:2002.04745)."""

    def __init__(self, config: ParibusConfig, name: str, layer: int) -> None:
        super().__init__()
        block = config.block(name)
        placement = Placement(
            width=config.hidden_size,
            layer=layer,
            num_layers=config.num_hidden_layers,
            causal=config.causal,
            max_length=config.max_position_embeddings,
        )
        self.mixer_norm = make_norm(block.norm, config.hidden_size)
        self.mixer = make_mixer(block.mixer, placement, f"block '{name}': mixer")
        self.channel_norm = make_norm(block.norm, config.hidden_size)
        self.channel = make_channel(block.channel, placement, f"block '{name}': channel")

    def forward(
        self, x: Tensor, segments: Tensor | None, state: State, keep_state: bool, context: Context
    ) -> tuple[Tensor, State]:
        """[B, T, D] -> [B, T, D] and the mixer's state."""
        y, state = self.mixer(
            self.mixer_norm(x), segments=segments, state=state, keep_state=keep_state, context=context
        )
        x = x + y
        return x + self.channel(self.channel_norm(x)), state
