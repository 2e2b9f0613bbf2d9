"""Recomputed couplings have the gradients of the same couplings under plain autograd, and keep no activations."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paribus.nn.block import Block
from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import initialize
from paribus.nn.mixer import Context, Mixer, Placement, make_context
from paribus.nn.residuals.reversible import Reversible
from paribus.nn.reversible import Pair, Tape
from paribus.nn.segments import Rows
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

MIXERS = ("attention", "gla", "rwkv7", "hgrn2", "short_convolution")
VOCABULARY, WIDTH, LENGTH = 61, 32, 17


def make(
    mixer: str = "attention", layers: int = 4, dropout: float = 0.0, precision: str = "float64"
) -> ParibusForCausalLM:
    residual = {"name": "reversible", "precision": precision}
    block = {"mixer": {"name": mixer}, "channel": {"name": "glu"}, "residual": residual}
    config = ParibusConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        max_position_embeddings=LENGTH,
        blocks={"main": block | {"dropout": dropout}},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = ParibusForCausalLM(config)
    initialize(model, seed=1)
    return model.double().train()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(3, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def segments() -> Tensor:
    """Two documents in one row, padding in the other."""
    segments = torch.ones(2, LENGTH, dtype=torch.long)
    segments[0, 9:], segments[1, :3] = 2, 0
    return segments


def blocks_of(model: ParibusForCausalLM) -> list[Any]:
    return list(model.model.blocks)


def written_out(model: ParibusForCausalLM, tokens: Tensor, segments: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Logits, and the sum of the layers' own losses, by the coupling itself under plain autograd."""
    body = model.model
    embedded = body.embedding(tokens)
    wide = embedded.to(torch.promote_types(embedded.dtype, torch.float64))
    x0 = x1 = wide
    context = make_context(body.blocks)
    for block in blocks_of(model):
        for part, norm in ((block.mixer, block.residual.mixer_norm), (block.channel, block.residual.channel_norm)):
            f = block.dropout(part(norm(x1.to(embedded.dtype)), segments=segments, context=context)[0])
            x0, x1 = x1, x0 + f
    hidden = body.norm((x0 + x1).to(embedded.dtype))
    return model.head(hidden), sum(context.losses.values(), torch.zeros(()))


def plain_loss(model: ParibusForCausalLM, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
    logits, losses = written_out(model, tokens, segments)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()) + losses


