"""Reading by columns is turning the image over, reading by rows and turning back; both ways is the mean, everywhere."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paribus.evaluation.contract.subjects import shake
from paribus.nn.absolute_positions import ABSOLUTE_POSITIONS
from paribus.nn.backbone import ParibusModel
from paribus.nn.block import Block
from paribus.nn.channel import Channel
from paribus.nn.component import CHANNELS, MIXERS
from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import initialize
from paribus.nn.mixer import Context, Mixer, Placement, make_context
from paribus.nn.scan_order import Scanned
from paribus.nn.tasks.image_classification import ParibusForImageClassification
from paribus.nn.token_shift import TokenShift
from tests.unit.nn.kernel_cases import close

SIDE, WIDTH, LAYERS = 3, 32, 2
CLASS_TOKEN = SIDE * SIDE
ROWS = torch.arange(CLASS_TOKEN + 1)
COLUMNS = torch.tensor([row * SIDE + column for column in range(SIDE) for row in range(SIDE)] + [CLASS_TOKEN])
CASES = {name: {"name": name} for name in MIXERS.names()} | {
    "rotary_2d": {"name": "attention", "position": "rotary_2d"},
}
CHANGED = ("attention", "gla", "rwkv7")


def config_of(scan: str, mixer: dict[str, Any], class_token: bool = True, **block: Any) -> ParibusConfig:
    """Two layers on images of 3 x 3 patches of one pixel; positions are exactly as many as tokens."""
    parts = {"mixer": mixer, "channel": {"name": "glu"}, "token_shift": "learned"}
    return ParibusConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        max_position_embeddings=CLASS_TOKEN + class_token,
        blocks={"main": parts | block},
        causal=False,
        task={"name": "image_classification"},
        image={"size": SIDE, "patch_size": 1, "num_channels": 2, "class_token": class_token, "scan": scan},
    )


def backbone(scan: str, mixer: dict[str, Any], **block: Any) -> ParibusModel:
    """The same weights whatever the scan, all of them so loud that nothing hides."""
    model = ParibusModel(config_of(scan, mixer, **block))
    initialize(model, seed=1)
    shake(model)
    return model.double()


def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, CLASS_TOKEN + 1, WIDTH, generator=generator, dtype=torch.float64)


def with_gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """An output, its gradient for the input and those for all parameters."""
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
    named = dict(model.named_parameters())
    values = torch.autograd.grad((y * direction).sum(), [x, *named.values()], allow_unused=True)
    found = dict(zip(["input", *named], values, strict=True))
    return {"output": y.detach()} | {name: value for name, value in found.items() if value is not None}


def same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        close(got[name], value, tolerance)


def through(model: ParibusModel, x: Tensor) -> Tensor:
    context = make_context(model.blocks)
    for block in model.blocks:
        x = block(x, None, None, False, context)[0]
    return x


def reordered(context: Context, order: Tensor) -> Context:
    """The same with its first values in another order."""
    if context.first_value is None:
        return replace(context)
    layer, value = context.first_value
    return replace(context, first_value=(layer, value[:, order]))


def turned_in_odd_layers(model: ParibusModel, x: Tensor) -> Tensor:
    """The definition of "alternate": the image is turned over before layer 1 and back behind it."""
    context = make_context(model.blocks)
    for layer, block in enumerate(model.blocks):
        order = COLUMNS if layer % 2 else ROWS
        context = reordered(context, order)
        x = block(x[:, order], None, None, False, context)[0][:, order.argsort()]
        context = reordered(context, order.argsort())
    return x


def mean_of_both(part: Mixer, x: Tensor, context: Context) -> Tensor:
    """What a part makes of rows and of columns; a first value is the mean of both as well."""
    if isinstance(part, Channel):
        return part(x)[0]
    by_rows, by_columns = reordered(context, ROWS), reordered(context, COLUMNS)
    y = part(x, context=by_rows)[0], part(x[:, COLUMNS], context=by_columns)[0][:, COLUMNS.argsort()]
    values = by_rows.first_value, reordered(by_columns, COLUMNS.argsort()).first_value
    if context.first_value is None and values[0] is not None and values[1] is not None:
        context.first_value = (values[0][0], (values[0][1] + values[1][1]) / 2)
    return (y[0] + y[1]) / 2


def crossed(model: ParibusModel, x: Tensor) -> Tensor:
    """The definition of "cross", for blocks with the residual scheme "pre"."""
    context = make_context(model.blocks)
    for block in model.blocks:
        assert isinstance(block, Block)
        for norm, shift, mixer in (
            (block.residual.mixer_norm, block.mixer_shift, block.mixer),
            (block.residual.channel_norm, block.channel_shift, block.channel),
        ):
            assert shift is not None and isinstance(mixer, Mixer)
            x = x + mean_of_both(mixer, mean_of_both(shift, norm(x), context), context)
    return x


def check_definitions(model: ParibusModel) -> None:
    """The scans of a model that reads row by row are what is defined by how it reads row by row."""
    x = tokens().requires_grad_()
    for scan, definition in (("alternate", turned_in_odd_layers), ("cross", crossed)):
        expected = with_gradients(model, x, definition(model, x))
        for block in model.blocks:
            block.scan = scan
        same(with_gradients(model, x, through(model, x)), expected)
        for block in model.blocks:
            block.scan = "raster"


@pytest.mark.parametrize("case", CASES)
def test_every_mixer_is_read_as_defined(case: str) -> None:
    check_definitions(backbone("raster", CASES[case]))


@pytest.mark.parametrize("channel", CHANNELS.names())
def test_every_channel_mixer_is_read_as_defined(channel: str) -> None:
    check_definitions(backbone("raster", {"name": "gla"}, channel={"name": channel}, token_shift="half"))


@pytest.mark.parametrize("case", CASES)
def test_an_image_turned_over_is_read_the_same_both_ways(case: str) -> None:
    model = backbone("cross", CASES[case])
    image = torch.randn(2, 2, SIDE, SIDE, dtype=torch.float64)
    y, turned = (model(pixel_values=pixels).last_hidden_state for pixels in (image, image.mT))
    close(turned, y[:, COLUMNS], 1e-9)


@pytest.mark.parametrize("scan", ["raster", "alternate"])
def test_one_order_sees_that_an_image_is_turned_over(scan: str) -> None:
    model = backbone(scan, {"name": "gla"})
    image = torch.randn(2, 2, SIDE, SIDE, dtype=torch.float64)
    y, turned = (model(pixel_values=pixels).last_hidden_state for pixels in (image, image.mT))
    assert (turned - y[:, COLUMNS]).abs().max() > 0.01


@pytest.mark.parametrize("position", ABSOLUTE_POSITIONS)
def test_positions_are_those_of_the_image_whatever_the_order(position: str) -> None:
    pixels = torch.randn(2, 2, SIDE, SIDE)
    found = []
    for scan in ("raster", "alternate", "cross"):
        config = config_of(scan, {"name": "gla"})
        config.position = position
        model = ParibusModel(config)
        initialize(model, seed=1)
        found.append(model(pixel_values=pixels, output_hidden_states=True).hidden_states)
    for one, other in pairwise(found):
        assert torch.equal(one[0], other[0]), "what the first block gets"
        assert (one[2] - other[2]).abs().max() > 1e-4


def test_a_grid_need_not_be_square() -> None:
    shift = TokenShift(Placement(2, causal=False), "half")
    x = torch.randn(1, 7, 2, dtype=torch.float64)  # 2 rows, 3 columns and a class token
    y, _ = Scanned(shift, (2, 3), both=False)(x, segments=None, state=None, keep_state=False, context=None)
    order = torch.tensor([0, 3, 1, 4, 2, 5, 6])
    expected = torch.empty_like(x)
    expected[:, order] = shift(x[:, order])[0]
    assert torch.equal(y, expected)


@pytest.mark.parametrize("scan", ["alternate", "cross"])
def test_padding_is_refused(scan: str) -> None:
    model = ParibusModel(config_of(scan, {"name": "gla"}, class_token=False))
    mask = torch.ones(2, CLASS_TOKEN, dtype=torch.long)
    model(pixel_values=torch.randn(2, 2, SIDE, SIDE), attention_mask=mask)
    mask[0, 4] = 0
    with pytest.raises(ValueError, match="images are read column by column only whole"):
        model(pixel_values=torch.randn(2, 2, SIDE, SIDE), attention_mask=mask)


def trained(model: ParibusForImageClassification, **arguments: Any) -> dict[str, Tensor]:
    """Loss and gradients of a training step."""
    model.zero_grad()
    pixels = torch.randn(2, 2, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    output = model(pixel_values=pixels, labels=torch.tensor([1, 7]), **arguments)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": output.loss.detach(), **(output.losses or {}), **gradients}


def classifier(config: ParibusConfig) -> ParibusForImageClassification:
    model = ParibusForImageClassification(config)
    initialize(model, seed=1)
    shake(model)
    return model.double().train()


@pytest.mark.parametrize("scan", ["alternate", "cross"])
@pytest.mark.parametrize("mixer", CHANGED)
def test_recomputed_blocks_have_the_same_gradients(mixer: str, scan: str) -> None:
    model = classifier(config_of(scan, {"name": mixer}))
    expected = trained(model)
    model.activation_checkpointing_enable()
    same(trained(model), expected)


@pytest.mark.parametrize("scan", ["alternate", "cross"])
@pytest.mark.parametrize("mixer", CHANGED)
def test_reversible_blocks_have_the_same_gradients(mixer: str, scan: str) -> None:
    residual = {"name": "reversible", "precision": "float64"}
    model = classifier(config_of(scan, {"name": mixer}, residual=residual))
    same(trained(model), trained(model, output_hidden_states=True))


def test_experts_count_once_however_tokens_are_read() -> None:
    # Attention without positions answers the same in any order, so that the experts get the same tokens.
    parts = {"channel": {"name": "mixture_of_experts"}, "token_shift": "none"}
    found = [
        trained(classifier(config_of(scan, {"name": "attention", "position": "none"}, **parts)))
        for scan in ("raster", "alternate", "cross")
    ]
    assert "load_balance" in found[0]
    same(found[1], found[0])
    same(found[2], found[0])
