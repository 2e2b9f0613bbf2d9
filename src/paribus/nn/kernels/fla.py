"""The gated kernels by flash-linear-attention (the package `fla`, Triton, on a GPU): an optional choice of a run.

Covered are both kernels, causal, with every kind of decay, packing, padding and states, but for a readout on the value
side and for a target beside a second write. All else raises; nothing falls back to torch. Written against version
0.6.0, whose operations take [B, T, H, X], natural logarithms of decays and float32 states [N, H, K, V], and scale
queries by 1 / √K unless told otherwise. Rows that are packed or padded are laid end to end: a sequence begins at the
start of each row and of each segment, and padding neither writes nor decays.

With float32 inputs the products inside are those of the GPU's tensor cores (TF32).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ..segments import Rows
from .choice import Implementation
from .chunks import full_precision

try:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.generalized_delta_rule import chunk_dplr_delta_rule
    from fla.ops.gla import chunk_gla
    from fla.ops.kda import chunk_kda
    from fla.ops.rwkv6 import chunk_rwkv6
    from fla.ops.simple_gla import chunk_simple_gla
except ImportError as problem:
    _missing: ImportError | None = problem
else:
    _missing = None

MAX_KEY_WIDTH = 256
"""Of one head, by the package's own limit."""
Operation = Callable[..., tuple[Tensor, Tensor]]


def implementation() -> Implementation:
    """These kernels, to be used by `choice.using`.

    Raises:
        ValueError: the package is not installed.
    """
    if _missing is not None:
        raise ValueError(
            f"kernels 'fla' needs the package flash-linear-attention (pip install 'paribus[fla]'): {_missing}"
        )
    return Implementation("fla", recurrence, delta)


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    *,
    rows: Rows,
    state: Tensor | None,
    causal: bool,
    readout: str = "key",
    bonus: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`paribus.nn.kernels.recurrence.recurrence` by the package.

    Raises:
        ValueError: two directions, a readout on the value side, or keys that are too wide.
    """
    _refuse("recurrence", k, causal, {"a readout on the value side": readout != "key"})
    operation: Operation
    tokens, decays = {"q": q, "k": k, "v": v}, {"g": log_decay}
    if bonus is not None:
        operation = partial(chunk_rwkv6, u=bonus)
        tokens, decays = {"r": q, "k": k, "v": v}, {"w": _per_channel(log_decay, k)}
    elif log_decay is not None and log_decay.dim() == 4:
        operation = chunk_gla
    else:
        operation = chunk_simple_gla
    return _run(operation, tokens, decays, rows, state)


def delta(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    write_strength: Tensor,
    log_decay: Tensor | None,
    *,
    rows: Rows,
    state: Tensor | None,
    causal: bool,
    erase: Tensor | None = None,
    erase_undecayed: bool = False,
    write: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`paribus.nn.kernels.delta.delta` by the package; without decay, the decay is 1.

    Raises:
        ValueError: two directions, both a target and a second write, or keys that are too wide.
    """
    _refuse("delta", k, causal, {"both a target and a second write": v is not None and write is not None})
    if v is None or erase is not None or erase_undecayed:
        decay = _per_channel(log_decay, k)
        r = k if erase is None else erase
        strength = write_strength[..., None]
        k2, v2 = write if write is not None else (strength * k, v)
        assert v2 is not None, "delta refuses to write nothing"
        low_rank = {"a": r if erase_undecayed else decay.exp() * r, "b": -strength * k}
        return _run(chunk_dplr_delta_rule, {"q": q, "k": k2, "v": v2, **low_rank}, {"gk": decay}, rows, state)
    if log_decay is None:
        log_decay = torch.zeros_like(write_strength, dtype=torch.float32)
    operation = chunk_kda if log_decay.dim() == 4 else chunk_gated_delta_rule
    return _run(operation, {"q": q, "k": k, "v": v, "beta": write_strength}, {"g": log_decay}, rows, state)