def ours(model: ParibusForCausalLM, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
    loss = model(tokens, attention_mask=segments, labels=tokens).loss
    assert isinstance(loss, Tensor)
    return loss


def gradients(loss: Callable[..., Tensor], model: ParibusForCausalLM, *inputs: Any) -> dict[str, Tensor | None]:
    """The loss itself and its gradients, by name; whatever is drawn is the same each time."""
    torch.manual_seed(7)
    model.zero_grad()
    value = loss(model, *inputs)
    value.backward()
    return {"loss": value.detach(), **{name: parameter.grad for name, parameter in model.named_parameters()}}


def check(model: ParibusForCausalLM, *inputs: Any, tolerance: float = 1e-9) -> None:
    expected = gradients(plain_loss, model, *inputs)
    for name, value in gradients(ours, model, *inputs).items():
        exact = expected[name]
        assert (value is None) == (exact is None), name
        if value is not None and exact is not None:
            assert exact.any(), f"{name}: zero proves nothing"
            off = float((value - exact).norm() / exact.norm())
            assert off <= tolerance, f"{name}: off by {off:.1e}"


@pytest.mark.parametrize("mixer", MIXERS)
def test_gradients_are_those_of_plain_autograd(mixer: str, tokens: Tensor, segments: Tensor) -> None:
    check(make(mixer), tokens)
    check(make(mixer, dropout=0.3), tokens, segments)


def test_in_float32_they_are_so_to_rounding(tokens: Tensor, segments: Tensor) -> None:
    """In streams of float64 a float32 model is inverted exactly, so that only sums differ in their order."""
    check(make(layers=24).float(), tokens, segments, tolerance=1e-6)


def test_under_autocast(tokens: Tensor) -> None:
    """The backward pass recomputes in the precision of the forward pass, wherever it is called."""

    def under_autocast(form: Callable[..., Tensor], inside: bool) -> Callable[..., Tensor]:
        def loss(model: ParibusForCausalLM, tokens: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=form is ours):
                value = form(model, tokens)
                if inside:
                    value.backward()
                    return value.detach().requires_grad_()
            return value

        return loss

    model = make().float()
    for inside in (False, True):
        expected = gradients(under_autocast(ours_with_all_states, inside), model, tokens)
        for name, value in gradients(under_autocast(ours, inside), model, tokens).items():
            exact = expected[name]
            assert value is not None and exact is not None
            off = float((value - exact).norm() / exact.norm())
            assert off < 1e-6, f"{name}, inside={inside}: off by {off:.1e}"
        assert expected["loss"] != gradients(plain_loss, model, tokens)["loss"], "autocast has computed something"


def ours_with_all_states(model: ParibusForCausalLM, tokens: Tensor) -> Tensor:
    """The form that keeps every activation."""
    loss = model(tokens, labels=tokens, output_hidden_states=True).loss
    assert isinstance(loss, Tensor)
    return loss


class Taxed(Mixer):
    """A channel mixer with a loss of its own, which draws random numbers."""

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        self.output = nn.Linear(placement.width, placement.width, bias=False, dtype=torch.float64)

    def mix(self, x: Tensor, rows: Rows, state: Any, context: Context | None) -> tuple[Tensor, None]:
        """A linear map of x with noise."""
        y = self.output(x * torch.rand_like(x))
        assert context is not None
        context.add_loss("size", 0.1 * y.square().mean())
        if self.placement.layer == 1:
            context.add_loss("once", 0.1 * y.abs().mean())
        return y, None


def taxed() -> ParibusForCausalLM:
    model = make()
    for layer, block in enumerate(blocks_of(model)):
        torch.manual_seed(layer)
        block.channel = Taxed(Placement(WIDTH, layer=layer), Taxed.Config())
    return model


def test_losses_of_layers_have_gradients(tokens: Tensor) -> None:
    model = taxed()
    check(model, tokens)
    losses = model(tokens, labels=tokens).losses
    assert set(losses) == {"cross_entropy", "size", "once"}
    assert losses["size"] > losses["once"] > 0


def test_losses_of_layers_alone_need_the_form_that_keeps_all(tokens: Tensor) -> None:
    def alone(model: ParibusForCausalLM, tokens: Tensor) -> Tensor:
        losses = model(tokens, labels=tokens, output_hidden_states=True).losses
        return losses["size"] + losses["once"]

    model = taxed()
    expected = gradients(lambda model, tokens: written_out(model, tokens)[1], model, tokens)
    for name, value in gradients(alone, model, tokens).items():
        if value is not None and expected[name] is not None:
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="a gradient enters a reversible model elsewhere than at its end"):
        model(tokens, labels=tokens).losses["size"].backward()


def test_layers_may_share_parameters(tokens: Tensor) -> None:
    model = make()
    first, second, third, fourth = blocks_of(model)
    third.mixer, fourth.channel = first.mixer, second.channel
    second.residual.mixer_norm = first.residual.channel_norm
    check(model, tokens)


def test_frozen_parameters_get_no_gradient(tokens: Tensor) -> None:
    model = make()
    for part in (model.model.embedding, blocks_of(model)[0], blocks_of(model)[2].mixer):
        part.requires_grad_(False)
    check(model, tokens)
    assert model.model.embedding.table.weight.grad is None


def test_only_a_part_of_the_gradients(tokens: Tensor) -> None:
    model = make()
    wanted = [blocks_of(model)[2].mixer.output.weight, model.model.embedding.table.weight]
    expected, found = (torch.autograd.grad(loss(model, tokens), wanted) for loss in (plain_loss, ours))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_two_forwards_at_once_and_a_graph_walked_twice(tokens: Tensor, segments: Tensor) -> None:
    def twice(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def both(model: ParibusForCausalLM, tokens: Tensor) -> Tensor:
            first, second = loss(model, tokens), loss(model, tokens.flip(1), segments)
            first.backward(retain_graph=True)
            return first + second

        return both

    model = make("rwkv7")
    expected = gradients(twice(plain_loss), model, tokens)
    for name, value in gradients(twice(ours), model, tokens).items():
        assert value is not None and expected[name] is not None
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)


def test_a_gradient_that_enters_between_blocks_is_refused(tokens: Tensor) -> None:
    model, between = make(), []
    blocks_of(model)[1].register_forward_hook(lambda block, inputs, output: between.append(output[0].second))
    model(tokens)
    with pytest.raises(ValueError, match="a gradient enters a reversible model elsewhere than at its end"):
        between[0].sum().backward()


def test_hooks_of_parameters_run_layer_by_layer(tokens: Tensor) -> None:
    model, order = make(), []
    for layer, block in enumerate(blocks_of(model)):
        for part, name in ((block.mixer, "mixer"), (block.channel, "channel")):
            part.output.weight.register_hook(lambda gradient, at=(layer, name): order.append(at))
    ours(model, tokens).backward()
    assert order == [(layer, name) for layer in (3, 2, 1, 0) for name in ("channel", "mixer")]


