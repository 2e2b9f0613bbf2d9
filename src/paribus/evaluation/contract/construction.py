"""How every component is configured, made, initialised, saved and documented."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.initialization import guard_torch_init_functions
from transformers.utils import logging

from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import initialize
from paribus.nn.mixer import Placement
from paribus.nn.settings import read_settings
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

from .subjects import LENGTH, WIDTH, Check, Kind, agree, build, finite, in_pieces, refusal, shake, tokens

FIELDS = ("Paper:", "Differs:", "Shapes:", "Cost:", "Raises:")
"""What the docstring of a component's module says, each at the start of a line."""
OUTPUT_SCALE = (0.02, 5.0)
"""Bounds of the root mean square of the output for a unit-variance input, at initialisation."""
PRESET_WIDTH = 256


def check_documented(kind: Kind, name: str) -> None:
    """The module's docstring fills in its fields; class and Config say what they are."""
    lines = [line.strip() for line in (kind.registry.module(name).__doc__ or "").splitlines()]
    for field in FIELDS:
        filled = any(line.startswith(field) and line != field for line in lines)
        assert filled, f"{name}: documented: the module's docstring has no line that begins with '{field}'"
    component = kind.registry.component(name, kind.base)
    assert component.__doc__, f"{name}: documented: {component.__name__} has no docstring"


def check_config(kind: Kind, name: str) -> None:
    """Config is a frozen dataclass of JSON scalars with defaults, read strictly."""
    Config: Any = kind.registry.component(name, kind.base).Config
    frozen = getattr(getattr(Config, "__dataclass_params__", None), "frozen", False)
    assert frozen, f"{name}: config: Config is not a frozen dataclass"
    config = Config()
    settings = dataclasses.asdict(config)
    for field, value in settings.items():
        scalar = value is None or isinstance(value, bool | int | float | str)
        assert scalar, f"{name}: config: {field} is {value!r}, not a JSON scalar"
    again = read_settings(Config, json.loads(json.dumps(settings)), name)
    assert again == config, f"{name}: config: {config} became {again} on the way through JSON"
    known = next(iter(settings), "")
    unknown = f"{known}_x"
    placement = Placement(width=WIDTH, max_length=64)
    message = refusal(f"{name}: config: unknown key", lambda: kind.make({"name": name, unknown: 1}, placement))
    assert f"'{unknown}'" in message, f"{name}: config: the refusal does not name the key '{unknown}': {message}"
    assert not known or f"'{known}'" in message, f"{name}: config: the refusal does not suggest '{known}': {message}"


def check_presets(kind: Kind, name: str) -> None:
    """Every preset builds and runs; what looks at other tokens answers the same in pieces, packed and padded."""
    for preset in getattr(kind.registry.module(name), "PRESETS", {}):
        where = f"{name}: preset {preset}"
        try:
            module = build(kind, name, width=PRESET_WIDTH, settings={"preset": preset})
        except ValueError as problem:
            raise AssertionError(f"{where}: {problem}") from problem
        x = tokens(1, LENGTH, width=PRESET_WIDTH)
        finite(where, kind.output(module, x))
        if not kind.alone:
            steps = torch.arange(LENGTH)[None]
            for segments in (None, (1 + (steps > 140)) * (steps % 50 != 49)):
                whole, _ = module(x, segments=segments)
                agree(f"{where}: cut", in_pieces(module, x, segments, (4, 130, 131, 149)), whole, 1e-10)


