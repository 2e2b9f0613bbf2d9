"""One layer: a token mixer, a channel mixer, and the residual scheme that puts them together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from .channel import Channel
from .component import make_channel, make_mixer, make_residual
from .config import BlockConfig, ParibusConfig
from .mixer import Context, Mixer, Placement
from .prefix import Prefixed, make_twin
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
        self.twins = self._twins(block, where) if config.task.get("prefix", False) else {}

    def forward(
        self, x: Stream, segments: Tensor | None, state: State, keep_state: bool, context: Context
    ) -> tuple[Stream, State]:
        """[B, T, D] (as many streams as the residual scheme carries) -> the same, and the states of both mixers."""
        mixer_state, channel_state = (None, None) if state is None else state
        parts = tuple(map(self._part, ("mixer_shift", "mixer") if self.mixer_shift else ("mixer",)))
        mix = Branch(parts, self.dropout, segments, mixer_state, keep_state, context)
        channel = None
        if self.channel is not None:
            parts = tuple(map(self._part, ("channel_shift", "channel") if self.channel_shift else ("channel",)))
            channel = Branch(parts, self.dropout, segments, channel_state, keep_state, context)
        x = self.residual(x, mix, channel)
        if not keep_state:
            return x, None
        return x, (mix.state, None if channel is None else channel.state)

    def _twins(self, block: BlockConfig, where: str) -> dict[str, Mixer]:
        """By the name of a part that looks at other tokens, the one that reads a prefix both ways."""
        makers: dict[str, Callable[[Placement], Mixer]] = {
            "mixer": partial(make_mixer, block.mixer, where=f"{where}: mixer")
        }
        if block.channel is not None:
            makers["channel"] = partial(make_channel, block.channel, where=f"{where}: channel")
        if block.token_shift != "none":
            shift = partial(TokenShift, kind=block.token_shift)
            makers |= {f"{name}_shift": shift for name in tuple(makers)}
        found = {name: make_twin(getattr(self, name), make, f"{where}: {name}") for name, make in makers.items()}
        return {name: twin for name, twin in found.items() if twin is not None}

    def _part(self, name: str) -> Mixer | Scanned | Prefixed:
        """The part called `name`, with its prefix read both ways, or in the order in which this layer reads images."""
        part: Mixer = getattr(self, name)
        if name in self.twins:
            return Prefixed(part, self.twins[name])
        grid, layer = part.placement.grid, part.placement.layer
        alone = isinstance(part, Channel)  # it sees every token alone, in whatever order
        if alone or self.scan == "raster" or (self.scan == "alternate" and layer % 2 == 0):
            return part
        assert grid is not None, "a scan belongs to an image"
        return Scanned(part, grid, both=self.scan == "cross")


def _shift(kind: Literal["none"] | Kind, placement: Placement) -> TokenShift | None:
    return None if kind == "none" else TokenShift(placement, kind)