def test_the_random_generator_goes_on_as_if_nothing_was_recomputed(tokens: Tensor) -> None:
    model, drawn = make(dropout=0.3), []
    for loss in (plain_loss, ours):
        gradients(loss, model, tokens)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


@contextmanager
def tapes() -> Iterator[list[Pair]]:
    """Collects the first pair of every forward inside the block."""
    found: list[Pair] = []
    original = Reversible.start

    def start(self: Reversible, x: Tensor, recompute: bool) -> Pair:
        found.append(original(self, x, recompute))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reversible, "start", start)
        yield found


@pytest.mark.parametrize(
    ("dtype", "precision", "tolerance"),
    [
        (torch.float64, "float64", 1e-11),
        (torch.float32, "float64", 0.0),
        (torch.bfloat16, "float64", 0.0),
        (torch.float32, "float32", 1e-2),
    ],
)
def test_24_layers_are_inverted(tokens: Tensor, dtype: torch.dtype, precision: str, tolerance: float) -> None:
    model = make(layers=24, precision=precision).to(dtype)
    with tapes() as found:
        ours(model, tokens).backward()
    pair = found[0]
    assert pair.first.dtype == torch.promote_types(dtype, getattr(torch, precision))
    assert pair.tape is not None and pair.tape.here is not None and pair.tape.place == 0 and pair.tape.length == 48
    for got, expected in zip(pair.tape.here, pair[:2], strict=True):
        assert got.dtype == expected.dtype
        assert float(((got - expected).norm() / expected.norm()).detach()) <= tolerance


def test_the_model_answers_in_its_own_type(tokens: Tensor) -> None:
    output = make().bfloat16()(tokens, output_hidden_states=True)
    assert output.logits.dtype == torch.bfloat16
    assert {states.dtype for states in output.hidden_states} == {torch.bfloat16}


def kept_bytes(model: ParibusForCausalLM, tokens: Tensor, loss: Callable[..., Tensor]) -> int:
    """What the forward pass keeps for the backward pass, parameters left out."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.data_ptr() not in own:
            kept[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        value = loss(model, tokens)
    assert value.requires_grad
    return sum(kept.values())


def test_what_is_kept_does_not_grow_with_depth(tokens: Tensor) -> None:
    shallow, deep = make(layers=2), make(layers=8)
    assert kept_bytes(shallow, tokens, ours) == kept_bytes(deep, tokens, ours)
    assert kept_bytes(shallow, tokens, plain_loss) * 3 < kept_bytes(deep, tokens, plain_loss)


@pytest.mark.parametrize("mixer", ["attention", "rwkv7"])
def test_nothing_outlives_the_loss(mixer: str, tokens: Tensor) -> None:
    model = make(mixer)
    gc.collect()
    gc.disable()
    try:
        with tapes() as found:
            loss = ours(model, tokens)
        tape = weakref.ref(found[0].tape)
        found.clear()
        assert isinstance(tape(), Tape)
        del loss
        assert tape() is None
    finally:
        gc.enable()


def test_gradient_checkpointing_changes_nothing(tokens: Tensor) -> None:
    model = make(dropout=0.3)
    expected = {name: value for name, value in gradients(ours, model, tokens).items() if value is not None}
    kept = kept_bytes(model, tokens, ours)
    model.activation_checkpointing_enable()
    assert kept_bytes(model, tokens, ours) == kept
    for name, value in gradients(ours, model, tokens).items():
        assert value is not None and torch.equal(value, expected[name]), name


def test_training_is_that_of_the_plain_form(tokens: Tensor) -> None:
    start = make(dropout=0.1)
    curves = []
    for loss in (plain_loss, ours):
        model = copy.deepcopy(start)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        torch.manual_seed(3)
        curve = []
        for _ in range(6):
            value = loss(model, tokens)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(value.item())
        curves.append(curve)
    assert curves[0][-1] < curves[0][0] - 0.5
    assert curves[1] == pytest.approx(curves[0], rel=1e-7)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, at a break
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be instantiated")  # as well
def test_compiled_models_recompute_too(tokens: Tensor) -> None:
    model = make(layers=1)
    compiled = torch.compile(model, backend="eager")
    expected = gradients(plain_loss, model, tokens)
    for name, value in gradients(lambda model, tokens: ours(compiled, tokens), model, tokens).items():
        assert value is not None and expected[name] is not None
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)


def test_blocks_run_as_modules(tokens: Tensor) -> None:
    model, seen = make(), []
    for block in blocks_of(model):
        assert isinstance(block, Block)
        block.register_forward_hook(lambda block, inputs, output: seen.append(block))
    ours(model, tokens).backward()
    assert seen == blocks_of(model)
