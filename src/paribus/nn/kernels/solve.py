"""For each token a linear system whose matrix is a state of the recurrence: what a regularised least-squares fit needs.

    A[t] = a[t] A[t-1] + β[t] k[t] k[t]ᵀ          x[t] = (A[t] + Diag(λ))⁻¹ q[t]

A product with all A[t] at once is the recurrence with keys β k and values k, so no A[t] has to exist: conjugate
gradients need nothing else (von Oswald et al. 2025, arXiv:2506.05233). The gradient is that of the solution, whatever
found it: another solve, since d x = (A + Diag(λ))⁻¹ (d q - (d A + Diag(d λ)) x).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..segments import Rows
from ..settings import nearest
from .chunks import Gates, chunk_length, full_precision, make_gates, merge, split, weigh
from .recurrence import chunk_states, recurrence

Linear = Callable[[Tensor], Tensor]
Solver = Literal["conjugate_gradient", "exact"]
SOLVERS: tuple[Solver, ...] = ("conjugate_gradient", "exact")


def solve(
    q: Tensor,
    k: Tensor,
    strength: Tensor,
    ridge: Tensor,
    log_decay: Tensor | None,
    *,
    rows: Rows,
    state: Tensor | None,
    causal: bool,
    solver: Solver,
    iterations: int,
) -> tuple[Tensor, Tensor | None]:
    """Solve each token's system for its right side q.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        strength: [B, T, H] β ≥ 0.
        ridge: [H, K] λ > 0.
        log_decay: log a ≤ 0: None, [H] constant or [B, T, H] scalar; A would not be symmetric per channel.
        state: [B, H, K, K], A before the first token; None is zero.
        causal: A[t] is of the past and t; else of all tokens, decayed by their distance from t.
        solver: "conjugate_gradient", from zero; or "exact", which forms every A[t].
        iterations: of conjugate gradients, at most.

    Returns:
        x [B, T, H, K], and A after the last token (None when two-directional); both in float32 or wider.

    Raises:
        ValueError: unknown solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver '{solver}'; {nearest(solver, SOLVERS)}")
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, ridge = q.to(wide), k.to(wide), ridge.to(wide)
    write = strength.to(wide)[..., None] * k
    if rows.valid is not None:
        q = torch.where(rows.valid[..., None, None], q, 0)
    with full_precision(q):
        with torch.no_grad():
            apply = _Product(write, k, ridge, log_decay, rows, state, causal)

        def find(right: Tensor) -> Tensor:
            with torch.no_grad(), full_precision(right):
                return _exact(apply, right) if solver == "exact" else _conjugate_gradient(apply, right, iterations)

        x = find(q.detach())
        product, after = recurrence(x, write, k, log_decay, rows=rows, state=state, causal=causal)
        correction: Tensor = _Inverse.apply(q - product - ridge * x, find)
        return x + correction, after


class _Product:
    """x [B, T, H, K] -> (A[t] + Diag(λ)) x[t]; what does not depend on x is computed once."""

    def __init__(
        self,
        write: Tensor,
        k: Tensor,
        ridge: Tensor,
        log_decay: Tensor | None,
        rows: Rows,
        state: Tensor | None,
        causal: bool,
    ) -> None:
        B, _, H, K = k.shape
        if rows.valid is not None:
            write = torch.where(rows.valid[..., None, None], write, 0)
        gates, empty = make_gates(log_decay, rows, k.dtype), k.new_zeros(B, H, K, K)
        self.ridge = ridge
        self.forward = _Pass(write, k, gates, empty if state is None else state.to(k.dtype), False)
        self.backward = None if causal else _Pass(write.flip(1), k.flip(1), gates.reversed(False), empty, True)

    def __call__(self, x: Tensor) -> Tensor:
        product = torch.addcmul(self.forward(x), self.ridge, x)
        return product if self.backward is None else product + self.backward(x.flip(1)).flip(1)


class _Pass:
    """The recurrence in one direction for any q; `strict` reads before the token's own write."""

    def __init__(self, write: Tensor, k: Tensor, gates: Gates, state: Tensor, strict: bool) -> None:
        self.length = chunk_length(*k.shape[1::2])
        self.write, self.k = split(write, self.length), split(k, self.length)
        ones = torch.ones_like(self.k[..., :1])
        [[decay]], [self.read], [write], keep = weigh([ones], [ones], gates)
        self.decay = decay.tril(-1 if strict else 0)
        self.before, _ = chunk_states((write * self.write).mT @ self.k, keep, state)

    def __call__(self, q: Tensor) -> Tensor:
        T, q = q.shape[1], split(q, self.length)
        inside = (q @ self.write.mT).mul_(self.decay) @ self.k
        o = torch.baddbmm(*(x.flatten(0, 2) for x in (inside, self.read * q, self.before)))
        return merge(o.unflatten(0, q.shape[:3]), T)


class _Inverse(torch.autograd.Function):
    """Zero in place of the inverse of what is almost zero, with the gradient of the inverse, which is symmetric."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, find: Linear) -> Tensor:
        ctx.find = find
        return torch.zeros_like(residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None]:
        (grad,) = outputs
        return ctx.find(grad), None


def _exact(apply: Linear, right: Tensor) -> Tensor:
    """By the matrices themselves, column by column, and their Cholesky factors."""
    basis = torch.eye(right.shape[-1], dtype=right.dtype, device=right.device)
    matrices = torch.stack([apply(column.expand_as(right)) for column in basis], -1)
    return torch.cholesky_solve(right[..., None], torch.linalg.cholesky(matrices))[..., 0]


def _conjugate_gradient(apply: Linear, right: Tensor, iterations: int) -> Tensor:
    """Hestenes and Stiefel 1952; a token whose residual is down to rounding stands still, and it ends when all do."""
    x, residual, direction = torch.zeros_like(right), right, right
    square = _dot(right, right)
    least = square * torch.finfo(right.dtype).eps ** 2 + torch.finfo(right.dtype).tiny
    for _ in range(iterations):
        if not right.is_meta and not (square > least).any():
            break
        product = apply(direction)
        step = torch.where(square > least, square / _dot(direction, product), 0)
        x, residual = x + step * direction, residual - step * product
        before, square = square, _dot(residual, residual)
        direction = residual + torch.where(before > least, square / before, 0) * direction
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)
