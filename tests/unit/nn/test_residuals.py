"""Each residual scheme beside its formula, written out: outputs and all gradients in float64; and how each starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from paribus.evaluation.contract.subjects import shake
from paribus.nn.block import Block
from paribus.nn.component import RESIDUALS, make_residual
from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import INITIALIZATIONS, initialize
from paribus.nn.mixer import Context, Placement
from paribus.nn.norm import NORMS
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

WIDTH, LAYERS = 16, 8
CONDITION = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(4), dtype=torch.float64, requires_grad=True)
"""What the rows are made for; a scheme may read it or not."""
Function = Callable[[Tensor], Tensor]
Formula = Callable[[Any, Tensor, Function, Function], Tensor]
"""formula(scheme, x, f, g): the new stream by the mixer f and the channel mixer g; without one, g is zero."""


def pre(scheme: Any, x: Tensor, f: Function, g: Function) -> Tensor:
    y = x + f(scheme.mixer_norm(x))
    return y + g(scheme.channel_norm(y))


def post(scheme: Any, x: Tensor, f: Function, g: Function, alpha: float = 1.0) -> Tensor:
    y = scheme.mixer_norm(alpha * x + f(x))
    return scheme.channel_norm(alpha * y + g(y)) if scheme.has_channel else y


def deep_norm(scheme: Any, x: Tensor, f: Function, g: Function) -> Tensor:
    return post(scheme, x, f, g, alpha=2.0)  # (2 · 8 layers)^(1/4)


def sandwich(scheme: Any, x: Tensor, f: Function, g: Function) -> Tensor:
    y = x + scheme.mixer_output_norm(f(scheme.mixer_norm(x)))
    return y + scheme.channel_output_norm(g(scheme.channel_norm(y))) if scheme.has_channel else y


def parallel(scheme: Any, x: Tensor, f: Function, g: Function) -> Tensor:
    return x + f(scheme.shared_norm(x)) + g(scheme.shared_norm(x))


def rezero(scheme: Any, x: Tensor, f: Function, g: Function) -> Tensor:
    y = x + scheme.scale[0] * f(x)
    return y + scheme.scale[0] * g(y)


def rezero_with_norm(scheme: Any, x: Tensor, f: Function, g: Function) -> Tensor:
    y = x + scheme.scale[0] * f(scheme.mixer_norm(x))
    return y + scheme.scale[0] * g(scheme.channel_norm(y))


def layer_scale(scheme: Any, x: Tensor, f: Function, g: Function) -> Tensor:
    y = x + f(scheme.mixer_norm(x)) @ scheme.mixer_scale.diag()
    return y + g(scheme.channel_norm(y)) @ scheme.channel_scale.diag() if scheme.has_channel else y


def augmented(scheme: Any, x: Tensor, f: Function, g: Function) -> Tensor:
    n = scheme.mixer_norm(x)
    maps = [(shortcut.down.weight, shortcut.output.weight) for shortcut in scheme.shortcuts]
    y = x + f(n) + sum(functional.gelu(n @ W.T) @ U.T for W, U in maps)
    return y + g(scheme.channel_norm(y))


def reversible(scheme: Any, x: Tensor, f: Function, g: Function) -> Tensor:
    """The first block of a model: both streams are x."""
    y = x + f(scheme.mixer_norm(x))
    z = x + g(scheme.channel_norm(y)) if scheme.has_channel else x
    return y + z


def adaln_zero(scheme: Any, x: Tensor, f: Function, g: Function) -> Tensor:
    made_of = functional.silu(CONDITION) @ scheme.modulation.weight.T + scheme.modulation.bias
    s1, b1, g1, *others = made_of.view(2, -1, 1, WIDTH).unbind(1)
    y = x + g1 * f((1 + s1) * scheme.mixer_norm(x) + b1)
    if not scheme.has_channel:
        return y
    s2, b2, g2 = others
    return y + g2 * g((1 + s2) * scheme.channel_norm(y) + b2)


FORMULAS: dict[str, list[tuple[dict[str, Any], Formula]]] = {
    "pre": [({}, pre)],
    "post": [({}, post), ({"preset": "deep_norm"}, deep_norm), ({"alpha": 2.0}, deep_norm)],
    "sandwich": [({}, sandwich)],
    "parallel": [({}, parallel)],
    "rezero": [({}, rezero), ({"pre_norm": True}, rezero_with_norm)],
    "layer_scale": [({}, layer_scale)],
    "augmented": [({"reduction": 4}, augmented), ({"reduction": 16, "count": 3}, augmented)],
    "reversible": [({}, reversible)],
    "adaln_zero": [({}, adaln_zero)],
}
CASES = [(name, *case) for name in RESIDUALS.names() for case in FORMULAS.get(name, [])]


def block_of(residual: dict[str, Any], norm: str = "rms_norm", channel: bool = True, rule: str = "fan_in") -> Block:
    config = ParibusConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        blocks={
            "main": {
                "mixer": {"name": "attention"},
                "channel": {"name": "glu"} if channel else None,
                "residual": residual,
                "norm": norm,
            }
        },
    )
    block = Block(config, "main", layer=1)
    initialize(block, seed=0, rule=rule)
    return block


def gradients(y: Tensor, block: Block, x: Tensor) -> dict[str, Tensor]:
    """Of x, the condition and every parameter, zero where there is none, in a random direction of y."""
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)
    leaves = {"x": x, "condition": CONDITION, **dict(block.named_parameters())}
    values = torch.autograd.grad(y, list(leaves.values()), direction, materialize_grads=True)
    return dict(zip(leaves, values, strict=True))


def test_every_scheme_has_a_formula() -> None:
    assert set(FORMULAS) == set(RESIDUALS.names())


@pytest.mark.parametrize("channel", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("name", "settings", "formula"), CASES)
def test_the_scheme_is_its_formula(
    name: str, settings: dict[str, Any], formula: Formula, norm: str, channel: bool
) -> None:
    block = block_of({"name": name, **settings}, norm, channel)
    shake(block)
    block.double()
    if not channel:
        block.residual.channel_norm = torch.nn.Identity()  # so that formulas need not ask
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64, requires_grad=True)
    expected = formula(
        block.residual,
        x,
        lambda x: block.mixer(x)[0],
        lambda x: torch.zeros_like(x) if block.channel is None else block.channel(x)[0],
    )
    exact = gradients(expected, block, x)
    for recompute in (False, True):
        stream, _ = block(block.residual.start(x, recompute), None, None, False, Context(condition=CONDITION))
        y = block.residual.end(stream)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
        for key, gradient in gradients(y, block, x).items():
            where = f"{key}, recompute={recompute}"
            torch.testing.assert_close(
                gradient, exact[key], rtol=1e-9, atol=1e-9, msg=lambda text, where=where: f"{where}: {text}"
            )


def test_rezero_starts_as_the_identity() -> None:
    block = block_of({"name": "rezero"})
    x = torch.randn(2, 5, WIDTH)
    assert torch.equal(block(x, None, None, False, Context())[0], x)


@pytest.mark.parametrize("rule", INITIALIZATIONS)
@pytest.mark.parametrize("condition", [CONDITION.float(), None], ids=["condition", "none"])
def test_adaln_zero_starts_as_the_identity_whatever_the_rule(rule: str, condition: Tensor | None) -> None:
    block = block_of({"name": "adaln_zero"}, rule=rule)
    x = torch.randn(2, 5, WIDTH)
    assert torch.equal(block(x, None, None, False, Context(condition=condition))[0], x)


def test_without_a_condition_adaln_zero_has_learned_vectors() -> None:
    block = block_of({"name": "adaln_zero"})
    shake(block)
    modulation: Any = block.residual.modulation
    with torch.no_grad():
        modulation.weight.zero_()
    x = torch.randn(2, 5, WIDTH)
    conditioned, bare = (
        block(x, None, None, False, Context(condition=condition))[0] for condition in (CONDITION.float(), None)
    )
    assert torch.equal(conditioned, bare)
    assert not torch.equal(bare, x)


def test_layer_scale_starts_small() -> None:
    for given, initial in (({}, 1e-4), ({"initial": 0.1}, 0.1)):
        scheme: Any = block_of({"name": "layer_scale", **given}).residual
        for scale in (scheme.mixer_scale, scheme.channel_scale):
            assert torch.equal(scale, torch.full((WIDTH,), initial))


def test_dropout_acts_on_branches_only() -> None:
    block = block_of({"name": "pre"})
    block.dropout.p = 1.0 - 1e-9
    x = torch.randn(2, 5, WIDTH)
    torch.testing.assert_close(block.train()(x, None, None, False, Context())[0], x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "post", "alpha": 0.0}, "residual: post: alpha is 0.0; a positive number is needed"),
        ({"name": "post", "scaling": "deep"}, "residual: post: scaling is 'deep'; allowed: 'none', 'deep_norm'"),
        ({"name": "augmented"}, "residual: augmented: reduction is 32; 1 to the width 16 is allowed"),
        ({"name": "augmented", "reduction": 0}, "residual: augmented: reduction is 0; 1 to the width 16 is allowed"),
        ({"name": "augmented", "reduction": 4, "count": 0}, "residual: augmented: count is 0; at least 1 is needed"),
        ({"name": "reversibel"}, "residual: unknown residual 'reversibel'; did you mean 'reversible'?"),
    ],
)
def test_mistakes_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make_residual(settings, Placement(WIDTH), "rms_norm", has_channel=True)
    assert str(caught.value) == message


def test_schemes_of_one_and_of_two_streams_do_not_mix() -> None:
    parts = {"mixer": {"name": "attention"}, "channel": {"name": "glu"}}
    blocks = {name: {**parts, "residual": {"name": name}} for name in ("pre", "reversible", "post")}
    config = ParibusConfig(hidden_size=16, blocks=blocks, layout=["pre", "post", "reversible"])
    with pytest.raises(ValueError) as caught:
        ParibusForCausalLM(config)
    assert str(caught.value) == (
        "block 'reversible': residual: its scheme carries 2 streams; that of block 'pre' carries 1, "
        "and all blocks of a model must carry as many"
    )
