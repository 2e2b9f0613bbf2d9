"""Each token's system: both solvers against the matrices written out, with states, segments and all gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.nn.kernels.recurrence import recurrence
from paribus.nn.kernels.solve import solve
from paribus.nn.segments import Rows
from tests.unit.nn.gated_cases import B, H, K, make_case, rows_of, segments_of
from tests.unit.nn.kernel_cases import close, in_pieces, random_cuts, real, with_gradients


def case(kind: str, length: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """q, keys of length one, strengths and decays; λ; the first state, symmetric and positive."""
    inputs = make_case("delta", kind, length).tokens
    root = torch.randn(B, H, K, K, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ridge = 0.25 + torch.rand(H, K, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return [inputs[0], inputs[1], *inputs[3:]], ridge.requires_grad_(), (root @ root.mT).requires_grad_()


def solver(name: str, ridge: Tensor, first: Tensor | None, causal: bool) -> Any:
    """run(*tokens, rows=, state=) of one solver; "written_out" forms the matrices and keeps their history."""

    def run(q: Tensor, k: Tensor, strength: Tensor, *decay: Tensor, rows: Rows, state: Any) -> tuple[Tensor, Any]:
        log_decay, state = decay[0] if decay else None, first if causal and state is None else state
        if name != "written_out":
            options: Any = {"rows": rows, "state": state, "causal": causal, "solver": name, "iterations": 30}
            return solve(q, k, strength, ridge, log_decay, **options)
        write, columns, after = strength[..., None] * k, [], None
        for column in torch.eye(K, dtype=q.dtype):
            reads = column.expand_as(q)
            product, after = recurrence(
                reads, write, k, log_decay, rows=rows, state=state, causal=causal, algorithm="reference"
            )
            columns.append(product)
        matrices = torch.stack(columns, -1) + torch.diag_embed(ridge)
        return torch.linalg.solve(matrices, q), after

    return run


@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["none", "scalar"])
@pytest.mark.parametrize("length", [1, 7, 65])
@pytest.mark.parametrize("name", ["conjugate_gradient", "exact"])
def test_equals_the_matrices_written_out(name: str, length: int, kind: str, causal: bool, layout: str) -> None:
    (inputs, ridge, first), segments = case(kind, length), segments_of(layout, length)
    answers = [
        with_gradients(solver(n, ridge, first, causal), inputs, [ridge, first], segments) for n in (name, "written_out")
    ]
    close(answers[0], answers[1], 1e-9)


@pytest.mark.parametrize("name", ["conjugate_gradient", "exact"])
def test_any_cut_gives_the_same(name: str) -> None:
    (inputs, ridge, _), segments = case("scalar", 100), segments_of("segments", 100)
    run = solver(name, ridge, None, True)
    assert segments is not None
    whole, state = in_pieces(run, inputs, segments, [100])
    pieces, last = in_pieces(run, inputs, segments, random_cuts(100))
    close([real(pieces, segments), last], [real(whole, segments), state], 1e-10)


def test_few_iterations_are_not_enough_and_more_are() -> None:
    inputs, ridge, first = case("none", 40)
    q, k, strength = inputs
    exact, few, many = (
        solve(q, k, strength, ridge, None, rows=rows_of(q), state=first, causal=True, solver=name, iterations=count)[0]
        for name, count in (("exact", 1), ("conjugate_gradient", 1), ("conjugate_gradient", 30))
    )
    assert (few - exact).abs().max() > 1e-3
    close(many, exact, 1e-10)


def test_unknown_solver_is_one_clear_line() -> None:
    q = torch.randn(1, 2, 1, 4)
    with pytest.raises(ValueError, match="unknown solver 'exactly'; did you mean 'exact'"):
        solve(q, q, q[..., 0], q[0, 0], None, rows=rows_of(q), state=None, causal=True, solver="exactly", iterations=1)  # type: ignore[arg-type]
