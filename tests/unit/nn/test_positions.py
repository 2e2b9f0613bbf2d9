"""Positions, added to embeddings or inside attention, against their formulas in float64; all names on offer."""

from __future__ import annotations

import cmath
import math
import typing
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from paribus.evaluation.contract.subjects import in_pieces, shake, tokens
from paribus.nn.absolute_positions import ABSOLUTE_POSITIONS, AbsolutePosition, make_absolute_position
from paribus.nn.component import CHANNELS, MIXERS, make_mixer
from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import initialize
from paribus.nn.mixer import Context, Mixer, Placement
from paribus.nn.position_bias import BIASES, RelativeBias, ToeplitzBias
from paribus.nn.position_catalogue import POSITIONS
from paribus.nn.positions import ROTATIONS, rotary_tables
from paribus.nn.state import select_rows, state_bytes
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

WIDTH, HEADS, ROWS, COLUMNS = 16, 2, 4, 6
HEAD, LONGEST = WIDTH // HEADS, ROWS * COLUMNS
IMAGE = [name for name in (*ABSOLUTE_POSITIONS, *ROTATIONS) if name.endswith("_2d")]
ABSOLUTE_OF_TEXT = [name for name in ABSOLUTE_POSITIONS if name not in IMAGE]
SEGMENTS = torch.tensor([[0] * 2 + [1] * 9 + [0] + [1] * 3 + [2] * 10, [3] * 12 + [5] * 1 + [6] * 10 + [0] * 2])
both = pytest.mark.parametrize("causal", [True, False])


def placement(causal: bool = True) -> Placement:
    return Placement(width=WIDTH, causal=causal, max_length=LONGEST, grid=(ROWS, COLUMNS))


def added(name: str, causal: bool = True) -> AbsolutePosition:
    module = make_absolute_position(name, placement(causal))
    assert isinstance(module, AbsolutePosition)
    initialize(module, seed=0)
    return module.double()


def attention(position: str, causal: bool, **settings: Any) -> Mixer:
    module = make_mixer({"name": "attention", "num_heads": HEADS, "position": position, **settings}, placement(causal))
    initialize(module, seed=0)
    shake(module)
    return module.double()


