"""Feature maps: their closed forms, their widths, their signs, and what they do with loud inputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers.initialization import guard_torch_init_functions

from paribus.evaluation.contract.subjects import shake
from paribus.nn.features import FEATURES, Feature, make_feature, products
from paribus.nn.initialization import initialize

H, K = 2, 6


def feature_of(name: str, loud: bool = True, seed: int = 0) -> Feature:
    feature = make_feature(name, H, K)
    initialize(feature, seed=seed)
    if loud:
        shake(feature)
    return feature.double()


def inputs(seed: int = 0, K: int = K) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 3, 50, H, K, generator=generator, dtype=torch.float64)
    return q, k


@pytest.mark.parametrize("name", FEATURES)
def test_width_and_dtype(name: str) -> None:
    feature = feature_of(name)
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        y = feature.to(dtype)(inputs()[0].to(dtype))
        assert y.shape == (3, 50, H, feature.width)
        assert y.dtype == wide


@pytest.mark.parametrize("name", FEATURES)
def test_autocast_does_not_round_features(name: str) -> None:
    feature, x = feature_of(name).float(), inputs()[0].float()
    with torch.autocast("cpu", torch.bfloat16):
        y = feature(x)
    torch.testing.assert_close(y, feature(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_gradients_are_finite_and_reach_every_parameter(name: str, size: float) -> None:
    feature = feature_of(name, loud=False).float()
    x = (size * inputs()[0].float()).requires_grad_()
    y = feature(x)
    assert y.isfinite().all()
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    for tensor in (x, *feature.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
        assert size > 1 or tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("name", FEATURES)
def test_signs_of_products_are_as_declared(name: str) -> None:
    feature = feature_of(name)
    q, k = inputs()
    weights = torch.einsum("bthf,bshf->bhts", feature(q), feature(k))
    assert feature.nonnegative == bool((weights >= -1e-12).all())


def elu_one(x: Tensor) -> Tensor:
    return torch.where(x > 0, x + 1, x.exp())


def dpfp(x: Tensor) -> Tensor:
    r = [*x.clamp(min=0).unbind(-1), *(-x).clamp(min=0).unbind(-1)]
    return torch.stack([r[i] * r[i - 1] for i in range(2 * K)], -1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("identity", lambda x: x),
        ("relu", lambda x: x.clamp(min=0)),
        ("relu_squared", lambda x: x.clamp(min=0) ** 2),
        ("elu", lambda x: elu_one(x) - 1),
        ("elu_one", elu_one),
        ("silu", lambda x: x / (1 + (-x).exp())),
        ("sigmoid", lambda x: 1 / (1 + (-x).exp())),
        ("softmax", lambda x: x.exp() / x.exp().sum(-1, keepdim=True)),
        ("dpfp", dpfp),
    ],
)
def test_closed_forms(name: str, expected: object) -> None:
    x = inputs()[0]
    torch.testing.assert_close(feature_of(name)(x), expected(x))  # type: ignore[operator]


def score(q: Tensor, k: Tensor) -> Tensor:
    return (q * k).sum(-1)


def test_products_are_the_squared_score() -> None:
    q, k = inputs()
    torch.testing.assert_close(score(products(q), products(k)), score(q, k) ** 2)
    torch.testing.assert_close(products(q[..., :1]), q[..., :1] ** 2)


def test_taylor_is_the_exponential_to_second_order() -> None:
    feature, (q, k) = feature_of("taylor"), inputs()
    s = score(q, k) / math.sqrt(K)
    torch.testing.assert_close(score(feature(q), feature(k)), 1 + s + s**2 / 2)


def test_rebased_is_the_squared_score_of_what_is_normalised_scaled_and_shifted() -> None:
    first, second = feature_of("rebased"), feature_of("rebased", seed=1)
    q, k = inputs()

    def normalised(feature: Feature, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        w, b = feature.scale, feature.shift
        return torch.stack(
            [
                w[h] * (c / (c.square().mean(-1, keepdim=True) + 1e-5).sqrt()) + b[h]
                for h, c in enumerate(centred.unbind(2))
            ],
            2,
        )

    expected = score(normalised(first, q), normalised(second, k)) ** 2 / K
    torch.testing.assert_close(score(first(q), second(k)), expected)


def each_head(x: Tensor, weight: Tensor) -> Tensor:
    return torch.stack([x[:, :, h] @ weight[h] for h in range(H)], 2)


def test_learned_maps_are_each_heads_own() -> None:
    x = inputs()[0]
    t2r, hedgehog, hadamard = (feature_of(name) for name in ("t2r", "hedgehog", "hadamard"))
    torch.testing.assert_close(t2r(x), (each_head(x, t2r.weight) + t2r.bias).clamp(min=0))
    z = each_head(x, hedgehog.weight) + hedgehog.bias
    torch.testing.assert_close(hedgehog(x), torch.cat([z.softmax(-1), (-z).softmax(-1)], -1))
    torch.testing.assert_close(hadamard(x), each_head(x, hadamard.first) * each_head(x, hadamard.second))


def test_hedgehog_begins_as_the_softmax_of_its_input_and_keeps_loaded_weights() -> None:
    feature, x = feature_of("hedgehog", loud=False), inputs()[0]
    torch.testing.assert_close(feature(x), torch.cat([x.softmax(-1), (-x).softmax(-1)], -1))
    shake(feature)
    kept = feature.weight.detach().clone()
    feature.weight._is_hf_initialized = True
    with guard_torch_init_functions():
        initialize(feature, seed=0)
    assert torch.equal(feature.weight, kept)


def test_performer_is_the_exponential_on_average() -> None:
    q, k = torch.tensor([[0.5, -1.0, 0.3, 0.8, 0.0, 1.2], [1.0, 0.2, -0.4, 0.5, 0.7, -0.3]], dtype=torch.float64)
    q, k = (x.expand(1, 1, 4000, K) for x in (q, k))
    feature = make_feature("performer", 4000, K)
    initialize(feature, seed=0)
    feature.double()
    mean = float(score(feature(q), feature(k)).detach().mean())
    assert abs(mean / float((score(q, k) / math.sqrt(K)).exp()[0, 0, 0]) - 1) < 0.03


def test_an_unknown_feature_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown feature 'elu_on'; did you mean 'elu_one'"):
        make_feature("elu_on", H, K)
