"""The one counter of floating-point operations, forward and backward.

torch's `FlopCounterMode` sees matrix products; here it learns formulas for what else costs (attention on a
CPU, FFT, triangular solve), and kernels report by `report_flops` what no operator shows, such as a scan.
Conventions: a multiply-add is 2 FLOPs; attention counts all T x T products, causal or not; a complex FFT of n
points costs 5 n log2(n), a real one half of that; a triangular solve of n unknowns n² for each right side; a
scan 2 for each element in each pass; other elementwise work (gates, norms) counts as nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Shape = Sequence[int]

_active: list[FlopCounter] = []


class FlopCounter:
    """Counts the FLOPs of what runs inside ``with FlopCounter() as counter:``; read `total` afterwards."""

    def __init__(self) -> None:
        self._mode = FlopCounterMode(display=False, custom_mapping=_formulas())
        self._mode.mod_tracker = _NoModules()  # type: ignore[assignment]  # torch asks it for nothing else
        self._reported: Counter[str] = Counter()

    def __enter__(self) -> FlopCounter:
        self._mode.__enter__()
        _active.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _active.remove(self)
        self._mode.__exit__(kind, error, trace)

    @property
    def total(self) -> int:
        """All FLOPs counted so far."""
        return self._mode.get_total_flops() + self._reported.total()

    @property
    def by_name(self) -> dict[str, int]:
        """FLOPs by operator (``aten.mm``) or reported name (``scan``)."""
        seen = self._mode.get_flop_counts().get("Global", {})
        return {**{str(operator): flops for operator, flops in seen.items()}, **self._reported}


class _NoModules:
    """Counts nothing by module: torch's own tracker hooks itself into backward, where a recomputation fails on it."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        pass


def report_flops(name: str, flops: int) -> None:
    """Add what torch cannot see to every active counter; without one, nothing happens.

    Args:
        name: what was computed, the kernel's name.
        flops: of this one call; backward passes report their own.
    """
    for counter in _active:
        counter._reported[name] += flops


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(
    grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _real_to_complex(x: Shape, dims: Shape, *_: Any, out_shape: Any = None) -> int:
    return _fft(2.5, x, dims)


def _complex_to_real(x: Shape, dims: Shape, *_: Any, out_shape: Any = None) -> int:
    return _fft(2.5, out_shape, dims)


def _complex_to_complex(x: Shape, dims: Shape, *_: Any, out_shape: Any = None) -> int:
    return _fft(5.0, x, dims)


def _fft(factor: float, shape: Shape, dims: Shape) -> int:
    """factor · n log2(n) for each transform of n points in the tensor."""
    points = math.prod(shape[dim] for dim in dims)
    return round(factor * math.prod(shape) * math.log2(points))


def _triangular_solve(matrix: Shape, right: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """n² for each of the right-hand sides."""
    return matrix[-1] * math.prod(out_shape)


def _formulas() -> dict[Any, Any]:
    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        aten._fft_r2c: _real_to_complex,
        aten._fft_c2r: _complex_to_real,
        aten._fft_c2c: _complex_to_complex,
        aten.linalg_solve_triangular: _triangular_solve,
    }
