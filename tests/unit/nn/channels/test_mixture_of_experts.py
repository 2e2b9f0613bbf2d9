"""The mixture of experts is Mixtral's, its losses are those of the papers, and padding has no part in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func

from paribus.evaluation.contract.subjects import shake
from paribus.nn.component import make_channel
from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import initialize
from paribus.nn.kernels.cost import FlopCounter
from paribus.nn.mixer import Context, Placement
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

WIDTH, EXPERTS, INNER = 16, 5, 24
SETTINGS = {"name": "mixture_of_experts", "num_experts": EXPERTS, "expansion": INNER / WIDTH}


def made(dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    channel = make_channel({**SETTINGS, **settings}, Placement(WIDTH))
    initialize(channel, seed=0)
    shake(channel)
    return channel.to(dtype)


def tokens(B: int, T: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, T, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def test_it_is_mixtral() -> None:
    ours = made()
    config = MixtralConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        experts_implementation="eager",
    )
    theirs = MixtralSparseMoeBlock(config).double()
    with torch.no_grad():
        theirs.gate.weight.copy_(ours.router.weight)
        theirs.experts.gate_up_proj.copy_(torch.cat([ours.gate.matrices(), ours.up.matrices()], 1))
        theirs.experts.down_proj.copy_(ours.output.matrices())
    x, weights = tokens(2, 19), tokens(2, 19) + 1
    results = []
    for block in (lambda x: ours(x)[0], theirs):
        leaf = x.clone().requires_grad_()
        y = block(leaf)
        (y * weights).sum().backward()
        results.append((y.detach(), leaf.grad))
    # Theirs computes the router's probabilities in float32 whatever the input.
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        ours.output.weight.grad, theirs.experts.down_proj.grad.flatten(0, 1), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(ours.router.weight.grad, theirs.gate.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("k", [1, 2])
def test_losses_are_those_of_the_papers(k: int, padded: bool) -> None:
    channel = made(experts_per_token=k, normalise=False, balance_loss=0.5, router_z_loss=0.25)
    x = tokens(3, 11)
    segments = torch.ones(3, 11, dtype=torch.long)
    if padded:
        segments[1, :4] = 0
        segments[2] = 0
    context = Context()
    channel(x, segments=segments if padded else None, context=context)
    logits = x.flatten(0, 1) @ channel.router.weight.T
    balance = load_balancing_loss_func((logits,), EXPERTS, k, attention_mask=segments)
    torch.testing.assert_close(context.losses["load_balance"], 0.5 * balance.double(), rtol=1e-6, atol=0)
    z = logits[segments.flatten() != 0].exp().sum(-1).log() ** 2
    torch.testing.assert_close(context.losses["router_z"], 0.25 * z.mean(), rtol=1e-12, atol=0)
    for loss in context.losses.values():
        (gradient,) = torch.autograd.grad(loss, [channel.router.weight], retain_graph=True)
        assert gradient.any()


def test_without_weights_there_are_no_losses() -> None:
    context = Context()
    made(balance_loss=0.0)(tokens(1, 4), context=context)
    assert not context.losses


def test_even_routing_has_the_least_loss() -> None:
    channel, context = made(balance_loss=1.0), Context()
    with torch.no_grad():
        channel.router.weight.zero_()
    channel(tokens(2, 7), context=context)
    torch.testing.assert_close(context.losses["load_balance"], torch.tensor(2.0, dtype=torch.float64))


def test_an_expert_may_be_left_without_tokens() -> None:
    channel, x = made(experts_per_token=1, normalise=False), tokens(2, 9)
    x[..., 0] = 1
    with torch.no_grad():
        channel.router.weight.zero_()
        channel.router.weight[3, 0] = 5.0
    y, _ = channel(x)
    gate, up, output = (part.matrices()[3] for part in (channel.gate, channel.up, channel.output))
    alone = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ output.T
    weight = torch.tensor(5.0).exp().double() / (torch.tensor(5.0).exp() + EXPERTS - 1)
    torch.testing.assert_close(y, weight * alone, rtol=1e-6, atol=1e-9)
    y.sum().backward()
    learns = [bool(gradient.any()) for gradient in channel.up.weight.grad.chunk(EXPERTS)]
    assert learns == [False, False, False, True, False]


def test_the_router_is_not_rounded_under_autocast() -> None:
    channel, x = made(torch.float32), tokens(2, 9, torch.float32)
    expected = channel.router(x.flatten(0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        got = channel.router(x.flatten(0, 1))
    assert got.dtype == torch.float32 and torch.equal(got, expected)


def test_only_the_chosen_experts_cost() -> None:
    channel, x = made(torch.float32, num_shared_experts=1), tokens(2, 9, torch.float32)
    with FlopCounter() as counter, torch.no_grad():
        channel(x)
    combination = 2 * WIDTH * 2  # the weighted sum of two experts
    assert counter.total == 18 * (6 * WIDTH * INNER * 3 + 2 * WIDTH * EXPERTS + combination)


def test_a_model_trains_on_the_losses_of_all_its_layers() -> None:
    block = {"mixer": {"name": "attention"}, "channel": {**SETTINGS, "router_z_loss": 0.1}}
    model = ParibusForCausalLM(
        ParibusConfig(
            vocab_size=23, hidden_size=WIDTH, num_hidden_layers=2, max_position_embeddings=16, blocks={"main": block}
        )
    )
    ids = torch.randint(1, 23, (2, 9), generator=torch.Generator().manual_seed(0))
    output = model.train()(ids, labels=ids)
    assert {"cross_entropy", "load_balance", "router_z"} <= set(output.losses)
    torch.testing.assert_close(output.loss, sum(output.losses.values()))
    assert 2 * 2 * 0.02 * 0.9 < output.losses["load_balance"] < 2 * 2 * 0.02 * 2
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    silent = model.eval()(ids, labels=ids)
    torch.testing.assert_close(silent.loss, output.losses["cross_entropy"])
