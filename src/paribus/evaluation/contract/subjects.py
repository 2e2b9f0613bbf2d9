"""What the checks of the contract share: small components, tokens, comparisons that explain themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paribus.nn.channel import Channel
from paribus.nn.component import CHANNELS, MIXERS, make_channel, make_mixer
from paribus.nn.initialization import initialize
from paribus.nn.mixer import Mixer, Placement, make_context
from paribus.nn.registry import Registry
from paribus.nn.state import State

WIDTH = 32
"""D of the checks; every default setting has to fit it."""
LENGTH = 150
"""T where it matters: longer than two chunks of any kernel, and not a multiple of one."""


@dataclass(frozen=True)
class Kind:
    """A kind of component: where its names are, how one is made and called."""

    role: str
    """The key of a block that names it."""
    registry: Registry
    base: type[nn.Module]
    make: Callable[[Mapping[str, Any], Placement], nn.Module]
    alone: bool
    """Whether it looks at each token alone, and so knows neither directions nor states."""

    def output(self, module: nn.Module, x: Tensor) -> Tensor:
        """x [B, T, D] -> y [B, T, D], whatever else the component returns."""
        y: Tensor = module(x)[0]
        return y


Check = Callable[[Kind, str], None]
"""A check of the component of a kind that has a name, or lies in the file at a path."""

MIXER = Kind("mixer", MIXERS, Mixer, make_mixer, alone=False)
CHANNEL = Kind("channel", CHANNELS, Channel, make_channel, alone=True)
"""A channel mixer that looks at each token alone."""
NEIGHBOUR = Kind("channel", CHANNELS, Mixer, make_channel, alone=False)
"""A channel mixer that looks at neighbouring tokens too."""


def build(
    kind: Kind,
    name: str,
    *,
    width: int = WIDTH,
    causal: bool = True,
    longest: int = 256,
    dtype: torch.dtype = torch.float64,
    loud: bool = False,
    settings: Mapping[str, Any] | None = None,
    layer: int = 0,
) -> Any:
    """The component `name`, initialised with seed 0.

    Args:
        layer: where it stands in a model of two layers.
        longest: the `max_length` of its placement.
        loud: add noise to every parameter: a small or zero initial value would hide what it leaks.
    """
    placement = Placement(width=width, layer=layer, num_layers=2, causal=causal, max_length=longest)
    module = kind.make({"name": name, **(settings or {})}, placement)
    initialize(module, seed=0)
    if loud:
        shake(module)
    return module.to(dtype)


class Pair(nn.Module):
    """The component in both layers of a model of two: some have parameters that act on other layers only."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([first, second])

    def forward(self, x: Tensor) -> Tensor:
        """One after the other, without anything around them."""
        context = make_context(self.layers)
        for layer in self.layers:
            x = layer(x, context=context)[0]
        return x


def shake(module: nn.Module) -> None:
    """Add noise of standard deviation 0.4 to every parameter, the same each time."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def tokens(B: int, T: int, *, width: int = WIDTH, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Unit-variance inputs [B, T, D]."""
    return torch.randn(B, T, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def in_pieces(
    module: Callable[..., tuple[Tensor, State]], x: Tensor, segments: Tensor | None, cuts: Sequence[int]
) -> Tensor:
    """The answers to `x` cut at `cuts`, the state passed on."""
    outputs, state = [], None
    for start, end in zip((0, *cuts), (*cuts, x.shape[1]), strict=True):
        part = slice(start, end)
        marks = None if segments is None else segments[:, part]
        y, state = module(x[:, part], segments=marks, state=state, keep_state=True)
        outputs.append(y)
    return torch.cat(outputs, 1)


def distance(got: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value if that exceeds 1; infinite for NaN."""
    if got.numel() == 0:
        return 0.0
    got, expected = got.detach().double(), expected.detach().double()
    difference = (got - expected).abs().max() / expected.abs().max().clamp(min=1)
    return float(difference.nan_to_num(nan=float("inf")))


def agree(where: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Assert that two tensors are equal to a relative tolerance; the message begins with `where`."""
    assert got.shape == expected.shape, f"{where}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    off = distance(got, expected)
    assert off <= tolerance, f"{where}: off by {off:.2e} (relative), allowed {tolerance:.0e}"


def finite(where: str, tensor: Tensor | None) -> Tensor:
    """The tensor, asserted to be there and to hold finite values only."""
    assert tensor is not None, f"{where}: missing"
    bad = int((~tensor.isfinite()).sum())
    assert bad == 0, f"{where}: {bad} of {tensor.numel()} values are not finite"
    return tensor


def refusal(where: str, action: Callable[[], Any]) -> str:
    """The one line of the ValueError that `action` must raise."""
    try:
        action()
    except ValueError as problem:
        message = str(problem)
        assert message and "\n" not in message, f"{where}: the refusal is not one line: {message!r}"
        return message
    raise AssertionError(f"{where}: a ValueError is needed; nothing was raised")
