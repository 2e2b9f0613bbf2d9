"""One layer: a token mixer, a channel mixer, and the residual scheme that puts them together."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from .component import make_channel, make_mixer, make_residual
from .config import ParibusConfig
from .mixer import Context, Mixer, Placement
from .residual import Branch, Stream
from .scan_order import Scanned
from .state import State
from .token_shift import Kind, TokenShift


class Block(nn.Module):
    """The block `name` of a config as layer number `layer`: its two mixers, put together by its residual scheme."""

    def __init__(self, config: ParibusConfig, name: str, layer: int) -> None:
        super().__init__()
        block = config.block(name)
        placement = Placement(
            width=config.hidden_size,
            layer=layer,
            num_layers=config.num_hidden_layers,
            causal=config.causal,
            max_length=config.max_position_embeddings,
            grid=config.grid,
        )
        where = f"block '{name}'"
        self.mixer = make_mixer(block.mixer, placement, f"{where}: mixer")
        self.channel = None if block.channel is None else make_channel(block.channel, placement, f"{where}: channel")
        self.mixer_shift = _shift(block.token_shift, placement)
        self.channel_shift = None if self.channel is None else _shift(block.token_shift, placement)
        self.residual = make_residual(
            block.residual, placement, block.norm, self.channel is not None, f"{where}: residual"
        )
        self.dropout = nn.Dropout(block.dropout)
        self.scan = "raster" if config.image is None else config.image_config.scan

    def forward(
        self, x: Stream, segments: Tensor | None, state: State, keep_state: bool, context: Context
    ) -> tuple[Stream, State]:
        """[B, T, D] (as many streams as the residual scheme carries) -> the same, and the states of both mixers."""
        mixer_state, channel_state = (None, None) if state is None else state
        mix = Branch(self._mixer_parts(), self.dropout, segments, mixer_state, keep_state, context)
        channel = None
        if self.channel is not None:
            parts = (self.channel,) if self.channel_shift is None else (self.channel_shift, self.channel)
            channel = Branch(parts, self.dropout, segments, channel_state, keep_state, context)
        x = self.residual(x, mix, channel)
        if not keep_state:
            return x, None
        return x, (mix.state, None if channel is None else channel.state)

    def _mixer_parts(self) -> tuple[Mixer | Scanned, ...]:
        """The token mixer, in the order in which this layer reads images, behind a token shift if there is one."""
        placement = self.mixer.placement
        mixer: Mixer | Scanned = self.mixer
        if self.scan == "cross" or (self.scan == "alternate" and placement.layer % 2):
            assert placement.grid is not None, "a scan belongs to an image"
            mixer = Scanned(self.mixer, placement.grid, both=self.scan == "cross")
        return (mixer,) if self.mixer_shift is None else (self.mixer_shift, mixer)


def _shift(kind: Literal["none"] | Kind, placement: Placement) -> TokenShift | None:
    return None if kind == "none" else TokenShift(placement, kind)