def _refuse(kernel: str, k: Tensor, causal: bool, special: dict[str, bool]) -> None:
    faults = {
        "two directions": not causal,
        f"keys of {k.shape[-1]} channels in a head (at most {MAX_KEY_WIDTH})": k.shape[-1] > MAX_KEY_WIDTH,
        **special,
    }
    for fault, present in faults.items():
        if present:
            raise ValueError(f"kernels 'fla' does not cover {fault} in the kernel {kernel}; choose kernels 'torch'")


def _per_channel(log_decay: Tensor | None, k: Tensor) -> Tensor:
    """Any kind of decay as [B, T, H, K] in float32."""
    if log_decay is None:
        return torch.zeros_like(k, dtype=torch.float32)
    return (log_decay if log_decay.dim() == 4 else log_decay[..., None]).float().expand(k.shape)


def _run(
    operation: Operation,
    tokens: dict[str, Tensor],
    decays: Mapping[str, Tensor | None],
    rows: Rows,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One operation of the package on tokens [B, T, ...], in the precision of the queries or of autocast around them.

    Args:
        tokens: by the names that the operation gives them, queries first.
        decays: likewise; they stay in float32.
    """
    q = next(iter(tokens.values()))
    device = q.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else q.dtype
    layout = None if rows.plain else _Layout.of(rows)
    initial = None if state is None else state.float()
    with full_precision(q):
        inputs = {name: x.to(dtype) for name, x in tokens.items()}
        for name, log_decay in decays.items():
            if log_decay is not None:  # a constant one is spelled out, since the package has no gradient for it
                inputs[name] = log_decay.float().expand(*q.shape[:3], *log_decay.shape[3:])
        if layout is not None:
            inputs, initial = {name: layout.lay(x) for name, x in inputs.items()}, layout.initial(initial)
        boundaries = None if layout is None else layout.boundaries
        o, last = operation(**inputs, scale=1.0, initial_state=initial, output_final_state=True, cu_seqlens=boundaries)
    if layout is not None:
        o, last = o.view(*q.shape[:2], *o.shape[2:]), last[layout.last]
    return o.to(q.dtype), last


@dataclass(frozen=True)
class _Layout:
    """Rows [B, T] laid end to end as N sequences."""

    valid: Tensor | None
    """[B, T]."""
    boundaries: Tensor
    """[N + 1] where each sequence begins, and the end."""
    first: Tensor
    """[B] the sequence at the beginning of each row."""
    last: Tensor
    """[B] the sequence at the end of each row."""
    fresh: Tensor
    """[B] bool: the row's first token begins a segment, so the state before it is forgotten."""

    @staticmethod
    def of(rows: Rows) -> _Layout:
        B, T = rows.ids.shape
        starts = torch.zeros_like(rows.ids, dtype=torch.bool) if rows.starts is None else rows.starts
        begins = starts.clone()
        begins[:, 0] = True
        boundaries = functional.pad(begins.flatten().nonzero()[:, 0], (0, 1), value=B * T)
        last = begins.sum(1).cumsum(0) - 1
        first = functional.pad(last[:-1] + 1, (1, 0))
        return _Layout(rows.valid, boundaries, first, last, starts[:, 0])

    def lay(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [1, B T, ...], zero at padding: nothing is written, and the decay is 1."""
        if self.valid is not None:
            x = torch.where(self.valid.view(*self.valid.shape, *[1] * (x.dim() - 2)), x, 0)
        return x.flatten(0, 1)[None]

    def initial(self, state: Tensor | None) -> Tensor | None:
        """States [B, H, K, V] of rows -> [N, H, K, V] of sequences."""
        if state is None:
            return None
        kept = torch.where(self.fresh[:, None, None, None], 0, state)
        return state.new_zeros(len(self.boundaries) - 1, *state.shape[1:]).index_copy(0, self.first, kept)
