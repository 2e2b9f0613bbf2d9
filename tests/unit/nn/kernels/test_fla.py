"""The translation of our kernels into operations of flash-linear-attention.

The package's own kernels need a GPU (tests/gpu compares them). Here its operations are what its documentation says of
them, step by step: what is tested is which operation is called with what, and how packed and padded rows are laid out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.nn.kernels import fla
from paribus.nn.kernels.delta import delta
from paribus.nn.kernels.recurrence import recurrence
from paribus.nn.segments import Rows
from tests.unit.nn.gated_cases import KINDS, B, Case, H, K, Kernel, V, make_case, rows_of, segments_of
from tests.unit.nn.kernel_cases import close, in_pieces, random_cuts, with_gradients


def documented(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    beta: Tensor | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
    u: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """chunk_simple_gla and chunk_gla; with beta, the gated delta rule; with a and b, DPLR; with u, RWKV6."""
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    sequences = [(row, 0, q.shape[1]) for row in range(q.shape[0])]
    if cu_seqlens is not None:
        assert q.shape[0] == 1
        sequences = [(0, int(start), int(end)) for start, end in pairwise(cu_seqlens)]
    outputs, states = [], []
    for number, (row, start, end) in enumerate(sequences):
        S = q.new_zeros(q.shape[2], k.shape[-1], v.shape[-1]) if initial_state is None else initial_state[number]
        for t in range(start, end):
            q_t, k_t, v_t = (x[row, t] for x in (q, k, v))
            before = S
            if g is not None:
                S = g[row, t].exp().view(q.shape[2], -1, 1) * S
            if a is not None and b is not None:
                S = S + torch.einsum("hk,hv->hkv", b[row, t], torch.einsum("hk,hkv->hv", a[row, t], before))
            if beta is not None:
                v_t = beta[row, t][:, None] * (v_t - torch.einsum("hk,hkv->hv", k_t, S))
            S = S + torch.einsum("hk,hv->hkv", k_t, v_t)
            read = S if u is None else before + torch.einsum("hk,hv->hkv", u * k_t, v_t)
            outputs.append(scale * torch.einsum("hk,hkv->hv", q_t, read))
        states.append(S)
    o = torch.stack(outputs).view(*q.shape[:3], v.shape[-1])
    return o, torch.stack(states) if output_final_state else None


@pytest.fixture(autouse=True)
def operations(monkeypatch: pytest.MonkeyPatch) -> None:
    def per_head(*arguments: Any, g: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor | None]:
        assert g is None or g.dim() == 3
        return documented(*arguments, g=g, **options)

    def per_channel(*arguments: Any, g: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
        assert g.dim() == 4
        return documented(*arguments, g=g, **options)

    def rwkv6(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
        return per_channel(r, k, v, g=w, u=u, **options)

    def dplr(*arguments: Any, gk: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
        return per_channel(*arguments, g=gk, **options)

    monkeypatch.setattr(fla, "chunk_simple_gla", per_head, raising=False)
    monkeypatch.setattr(fla, "chunk_gated_delta_rule", per_head, raising=False)
    monkeypatch.setattr(fla, "chunk_gla", per_channel, raising=False)
    monkeypatch.setattr(fla, "chunk_kda", per_channel, raising=False)
    monkeypatch.setattr(fla, "chunk_rwkv6", rwkv6, raising=False)
    monkeypatch.setattr(fla, "chunk_dplr_delta_rule", dplr, raising=False)
    monkeypatch.setattr(fla, "_missing", None)


def both(case: Case, extra: list[Tensor], names: tuple[str, ...], **options: Any) -> Iterator[Kernel]:
    """Our kernel and the package's, of the case's tokens and then `extra` ones, which are options by their names."""
    basic = 3 if case.kernel == "recurrence" else 4
    ours, theirs = (recurrence, fla.recurrence) if case.kernel == "recurrence" else (delta, fla.delta)
    for kernel in (ours, theirs):

        def call(*tokens: Tensor, rows: Rows, state: Any, kernel: Kernel = kernel) -> tuple[Tensor, Any]:
            tokens, more = tokens[: len(tokens) - len(extra)], tokens[len(tokens) - len(extra) :]
            log_decay = tokens[basic] if len(tokens) > basic else case.constant
            state = case.state if state is None else state
            named = dict(zip(names, more, strict=True))
            arguments = list(tokens[:basic])
            if "second_k" in named:
                named["write"], arguments[2] = (named.pop("second_k"), arguments[2]), None
            return kernel(*arguments, log_decay, rows=rows, state=state, causal=True, **named, **options)

        yield call


def compare(case: Case, extra: list[Tensor], names: tuple[str, ...], others: list[Tensor], **options: Any) -> None:
    tokens, length = [*case.tokens, *extra], case.tokens[0].shape[1]
    for layout in ("plain", "segments"):
        segments = segments_of(layout, length)
        ours, theirs = both(case, extra, names, **options)
        found, expected = (with_gradients(run, tokens, [*case.others, *others], segments) for run in (theirs, ours))
        close(found, expected, 1e-5)
        whole, pieces = theirs(*tokens, rows=rows_of(tokens[0]), state=None), None
        pieces = in_pieces(theirs, tokens, None, random_cuts(length))
        close(pieces, whole, 1e-5)


@pytest.mark.parametrize("length", [1, 7, 33])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", ["recurrence", "delta"])
def test_decays(kernel: str, kind: str, length: int) -> None:
    compare(make_case(kernel, kind, length).cast(torch.float32), [], (), [])


@pytest.mark.parametrize("kind", KINDS)
def test_bonus(kind: str) -> None:
    bonus = torch.randn(H, K, requires_grad=True)
    compare(make_case("recurrence", kind, 7).cast(torch.float32), [], (), [bonus], bonus=bonus)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("undecayed", [False, True])
@pytest.mark.parametrize("names", [(), ("erase",), ("second_k",), ("erase", "second_k")])
def test_diagonal_plus_low_rank(names: tuple[str, ...], undecayed: bool, kind: str) -> None:
    extra = [torch.nn.functional.normalize(torch.randn(B, 7, H, K), dim=-1).requires_grad_() for _ in names]
    compare(make_case("delta", kind, 7).cast(torch.float32), extra, names, [], erase_undecayed=undecayed)


def test_autocast_decides_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def operation(**inputs: Any) -> tuple[Tensor, Tensor]:
        seen.update({name: value.dtype for name, value in inputs.items() if isinstance(value, Tensor)})
        return inputs["v"], inputs["initial_state"]

    monkeypatch.setattr(fla, "chunk_gla", operation)
    case = make_case("recurrence", "channel", 5).cast(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o, _ = fla.recurrence(*case.tokens, rows=rows_of(case.tokens[0]), state=case.state, causal=True)
    half, full = torch.bfloat16, torch.float32
    assert seen == {"q": half, "k": half, "v": half, "g": full, "initial_state": full}
    assert o.dtype == full


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        ("recurrence", {"causal": False}, "two directions in the kernel recurrence"),
        ("recurrence", {"readout": "value"}, "a readout on the value side"),
        ("delta", {"causal": False}, "two directions in the kernel delta"),
        ("delta", {"write": (torch.ones(B, 5, H, K), torch.ones(B, 5, H, V))}, "both a target and a second write"),
    ],
)
def test_what_is_not_covered(kernel: str, options: dict[str, Any], message: str) -> None:
    case = make_case(kernel, "scalar", 5)
    call = getattr(fla, kernel)
    with pytest.raises(ValueError, match=message) as caught:
        call(*case.tokens, **{"rows": rows_of(case.tokens[0]), "state": None, "causal": True, **options})
    assert "\n" not in str(caught.value)


def test_wide_keys() -> None:
    q = torch.zeros(1, 2, 1, 257)
    with pytest.raises(ValueError, match="keys of 257 channels in a head"):
        fla.recurrence(q, q, q, None, rows=rows_of(q), state=None, causal=True)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fla, "_missing", ImportError("No module named 'fla'"))
    with pytest.raises(ValueError, match=r"pip install 'paribus\[fla\]'\): No module named 'fla'"):
        fla.implementation()
