"""Hyena: gates between convolutions as long as the sequence, their taps from a small network with sines.

    v, x_1, …, x_N = short_convolution(W x)        u_1 = x_1 ⊙ v
    u_n = x_n ⊙ (Σ_s h_n[t−s] ⊙ u_{n−1}[s] + d_n ⊙ u_{n−1})        y = W_o u_N
    h[k] = (exp(−rate |k| / M) + window_floor) ⊙ network(k)

Paper:    Poli et al. 2023, arXiv:2302.10866
Differs:  N − 1 long convolutions for N gates, as in the published code; first_convolution=True adds the paper's first
          one, from v. Biases in the network only. Its features of the lag are fixed, the code learns them at a rate of
          their own. House initial values give each filter about unit energy, "paper" takes those of the published
          code. causal=False: a centred short convolution, and filters whose network reads signed lags
Shapes:   v, x_n [B, T, D]; each h [T, D] or [2 T − 1, D]. The network: position_features numbers of the lag, then
          three layers of position_width units sin(frequency ⊙ z), then all filters; rates are evenly spaced over their
          channels. M = max_length is a unit of length and bounds nothing. State: the short convolution's last taps − 1
          inputs, (N + 1) D wide, and all that each long convolution has read
Cost:     2 (N + 2) D² + 10 (N − 1) D log2(2 T) FLOPs a token; for each lag, whatever the batch, about 4 P² + 2 P D
          for each filter with P = position_width. State (N − 1) D numbers for each past token; a step of decoding
          reads all of it and makes the taps of all lags again, so it takes longer with each token
Raises:   ValueError if order is less than 2, taps less than 1, position_features not odd or less than 3, or
          position_width, fast_decay or slow_decay not positive
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.convolution import convolution, short_convolution
from ..lags import lags_for, precisely
from ..mixer import Context, Mixer, Placement
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"frequency": 14.0, "initialization": "paper"},
    "recurrence": {"first_convolution": True},
}

WINDOW_END = 0.01  # what is left of a window after fast_decay or slow_decay


class HyenaState(NamedTuple):
    """What the mixer carries from token to token."""

    inputs: Tensor | None
    """[B, taps - 1, (order + 1) D]: the short convolution's."""
    histories: tuple[Tensor | None, ...]
    """[B, S, D] for each long convolution."""