def agree(got: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def waves(position: int, width: int) -> list[float]:
    angles = [position / 10_000 ** (2 * (i // 2) / width) for i in range(width)]
    return [math.cos(angle) if i % 2 else math.sin(angle) for i, angle in enumerate(angles)]


def vector(module: Any, t: int) -> Tensor:
    """p[t], as the docstrings define it."""
    row, column = divmod(t, COLUMNS)
    if module.name == "learned":
        return module.table[t]
    if module.name == "learned_2d":
        return module.row_table[row] + module.column_table[column]
    halves = {"sinusoidal": [(t, WIDTH)], "sinusoidal_2d": [(row, WIDTH // 2), (column, WIDTH // 2)]}[module.name]
    return torch.tensor([wave for half in halves for wave in waves(*half)], dtype=torch.float64)


@both
@pytest.mark.parametrize("name", ABSOLUTE_POSITIONS)
def test_what_is_added(name: str, causal: bool) -> None:
    module, x = added(name, causal), tokens(2, LONGEST, width=WIDTH)
    agree(module(x)[0], x + torch.stack([vector(module, t) for t in range(LONGEST)]))
    assert module(x.bfloat16())[0].dtype == torch.bfloat16


@both
@pytest.mark.parametrize("name", ABSOLUTE_POSITIONS)
def test_positions_are_true_in_packed_and_padded_rows(name: str, causal: bool) -> None:
    module, x = added(name, causal), tokens(2, SEGMENTS.shape[1], width=WIDTH)
    y, _ = module(x, segments=SEGMENTS)
    for row, ids in enumerate(SEGMENTS):
        assert not y[row, ids == 0].any()
        for segment in ids[ids != 0].unique():
            mine = ids == segment
            agree(y[row, mine], module(x[row : row + 1, mine])[0][0])


@pytest.mark.parametrize("name", ABSOLUTE_POSITIONS)
def test_pieces_are_one_function_and_ask_the_device_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = added(name), tokens(2, SEGMENTS.shape[1], width=WIDTH)
    cuts = range(1, SEGMENTS.shape[1])
    agree(in_pieces(module, x, SEGMENTS, cuts), module(x, segments=SEGMENTS)[0])
    monkeypatch.delattr(AbsolutePosition, "_check")
    x = x[:, :LONGEST]
    agree(in_pieces(module, x, None, range(1, LONGEST)), module(x)[0])
    _, state = module(x[:, :5], keep_state=True)
    assert state_bytes(state) == 2 * 2 * 8, "where the rows stand, and nothing else"
    turned = module(x[:, 5:].flip(0), state=select_rows(state, torch.tensor([1, 0])))[0]
    agree(turned, module(x)[0][:, 5:].flip(0))


@pytest.mark.parametrize("name", [name for name in ABSOLUTE_POSITIONS if added(name).longest])
def test_no_token_lies_beyond_the_longest(name: str) -> None:
    module, x = added(name), tokens(2, LONGEST + 1, width=WIDTH)
    message = f"position '{name}' knows {LONGEST} positions; token {LONGEST + 1} lies beyond"
    for segments in (None, torch.ones(2, LONGEST + 1)):
        with pytest.raises(ValueError, match=message):
            module(x, segments=segments)
    with pytest.raises(ValueError, match=message):
        in_pieces(module, x, None, range(1, LONGEST + 1))
    first_padded = torch.tensor([[0] + [1] * LONGEST, [1] * LONGEST + [2]])
    agree(module(x, segments=first_padded)[0][0, 1:], module(x[:1, 1:])[0][0])


def test_any_number_of_waves() -> None:
    module, x = added("sinusoidal"), torch.zeros(1, 1000, WIDTH, dtype=torch.float64)
    agree(module(x)[0][0, 999], torch.tensor(waves(999, WIDTH), dtype=torch.float64))


@pytest.mark.parametrize("name", ABSOLUTE_OF_TEXT)
def test_a_model_decodes_as_it_reads(name: str) -> None:
    config = ParibusConfig(vocab_size=11, hidden_size=WIDTH, num_hidden_layers=1, position=name)
    torch.manual_seed(0)
    model = ParibusForCausalLM(config).eval()
    ids, mask = torch.randint(11, (2, 8)), torch.tensor([[0, 0] + [1] * 6, [1] * 8])
    whole = model(ids, attention_mask=mask).logits
    cache, parts = None, []
    for t in range(8):
        out = model(ids[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1)[mask.bool()], whole[mask.bool()], rtol=1e-4, atol=1e-5)
    without = ParibusForCausalLM(ParibusConfig(**{**config.to_dict(), "position": "none"})).eval()
    without.load_state_dict({k: v for k, v in model.state_dict().items() if "position" not in k})
    assert not torch.allclose(without(ids).logits, model(ids).logits, atol=1e-3)


@pytest.mark.parametrize("name", IMAGE)
def test_an_image_is_needed_for_two_axes(name: str) -> None:
    text = Placement(width=WIDTH)

    def make() -> Any:
        if name in ABSOLUTE_POSITIONS:
            return make_absolute_position(name, text)
        return make_mixer({"name": "attention", "position": name}, text)

    with pytest.raises(ValueError, match=f"position '{name}' needs the rows and columns of an image's patches") as told:
        make()
    assert "\n" not in str(told.value)


def turn(name: str, channels: int, causal: bool, t: int, s: int) -> list[complex]:
    """What the product of pair i of q[t] and of conj k[s] is multiplied with, after the formulas of the papers."""
    rates = [10_000 ** (-2 * i / channels) for i in range(channels // 2)]
    if name == "rotary_2d":
        rates = [10_000 ** (-2 * i / (channels // 2)) for i in range(channels // 4)]
        (row, column), (other_row, other_column) = divmod(t, COLUMNS), divmod(s, COLUMNS)
        pairs = [(row - other_row, rate) for rate in rates] + [(column - other_column, rate) for rate in rates]
        return [cmath.exp(1j * distance * rate) for distance, rate in pairs]
    factors = [cmath.exp(1j * (t - s) * rate) for rate in rates]
    if name == "xpos" and causal:
        scales = [(2 * i / channels + 0.4) / 1.4 for i in range(channels // 2)]
        factors = [factor * scale ** ((t - s) / 512) for factor, scale in zip(factors, scales, strict=True)]
    return factors


def scores(module: Mixer, x: Tensor, share: float, causal: bool) -> Tensor:
    """[B, H, T, T], before 1/√K, by the definition of the position."""
    q, k = (part(x).unflatten(-1, (HEADS, HEAD)).transpose(1, 2) for part in (module.query, module.key))
    position, T, width = module.config.position, x.shape[1], round(share * HEAD)
    if position not in ROTATIONS:
        return q @ k.mT
    factors = [[turn(position, width, causal, t, s) for s in range(T)] for t in range(T)]
    pairs = [torch.complex(*part[..., :width].chunk(2, -1)) for part in (q, k)]
    turns = torch.tensor(factors, dtype=torch.complex128)
    turned = torch.einsum("bhtc,bhsc,tsc->bhts", pairs[0], pairs[1].conj(), turns).real
    return turned + q[..., width:] @ k[..., width:].mT


def attended(module: Mixer, x: Tensor, scored: Tensor) -> Tensor:
    T = x.shape[1]
    if module.placement.causal:
        scored = scored.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
    o = scored.softmax(-1) @ module.value(x).unflatten(-1, (HEADS, HEAD)).transpose(1, 2)
    y: Tensor = module.output(o.transpose(1, 2).flatten(2))
    return y


def same(module: Mixer, x: Tensor, expected: Tensor) -> None:
    """Outputs and all gradients."""
    got, weights = module(x)[0], torch.randn(x.shape, dtype=x.dtype)
    agree(got, expected)
    inputs = [x, *module.parameters()]
    for ours, theirs in zip(*(torch.autograd.grad((y * weights).sum(), inputs) for y in (got, expected)), strict=True):
        agree(ours, theirs, 1e-9)


@both
@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("name", ROTATIONS)
def test_what_rotations_make_of_scores(name: str, share: float, causal: bool) -> None:
    module, x = attention(name, causal, rotary_share=share), tokens(2, LONGEST, width=WIDTH).requires_grad_()
    same(module, x, attended(module, x, scores(module, x, share, causal) / math.sqrt(HEAD)))


def number(module: Any, causal: bool, t: int, s: int) -> Tensor:
    """[H]: the bias of a distance."""
    if isinstance(module, ToeplitzBias):
        middle = 0 if causal else (module.table.shape[1] - 1) // 2
        farthest = module.table.shape[1] - 1 - middle
        return module.table[:, middle + max(-middle, min(t - s, farthest))]
    bucket = T5Attention._relative_position_bucket(torch.tensor(s - t), not causal, len(module.table), 9)
    return module.table[bucket]


@both
@pytest.mark.parametrize("window", [0, 7])
@pytest.mark.parametrize("name", BIASES)
def test_what_biases_add_to_scores(name: str, window: int, causal: bool) -> None:
    module = attention(name, causal, num_buckets=8, max_distance=9, window=window)
    x = tokens(2, LONGEST, width=WIDTH).requires_grad_()
    steps = range(LONGEST)
    pairs = [[number(module.position_bias, causal, t, s) for s in steps] for t in steps]
    bias = torch.stack([torch.stack(row, -1) for row in pairs], -2)  # H T T
    far = torch.tensor([[bool(window) and abs(t - s) >= window for s in steps] for t in steps])
    scored = scores(module, x, 1.0, causal) / math.sqrt(HEAD) + bias
    same(module, x, attended(module, x, scored.masked_fill(far, -torch.inf)))


@pytest.mark.parametrize("name", [*ROTATIONS, *BIASES, "alibi"])
def test_pieces_and_packed_rows_inside_attention(name: str) -> None:
    module, x = attention(name, True), tokens(2, SEGMENTS.shape[1], width=WIDTH)
    whole, _ = module(x, segments=SEGMENTS)
    agree(in_pieces(module, x, SEGMENTS, range(1, SEGMENTS.shape[1])), whole)
    for causal in (True, False):
        module = attention(name, causal)
        whole, _ = module(x, segments=SEGMENTS)
        for row, ids in enumerate(SEGMENTS):
            for segment in ids[ids != 0].unique():
                mine = ids == segment
                agree(whole[row, mine], module(x[row : row + 1, mine])[0][0])


@pytest.mark.parametrize("normaliser", ["softmax_one", "sink", "sigmoid", "relu", "softpick"])
@pytest.mark.parametrize("name", [*ROTATIONS, *BIASES])
def test_positions_go_with_every_normaliser(name: str, normaliser: str) -> None:
    module, x = attention(name, True, normaliser=normaliser), tokens(1, 9, width=WIDTH)
    other = x.clone()
    other[:, [2, 5]] = x[:, [5, 2]]
    changed = module(other)[0] - module(x)[0]
    assert changed[:, 8].abs().max() > 1e-6, "the order of the past matters"
    agree(in_pieces(module, x, None, range(1, 9)), module(x)[0])


@both
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (4, 3), (8, 20), (16, 64), (64, 1000)])
def test_buckets_are_those_of_t5(buckets: int, farthest: int, causal: bool) -> None:
    module = RelativeBias(causal, 1, buckets, farthest)
    distance = torch.arange(0 if causal else -farthest, farthest + 1)
    expected = T5Attention._relative_position_bucket(-distance, not causal, buckets, farthest)
    assert torch.equal(module.buckets(torch.device("cpu")), expected)


def test_a_table_is_no_longer_than_what_is_seen() -> None:
    shapes = {window: attention("toeplitz", True, window=window).position_bias.table.shape for window in (0, 5, 99)}
    assert shapes == {0: (HEADS, LONGEST), 5: (HEADS, 5), 99: (HEADS, LONGEST)}
    assert attention("toeplitz", False).position_bias.table.shape == (HEADS, 2 * LONGEST - 1)


def test_angles_are_as_wide_as_what_they_turn_and_single_ones_keep_their_bits() -> None:
    positions = torch.tensor([[0, 1, 777, 4095]])
    exact = [[t * 10_000 ** (-2 * i / HEAD) for i in range(HEAD // 2)] for t in positions[0].tolist()]
    cosine, sine = rotary_tables(positions, HEAD, 10_000.0, torch.float64, None)
    agree(cosine[0, :, 0, : HEAD // 2], torch.tensor(exact, dtype=torch.float64).cos())
    agree(sine[0, :, 0, HEAD // 2 :], torch.tensor(exact, dtype=torch.float64).sin())
    angles = positions[..., None].float() * 10_000.0 ** -(torch.arange(0, HEAD, 2, dtype=torch.float32) / HEAD)
    for dtype in (torch.float32, torch.bfloat16):
        cosine, sine = rotary_tables(positions, HEAD, 10_000.0, dtype, None)
        assert torch.equal(cosine[:, :, 0], torch.cat([angles.cos()] * 2, -1).to(dtype))
        assert torch.equal(sine[:, :, 0], torch.cat([-angles.sin(), angles.sin()], -1).to(dtype))


@pytest.mark.parametrize("name", ROTATIONS)
def test_layers_share_tables_only_where_they_are_the_same(name: str) -> None:
    context, x = Context(), tokens(1, 9, width=WIDTH)
    others = [(other, share) for other in ROTATIONS for share in (0.5, 1.0)]
    for other, share in [*others, (name, 1.0)]:
        module = attention(other, True, rotary_share=share)
        assert torch.equal(module(x, context=context)[0], module(x)[0])
    assert len(context.tables) == len(others)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scaled_rotations_stay_finite_in_half_precision(dtype: torch.dtype) -> None:
    kind = ROTATIONS["xpos"](HEAD, 10_000.0, Placement(width=WIDTH, max_length=8192))
    tables = kind.tables(torch.arange(8192)[None], dtype, None)
    assert all(table.isfinite().all() for table in tables)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"position": "rotary", "rotary_share": 0.4},
            "rotary_share 0.4 of a head's 8 channels is no number of channels",
        ),
        (
            {"position": "rotary", "rotary_share": 0.0},
            "rotary_share 0.0 of a head's 8 channels is no number of channels",
        ),
        (
            {"position": "rotary", "rotary_share": 1.5},
            "rotary_share 1.5 of a head's 8 channels is no number of channels",
        ),
        ({"position": "xpos", "rotary_share": 0.375}, "position 'xpos' rotates a multiple of 2 channels .* it is 3"),
        ({"position": "rotary_2d", "rotary_share": 0.75}, "'rotary_2d' rotates a multiple of 4 channels .* it is 6"),
        ({"position": "rotary", "num_heads": 16}, "position 'rotary' rotates a multiple of 2 channels .* it is 1"),
        ({"position": "relative_bias", "num_buckets": 1}, "num_buckets is 1; 1 times two or more are needed"),
        ({"position": "relative_bias", "max_distance": 16}, "max_distance is 16; more than 16 is needed"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(settings.pop("position"), True, **settings)


def test_widths_and_names_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="position 'sinusoidal' needs a width that 2 divides; it is 7"):
        make_absolute_position("sinusoidal", Placement(width=7))
    with pytest.raises(ValueError, match=r"unknown position 'lerned'; did you mean 'learned'\?"):
        make_absolute_position("lerned", Placement(width=8))
    with pytest.raises(ValueError, match="num_buckets is 7; 2 times two or more are needed"):
        attention("relative_bias", False, num_buckets=7)


def test_every_position_that_a_setting_takes_is_listed_with_its_place() -> None:
    found: dict[str, set[str]] = {name: {"model.position"} for name in ABSOLUTE_POSITIONS}
    for registry in (MIXERS, CHANNELS):
        for owner in registry.names():
            hints = typing.get_type_hints(registry.component(owner, Mixer).Config)
            for value in typing.get_args(hints.get("position", None)):
                name = {"first_layer": "cosine", "every_layer": "cosine"}.get(value, value)
                if name != "none":
                    found.setdefault(name, set()).add(f"{owner}.position")
    assert {name: set(position.places) for name, position in POSITIONS.items()} == found


@pytest.mark.parametrize("name", POSITIONS)
def test_a_listed_position_has_its_equation_source_and_settings_in_one_line(name: str) -> None:
    line = POSITIONS[name].__doc__ or ""
    assert "\n" not in line and "arXiv:" in line and line.endswith("position.")