def check_initialization(kind: Kind, name: str) -> None:
    """The seed and the parameter's name set every initial value, whatever was there before."""
    module, again, other = (build(kind, name, dtype=torch.float32) for _ in range(3))
    for parameter in again.parameters():
        parameter.data.fill_(torch.nan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        state = torch.get_rng_state()
        initialize(again, seed=0)
        assert torch.equal(state, torch.get_rng_state()), f"{name}: initialization: the global generator moved"
    for part, value in again.named_parameters():
        finite(f"{name}: initialization: {part} after seed 0", value)
    _equal(f"{name}: initialization: seed 0 twice", _values(again), _values(module))
    initialize(other, seed=1)
    moved = any(map(_differ, other.parameters(), module.parameters()))
    assert moved or not list(module.parameters()), f"{name}: initialization: seeds 0 and 1 give the same values"


def check_output_scale(kind: Kind, name: str) -> None:
    """At initialisation a unit-variance input gives an output of a moderate scale."""
    for causal in (True,) if kind.alone else (True, False):
        y = kind.output(build(kind, name, causal=causal, width=64), tokens(2, 64, width=64))
        scale, (low, high) = float(y.detach().square().mean().sqrt()), OUTPUT_SCALE
        assert low <= scale <= high, f"{name}: output scale: {scale:.3g} with causal={causal}, allowed {low} to {high}"


def check_guarded(kind: Kind, name: str) -> None:
    """Values are given through torch.nn.init only, which transformers guards while it loads a checkpoint."""
    module = build(kind, name, loud=True)
    before = _values(module)
    for parameter in module.parameters():
        parameter._is_hf_initialized = True
    with guard_torch_init_functions():
        initialize(module, seed=1)
    _equal(f"{name}: guarded: re-initialised although loaded", _values(module), before)


def check_round_trip(kind: Kind, name: str) -> None:
    """A model keeps every weight to the bit, and its logits, through save_pretrained and from_pretrained."""
    block = {"mixer": {"name": "attention"}, "channel": {"name": "glu"}, kind.role: {"name": name}}
    config = ParibusConfig(hidden_size=WIDTH, num_hidden_layers=2, max_position_embeddings=32, blocks={"main": block})
    model = ParibusForCausalLM(config)
    shake(model)
    with tempfile.TemporaryDirectory() as folder, _without_progress_bars():
        model.save_pretrained(folder)
        loaded = ParibusForCausalLM.from_pretrained(folder)
    _equal(f"{name}: round trip", _values(loaded), _values(model))
    ids = torch.arange(7)[None]
    agree(f"{name}: round trip: logits", loaded(ids).logits, model.eval()(ids).logits, 1e-5)


def check_meta(kind: Kind, name: str) -> None:
    """Built without memory it has the same parameters, which then initialise to the same bits."""
    real = build(kind, name, dtype=torch.float32)
    with torch.device("meta"):
        module = kind.make({"name": name}, Placement(width=WIDTH, num_layers=2, max_length=256))
    for part, parameter in module.named_parameters():
        assert parameter.is_meta, f"{name}: meta: {part} took memory"
    module.to_empty(device="cpu")
    initialize(module, seed=0)
    _equal(f"{name}: meta", _values(module), _values(real))


def check_names_and_buffers(kind: Kind, name: str) -> None:
    """No non-persistent buffer (loading leaves it unset), no name that transformers changes on loading."""
    for path, part in build(kind, name).named_modules():
        lost = part._non_persistent_buffers_set
        assert not lost, f"{name}: buffers: {path or 'the component'} has non-persistent {sorted(lost)}"
    for part in build(kind, name).state_dict():
        renamed = "gamma" in part or "beta" in part
        assert not renamed, f"{name}: names: '{part}' is renamed by transformers when loaded"


def _values(module: nn.Module) -> dict[str, Tensor]:
    return {part: parameter.detach().clone() for part, parameter in module.named_parameters()}


def _differ(a: Tensor, b: Tensor) -> bool:
    return not torch.equal(a, b)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _equal(where: str, got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(got) == list(expected), f"{where}: parameters {list(got)}, expected {list(expected)}"
    for part, value in got.items():
        assert torch.equal(value, expected[part]), f"{where}: {part} differs"


CONSTRUCTION: dict[str, Check] = {
    "documented": check_documented,
    "config": check_config,
    "presets": check_presets,
    "initialization": check_initialization,
    "output_scale": check_output_scale,
    "guarded": check_guarded,
    "round_trip": check_round_trip,
    "meta": check_meta,
    "names_and_buffers": check_names_and_buffers,
}
