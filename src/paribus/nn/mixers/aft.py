"""Attention-free transformer: a gated average of values, weighted by their keys and a table of positions.

    y[t] = W_o (σ(q[t]) ⊙ Σ_{s ≤ t} exp(k[s] + w[t, s]) v[s] / Σ_{s ≤ t} exp(k[s] + w[t, s]))

Paper:    Zhai et al. 2021, arXiv:2105.14103: by default its AFT-full; "simple": w = 0; "local": w = 0 from `window`
          tokens of distance on, where keys alone weigh; "factorized": w = u vᵀ of low rank
Differs:  no biases; the table begins normal with std 0.1, as a product of two factors if it has a rank; a local table
          holds a number for each position and distance inside the window. causal=False drops the condition
Shapes:   q, k, v [B, T, D]; w [M, M] with M = max_length, s and t are true positions in the segment; state: all keys
          and values; of "simple", which has no table and no bound, two sums and the largest key, [B, 3 D] in float32
Cost:     8 D² + 2 T D FLOPs a token (causal), twice the T D otherwise; without a table 8 D² + 4 D; M² parameters, local
          M · window (causal), factorized 2 M · rank; state 2 D numbers for each past token, without a table 3 D in all
Raises:   ValueError if window is below 1, rank is negative or not for a full table, or a segment is longer than
          max_length, unless there is no table
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..kernels.averages import running_average, table_average
from ..mixer import Context, Mixer, Placement
from ..segments import Rows
from ..state import State

PRESETS: dict[str, dict[str, Any]] = {
    "simple": {"table": "none"},
    "local": {"table": "local"},
    "factorized": {"rank": 128},
}


class AFT(Mixer):
    """Attention-free transformer; with a table, bound in length."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the table."""

        table: Literal["full", "local", "none"] = "full"
        window: int = 32
        """Of a local table: true positions to each side that have an entry, the token's own included."""
        rank: int = 0
        """Of the factors of a full table; 0 is no factors."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        if config.window < 1:
            raise ValueError(f"aft: window is {config.window}; 1 or more is needed")
        if config.rank < 0 or (config.rank and config.table != "full"):
            raise ValueError(f"aft: rank is {config.rank}; 0, or a positive number with table 'full' is needed")
        width, M = placement.width, placement.max_length
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.reach = min(config.window, M)
        if config.table == "local":
            self.nearby = nn.Parameter(torch.empty(M, self.reach if placement.causal else 2 * self.reach - 1))
        elif config.rank:
            self.readers = nn.Parameter(torch.empty(M, config.rank))
            self.read = nn.Parameter(torch.empty(M, config.rank))
        elif config.table == "full":
            self.entries = nn.Parameter(torch.empty(M, M))

    def mix(self, x: Tensor, rows: Rows, state: State, context: Context | None) -> tuple[Tensor, State]:
        """The table refuses what is longer than it is."""
        k, v, causal = self.key(x), self.value(x), self.placement.causal
        if self.config.table == "none":
            average, state = running_average(k, v, rows=rows, state=state, causal=causal)
        else:
            table = self._table(rows, x.shape[1] + (0 if state is None else state.shape[1]))
            average, state = table_average(k, v, table, rows=rows, state=state, causal=causal)
        return self.output(self.query(x).sigmoid() * average), state

    def _table(self, rows: Rows, end: int) -> Tensor:
        """w for the positions before `end`, [n, n]; or its rows for these tokens, [B, T, n]."""
        if self.config.table == "full" and not self.config.rank:
            return self.entries
        places = torch.arange(min(self.placement.max_length, end), device=rows.ids.device)
        own = places if rows.past is None or not rows.plain else rows.positions.clamp(max=self.placement.max_length - 1)
        if self.config.rank:
            return self.readers[own] @ self.read[places].T
        lags = own[..., None] - places
        first = 0 if self.placement.causal else 1 - self.reach
        inside = (lags >= first) & (lags < self.reach)
        entries = self.nearby[own].gather(-1, (lags - first).clamp(0, self.nearby.shape[1] - 1))
        return torch.where(inside, entries, 0)

    def reset_parameters(self) -> None:
        """The table normal with std 0.1."""
        for parameter in self.parameters(recurse=False):
            nn.init.normal_(parameter, std=(0.1 / self.config.rank**0.5) ** 0.5 if self.config.rank else 0.1)
