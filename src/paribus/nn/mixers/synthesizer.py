"""Synthesizer: attention whose scores are learned or made from one token, without comparing two.

    y[i] = W_o Σ_{j ≤ i} softmax_j(B[i, j]) v[j]

    random              B is a parameter
    factorized_random   B = R_1 R_2ᵀ of rank k
    dense               B[i] = W_2 relu(W_1 x[i]), one score for each position
    factorized_dense    B[i, j] = α_{j div b}(x[i]) · β_{j mod b}(x[i]), two such maps to about √max_length numbers
    mixture             B = a random + (1 − a) dense, a learned

Paper:    Tay et al. 2020, arXiv:2005.00743
Differs:  scores are masked before the softmax, so that rows sum to 1; no biases; W_1 makes one hidden layer as wide as
          a head, the same for both factors; the mixture is of these two, without the paper's ordinary attention; random
          scores are trained, and begin with unit variance. causal=False drops the condition
Shapes:   v [B, T, H, V], V = D / H; scores [H, M, M] or [B, T, H, M] with M = max_length; i and j are true positions in
          the segment; state: all values
Cost:     4 D² + T D FLOPs a token (causal), T D more otherwise, and for dense scores 2 D² + 2 D M; random ones have
          H M² parameters; state D numbers for each past token
Raises:   ValueError if num_heads does not divide the width, rank is below 1, or a segment is longer than max_length
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.tokens import mix_tokens
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "dense": {"scores": "dense"},
    "factorized_dense": {"scores": "factorized_dense"},
    "factorized_random": {"scores": "factorized_random"},
    "mixture": {"scores": "mixture"},
}


class Synthesizer(Mixer):
    """Attention with synthetic scores, with a bound on the length."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the scores."""

        num_heads: int = 4
        scores: Literal["random", "factorized_random", "dense", "factorized_dense", "mixture"] = "random"
        rank: int = 8
        """k of factorized random scores."""

    random: nn.Parameter
    random_rows: nn.Parameter
    random_columns: nn.Parameter
    dense: nn.Parameter
    dense_coarse: nn.Parameter
    dense_fine: nn.Parameter
    mixture: nn.Parameter

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads, M = placement.width, config.num_heads, placement.max_length
        head_width = check_divisible(width, heads, "synthesizer")
        if config.rank < 1:
            raise ValueError(f"synthesizer: rank is {config.rank}; 1 or more is needed")
        coarse = math.isqrt(M - 1) + 1
        shapes: dict[str, dict[str, tuple[int, ...]]] = {
            "random": {"random": (heads, M, M)},
            "factorized_random": {"random_rows": (heads, M, config.rank), "random_columns": (heads, M, config.rank)},
            "dense": {"dense": (heads, head_width, M)},
            "factorized_dense": {
                "dense_coarse": (heads, head_width, coarse),
                "dense_fine": (heads, head_width, -(-M // coarse)),
            },
            "mixture": {"random": (heads, M, M), "dense": (heads, head_width, M), "mixture": (2,)},
        }
        for name, shape in shapes[config.scores].items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.hidden = nn.Linear(width, width, bias=False) if "random" not in config.scores else None
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """The scores refuse what is longer than they are."""
        seen = 0 if state is None else state.shape[1]
        y, state = mix_tokens(
            split_heads(self.value(x), self.config.num_heads),
            self._scores(x, rows, min(self.placement.max_length, seen + x.shape[1])),
            rows=rows,
            state=state,
            causal=self.placement.causal,
            softmax=True,
        )
        return self.output(y.flatten(2)), state

    def _scores(self, x: Tensor, rows: Rows, end: int) -> Tensor:
        """[H, M, M], the same for all; or [B, T, H, `end`], those of each token for the positions before `end`."""
        kind = self.config.scores
        if kind == "random":
            return self.random
        if kind == "factorized_random":
            return self._factorized_random(rows, end)
        assert self.hidden is not None
        hidden = split_heads(functional.relu(self.hidden(x)), self.config.num_heads)  # B T H V
        if kind == "factorized_dense":
            coarse, fine = (torch.einsum("bthv,hvm->bthm", hidden, w) for w in (self.dense_coarse, self.dense_fine))
            return (coarse[..., None] * fine[..., None, :]).flatten(3)[..., :end]
        dense = torch.einsum("bthv,hvm->bthm", hidden, self.dense[..., :end])
        if kind == "dense":
            return dense
        share = self.mixture.softmax(0).to(dense.dtype)
        positions = rows.positions.clamp(0, self.placement.max_length - 1)
        random = self.random[:, positions, :end].permute(1, 2, 0, 3).to(dense.dtype)
        return share[0] * random + share[1] * dense

    def _factorized_random(self, rows: Rows, end: int) -> Tensor:
        """At the beginning the whole matrix, later the new tokens' rows of it."""
        columns = self.random_columns[:, :end].mT
        if rows.past is None:
            return self.random_rows[:, :end] @ columns
        positions = rows.positions.clamp(0, self.placement.max_length - 1)
        return torch.einsum("hbtk,hkm->bthm", self.random_rows[:, positions], columns)

    def reset_parameters(self) -> None:
        """So that scores begin with about unit variance; a mixture in equal shares."""
        for name, parameter in self.named_parameters(recurse=False):
            if name == "mixture":
                nn.init.zeros_(parameter)
            elif name.startswith("dense"):
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            else:
                nn.init.normal_(parameter, std=1.0 if name == "random" else self.config.rank**-0.25)
