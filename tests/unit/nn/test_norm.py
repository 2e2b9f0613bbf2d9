"""Every norm computes its equation, with the gradients of its equation, in every precision and at zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import initialize
from paribus.nn.norm import NORMS, make_norm
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

WIDTH = 24


def _mean_square(x: Tensor) -> Tensor:
    return x.square().mean(-1, keepdim=True)


def _layer_norm(x: Tensor, weight: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (_mean_square(centred) + 1e-6).sqrt() * weight


def _length(x: Tensor, least: float) -> Tensor:
    return x.square().sum(-1, keepdim=True).sqrt().clamp(min=least)


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "rms_norm": lambda x, weight: x / (_mean_square(x) + 1e-6).sqrt() * weight,
    "simple_rms_norm": lambda x: x / (_mean_square(x) + 1e-6).sqrt(),
    "layer_norm": _layer_norm,
    "l2_norm": lambda x, weight: x / _length(x, 1e-16) * weight,
    "scale_norm": lambda x, scale: scale * x / _length(x, 1e-5),
    "dynamic_tanh": lambda x, alpha, weight, bias: torch.tanh(alpha * x) * weight + bias,
    "none": lambda x: x,
}
TORCH: dict[str, Callable[[], nn.Module]] = {
    "rms_norm": lambda: nn.RMSNorm(WIDTH, eps=1e-6),
    "simple_rms_norm": lambda: nn.RMSNorm(WIDTH, eps=1e-6, elementwise_affine=False),
    "layer_norm": lambda: nn.LayerNorm(WIDTH, eps=1e-6, bias=False),
}


def made(name: str, width: int = WIDTH) -> nn.Module:
    norm = make_norm(name, width)
    initialize(norm, seed=0)
    return norm


def shaken(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """With parameters that are no longer as they start."""
    norm = made(name).to(dtype)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return norm


def gradients(y: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return torch.autograd.grad((y * weights).sum(), of)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("size", [3.0, 1e-6, 0.0], ids=["usual", "tiny", "with zeros"])
def test_the_equation_and_its_gradients(name: str, size: float) -> None:
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64) * (size or 1)
    if size == 0:
        x[0, 2:4] = 0
    norm = shaken(name)
    inputs = [x.requires_grad_(), *norm.parameters()]
    y, expected = norm(x), FORMULAS[name](*inputs)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    if size == 0:  # the root of the written-out length has no slope at zero: take the equation where it has
        rows = x.detach().abs().sum(-1) > 0
        y, expected = y[rows], expected[rows]
    for got, wanted in zip(gradients(y, *inputs), gradients(expected, *inputs), strict=True):
        wanted = wanted.nan_to_num(nan=0.0)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NORMS)
def test_numerical_gradients(name: str) -> None:
    norm = shaken(name)
    x = torch.randn(3, 2, WIDTH, dtype=torch.float64, requires_grad=True)
    names = [part for part, _ in norm.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(norm, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *norm.parameters()))


@pytest.mark.parametrize("name", TORCH)
def test_like_torch(name: str) -> None:
    norm, theirs = shaken(name), TORCH[name]().double()
    theirs.load_state_dict(norm.state_dict())
    x = torch.randn(4, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(norm(x), theirs(x), rtol=1e-12, atol=1e-12)
    for got, wanted in zip(
        gradients(norm(x), x, *norm.parameters()), gradients(theirs(x), x, *theirs.parameters()), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NORMS)
def test_zero_is_harmless(name: str, dtype: torch.dtype) -> None:
    norm = made(name).to(dtype)
    x = torch.zeros(2, 3, WIDTH, dtype=dtype, requires_grad=True)
    y = norm(x)
    assert not y.any()
    found = torch.autograd.grad(y.float().sum(), [x, *norm.parameters()])
    assert all(gradient.isfinite().all() for gradient in found)


@pytest.mark.parametrize("name", NORMS)
def test_halves_are_computed_wide(name: str) -> None:
    """A bfloat16 answer is the exact one, rounded once; large values do not overflow on the way."""
    norm = shaken(name, torch.bfloat16)
    for dtype, size in ((torch.bfloat16, 3.0), (torch.float16, 3e3)):
        x = (torch.randn(4, 7, WIDTH) * size).to(dtype).requires_grad_()
        y = norm.to(dtype)(x)
        exact = FORMULAS[name](x.double(), *(parameter.double() for parameter in norm.parameters()))
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-2 * torch.finfo(dtype).eps)
        assert gradients(y, x)[0].dtype == dtype


def test_lengths_at_the_start() -> None:
    x = torch.randn(100, 256) * 7
    lengths = {name: made(name, 256)(x).norm(dim=-1) for name in NORMS}
    for name in ("rms_norm", "simple_rms_norm", "layer_norm", "scale_norm"):
        torch.testing.assert_close(lengths[name], torch.full((100,), 16.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(lengths["l2_norm"], torch.ones(100), rtol=1e-5, atol=0)
    assert torch.equal(lengths["none"], x.norm(dim=-1))
    assert (made("dynamic_tanh", 256)(x) == torch.tanh(x / 2)).all()


@pytest.mark.parametrize("name", NORMS)
def test_only_what_the_gradient_needs_is_computed(name: str) -> None:
    norm = made(name).requires_grad_(False)
    x = torch.randn(2, 3, WIDTH, requires_grad=True)
    assert gradients(norm(x), x)[0].isfinite().all()


@pytest.mark.parametrize("name", NORMS)
def test_a_model_with_it_learns_and_is_saved(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    block = {"mixer": {"name": "attention"}, "channel": {"name": "mlp"}, "norm": name}
    model = ParibusForCausalLM(ParibusConfig(hidden_size=16, num_hidden_layers=2, blocks={"main": block}, norm=name))
    initialize(model, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    ids = torch.randint(256, (2, 16))
    losses = []
    for _ in range(8):
        losses.append(model(ids, labels=ids).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    for part, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), part
    folder = tmp_path_factory.mktemp(name)
    model.save_pretrained(folder)
    loaded = ParibusForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded.eval()(ids).logits, model.eval()(ids).logits)


def test_an_unknown_norm() -> None:
    with pytest.raises(ValueError, match=r"unknown norm 'l2nrm'; did you mean 'l2_norm'\?"):
        make_norm("l2nrm", 8)


def test_a_floor_hides_no_direction() -> None:
    """Below its floor a length is no part of the slope: y = x / floor there, in all directions alike."""
    for name, floor in (("l2_norm", 1e-16), ("scale_norm", 1e-5)):
        norm = made(name).double()
        x = torch.full((1, 1, WIDTH), floor / 100, dtype=torch.float64, requires_grad=True)
        scale = 1.0 if name == "l2_norm" else WIDTH**0.5
        torch.testing.assert_close(norm(x), x * (scale / floor))
        torch.testing.assert_close(gradients(norm(x), x)[0], gradients(x * (scale / floor), x)[0])