class Hyena(Mixer):
    """The Hyena operator."""

    @dataclass(frozen=True)
    class Config:
        """Settings of Hyena."""

        order: int = 2
        """N, the number of gates."""
        first_convolution: bool = False
        """Convolve v before the first gate too."""
        taps: int = 3
        """Tokens that the short convolution sees, the present one included."""
        position_features: int = 33
        """The lag itself, and cosine and sine of each of the lowest frequencies."""
        position_width: int = 64
        frequency: float = 1.0
        """Of the network's sines, at the beginning."""
        fast_decay: float = 0.3
        """Lag, in units of max_length, at which the fastest channel's window has fallen to 0.01."""
        slow_decay: float = 1.5
        """The same for the slowest channel."""
        window_floor: float = 0.0
        initialization: Literal["house", "paper"] = "house"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        for name, least in (("order", 2), ("taps", 1), ("position_features", 3), ("position_width", 1)):
            if getattr(config, name) < least:
                raise ValueError(f"hyena: {name} is {getattr(config, name)}; at least {least} is needed")
        if config.position_features % 2 == 0:
            raise ValueError(f"hyena: position_features is {config.position_features}; an odd number is needed")
        for name in ("fast_decay", "slow_decay"):
            if getattr(config, name) <= 0:
                raise ValueError(f"hyena: {name} is {getattr(config, name)}; a positive number is needed")
        width, inner = placement.width, config.position_width
        self.num_filters = config.order - 1 + config.first_convolution
        self.input = nn.Linear(width, (config.order + 1) * width, bias=False)
        self.convolution = nn.Parameter(torch.empty((config.order + 1) * width, config.taps))
        self.lag_input = nn.Linear(config.position_features, inner)
        self.lag_hidden = nn.ModuleList(nn.Linear(inner, inner) for _ in range(2))
        self.lag_output = nn.Linear(inner, self.num_filters * width, bias=False)
        self.frequency = nn.Parameter(torch.empty(inner))
        self.skip = nn.Parameter(torch.empty(self.num_filters, width))  # d
        self.output = nn.Linear(width, width, bias=False)

    def mix(
        self, x: Tensor, rows: Rows, state: HyenaState | None, context: Context | None
    ) -> tuple[Tensor, HyenaState]:
        """Gate, convolve, gate."""
        causal = self.placement.causal
        inputs, histories = state or (None, (None,) * self.num_filters)
        u, inputs = short_convolution(self.input(x), self.convolution, rows=rows, state=inputs, causal=causal)
        v, *gates = u.chunk(self.config.order + 1, -1)
        if not self.config.first_convolution:
            v = gates.pop(0) * v
        kept = []
        for number, (gate, history) in enumerate(zip(gates, histories, strict=True)):
            z, history = convolution(v, partial(self.taps, number), rows=rows, state=history, causal=causal)
            v = gate * (z + self.skip[number].to(z.dtype) * v)
            kept.append(history)
        return self.output(v), HyenaState(inputs, tuple(kept))

    def taps(self, number: int, length: int) -> Tensor:
        """Weights [n, D] of a filter for lags 0 to n - 1, or [2n - 1, D] for lags -(n - 1) to n - 1."""
        lags = lags_for(length, self.placement.causal, self.lag_output.weight)
        hidden = self._features(lags)
        for layer in (self.lag_input, *self.lag_hidden):
            hidden = (self.frequency.to(lags.dtype) * precisely(hidden, layer.weight, layer.bias)).sin()
        channels = slice(number * self.placement.width, (number + 1) * self.placement.width)
        spans = lags.abs()[:, None] / self.placement.max_length
        window = (-spans * self._rates(lags)[channels]).exp() + self.config.window_floor
        return precisely(hidden, self.lag_output.weight[channels], None) * window

    def _features(self, lags: Tensor) -> Tensor:
        """[n, position_features]."""
        longest, bands = self.placement.max_length, (self.config.position_features - 1) // 2
        frequencies = torch.linspace(1e-4, bands - 1, bands, device=lags.device, dtype=lags.dtype)
        angles = lags[:, None] * frequencies * (2 * math.pi / longest)
        return torch.cat([lags[:, None] / max(1, longest - 1), angles.cos(), -angles.sin()], 1)

    def _rates(self, like: Tensor) -> Tensor:
        """How fast the windows of all channels of all filters fall, for lags in units of max_length."""
        slow, fast = (-math.log(WINDOW_END) / decay for decay in (self.config.slow_decay, self.config.fast_decay))
        count = self.lag_output.out_features
        return torch.linspace(slow, fast, count, device=like.device, dtype=like.dtype)

    def reset_parameters(self) -> None:
        """Frequencies as set; d normal; all else by the fan-in or, "paper", uniform within its square root."""
        nn.init.constant_(self.frequency, self.config.frequency)
        nn.init.normal_(self.skip)
        taps = self.config.taps**-0.5
        if self.config.initialization == "house":
            nn.init.normal_(self.convolution, std=taps)
            # Sines have a mean square of 1/2, windows that of the middle rate.
            energy = self.placement.max_length * self.config.position_width / 2
            rate = -math.log(WINDOW_END) * (1 / self.config.slow_decay + 1 / self.config.fast_decay)
            nn.init.normal_(self.lag_output.weight, std=(rate / energy) ** 0.5)
            return
        nn.init.uniform_(self.convolution, -taps, taps)
        for linear in (self.input, self.lag_input, *self.lag_hidden, self.lag_output, self.output):
            bound = linear.in_features**-0.5
            for parameter in linear.parameters():
                nn.init.uniform_(parameter, -bound, bound)
