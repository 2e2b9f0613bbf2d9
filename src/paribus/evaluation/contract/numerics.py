"""What every component keeps numerically: shapes, dtypes, gradients, finite at loud and long inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .subjects import WIDTH, Check, Kind, Pair, agree, build, finite, refusal, tokens

HALF = 0.1
"""Relative error, in the Frobenius norm, that bfloat16 may add."""


def check_shape(kind: Kind, name: str) -> None:
    """Any B and T; shape and dtype of the input."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for module in _directions(kind, name, dtype):
            for B, T in ((1, 1), (2, 7), (3, 33)):
                y = kind.output(module, tokens(B, T, dtype=dtype))
                assert y.shape == (B, T, WIDTH), f"{name}: shape: {tuple(y.shape)} for an input of {(B, T, WIDTH)}"
                assert y.dtype == dtype, f"{name}: dtype: {y.dtype} for an input of {dtype}"
                finite(f"{name}: {dtype} at B={B}, T={T}", y)


def check_half_precision(kind: Kind, name: str) -> None:
    """In bfloat16, and under autocast, answers stay close to those in float32."""
    exact, x = build(kind, name), tokens(2, 40)
    expected = kind.output(exact, x).detach()
    half = kind.output(build(kind, name, dtype=torch.bfloat16), x.bfloat16())
    module, single = build(kind, name, dtype=torch.float32), x.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        automatic = kind.output(module, single)
    for way, y in (("bfloat16", half), ("autocast", automatic)):
        error = float((y.detach().double() - expected).norm() / expected.norm())
        assert error < HALF, f"{name}: {way}: relative error {error:.3f}, allowed {HALF}"
    automatic.float().square().sum().backward()
    for part, tensor in (("x", single), *module.named_parameters()):
        finite(f"{name}: autocast: gradient of {part}", tensor.grad)


def check_gradients(kind: Kind, name: str) -> None:
    """From its initial values every parameter of two layers, and the input, gets a finite gradient, not zero."""
    for pair in zip(*(_directions(kind, name, torch.float32, layer) for layer in (0, 1)), strict=True):
        x, module = tokens(2, 17, dtype=torch.float32).requires_grad_(), Pair(*pair)
        (module(x) * tokens(2, 17, seed=2, dtype=torch.float32)).sum().backward()
        for part, tensor in (("x", x), *module.named_parameters()):
            gradient = finite(f"{name}: gradient of {part}", tensor.grad)
            assert gradient.any(), f"{name}: gradient of {part} is zero"


def check_gradient_values(kind: Kind, name: str) -> None:
    """The gradient of x and of each parameter is that of central differences along a random direction."""
    for module in _directions(kind, name, torch.float64):
        x, weights = tokens(2, 5).requires_grad_(), tokens(2, 5, seed=2)
        parts = {"x": x, **dict(module.named_parameters())}

        def value(module: torch.nn.Module = module, x: Tensor = x, weights: Tensor = weights) -> Tensor:
            return (kind.output(module, x) * weights).sum()

        gradients = torch.autograd.grad(value(), list(parts.values()))
        for seed, (part, gradient) in enumerate(zip(parts, gradients, strict=True)):
            direction = _direction(gradient, seed)
            expected = _difference(value, parts[part], direction)
            got = float((gradient * direction).sum())
            assert abs(got - expected) <= 1e-5 * (float(gradient.norm()) + 1e-3), (
                f"{name}: gradient of {part}: {got:.6g} along a direction, differences give {expected:.6g}"
            )


def check_long(kind: Kind, name: str) -> None:
    """2,048 tokens give finite answers and gradients."""
    module = build(kind, name, dtype=torch.float32, longest=2048)
    x = tokens(1, 2048, dtype=torch.float32).requires_grad_()
    y = kind.output(module, x)
    finite(f"{name}: 2,048 tokens", y)
    y.square().mean().backward()
    for part, tensor in (("x", x), *module.named_parameters()):
        finite(f"{name}: 2,048 tokens: gradient of {part}", tensor.grad)


def check_loud(kind: Kind, name: str) -> None:
    """Inputs a thousand times too large give finite answers and gradients."""
    for module in _directions(kind, name, torch.float32):
        x = (1000 * tokens(2, 70, dtype=torch.float32)).requires_grad_()
        y = kind.output(module, x)
        finite(f"{name}: inputs × 1,000", y)
        y.mean().backward()
        for part, tensor in (("x", x), *module.named_parameters()):
            finite(f"{name}: inputs × 1,000: gradient of {part}", tensor.grad)


def check_beyond_the_longest(kind: Kind, name: str) -> None:
    """Past `max_length` a component works, or says so in one line; in one call or token by token alike."""
    module, x = build(kind, name, longest=8), tokens(1, 9)
    try:
        whole = kind.output(module, x)
    except ValueError as problem:
        clear = "8" in str(problem) and "\n" not in str(problem)
        if not clear:
            raise AssertionError(f"{name}: beyond max_length 8: unclear: {problem}") from problem
        if not kind.alone:
            _, state = module(x[:, :8], keep_state=True)
            refusal(f"{name}: token 9 of max_length 8", lambda: module(x[:, 8:], state=state))
        return
    finite(f"{name}: 9 tokens of max_length 8", whole)
    agree(f"{name}: beyond max_length 8: the tokens before", whole[:, :8], kind.output(module, x[:, :8]), 1e-10)


def _direction(like: Tensor, seed: int) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)


@torch.no_grad()
def _difference(value: Callable[[], Tensor], tensor: Tensor, direction: Tensor, step: float = 1e-6) -> float:
    """The derivative of `value` as `tensor` moves along `direction`."""
    kept = tensor.clone()
    values = []
    for moved in (kept + step * direction, kept - step * direction, kept):
        tensor.copy_(moved)
        values.append(value().item())
    return (values[0] - values[1]) / (2 * step)


def _directions(kind: Kind, name: str, dtype: torch.dtype, layer: int = 0) -> Iterator[torch.nn.Module]:
    for causal in (True,) if kind.alone else (True, False):
        yield build(kind, name, causal=causal, dtype=dtype, layer=layer)


NUMERICS: dict[str, Check] = {
    "shape": check_shape,
    "half_precision": check_half_precision,
    "gradients": check_gradients,
    "gradient_values": check_gradient_values,
    "long": check_long,
    "loud": check_loud,
    "beyond_the_longest": check_beyond_the_longest,
}
