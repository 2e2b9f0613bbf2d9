"""The file name is the registration; a user's file has the same rights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from paribus.nn.component import CHANNELS, MIXERS, make_channel, make_mixer
from paribus.nn.mixer import Mixer, Placement
from paribus.nn.registry import Registry

GOOD = """
from dataclasses import dataclass
from paribus.nn.mixer import Mixer

PRESETS = {"twice": {"factor": 2.0}}

class Scale(Mixer):
    @dataclass(frozen=True)
    class Config:
        factor: float = 1.0

    def mix(self, x, rows, state, context):
        return x * self.config.factor, None
"""
PLACEMENT = Placement(width=8)


def write(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_names_are_the_files() -> None:
    folder = Path(str(MIXERS.module("attention").__file__)).parent
    assert MIXERS.names() == sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    assert {"glu", "mlp"} <= set(CHANNELS.names())


def test_listing_imports_no_component() -> None:
    code = (
        "import sys; from paribus.nn.component import MIXERS; print(len(MIXERS.names())); "
        "print([m for m in sys.modules if m.startswith('paribus.nn.mixers.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[1] == "[]"


@pytest.mark.parametrize("name", MIXERS.names())
def test_every_file_defines_one_mixer(name: str) -> None:
    assert issubclass(MIXERS.component(name, Mixer), Mixer)


def test_an_unknown_name_is_answered_by_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"^mixer: unknown mixer 'atention'; did you mean 'attention'\?$"):
        make_mixer({"name": "atention"}, PLACEMENT)
    with pytest.raises(ValueError, match=r"^channel: unknown channel 'gul'; did you mean 'glu'\?$"):
        make_channel({"name": "gul"}, PLACEMENT)
    with pytest.raises(ValueError, match=r"block 'b': mixer: 'name' is missing; known: .*attention, "):
        make_mixer({}, PLACEMENT, "block 'b': mixer")


def test_unknown_keys_and_presets_are_named() -> None:
    with pytest.raises(ValueError, match=r"attention: unknown key 'num_head'; did you mean 'num_heads'\?"):
        make_mixer({"name": "attention", "num_head": 2}, PLACEMENT)
    with pytest.raises(ValueError, match=r"unknown preset 'locl' of 'attention'; did you mean 'local'\?"):
        make_mixer({"name": "attention", "preset": "locl"}, PLACEMENT)


def test_settings_stand_above_a_preset(tmp_path: Path) -> None:
    name = write(tmp_path, GOOD)
    x = torch.ones(1, 2, 8)
    assert float(make_mixer({"name": name}, PLACEMENT)(x)[0].mean()) == 1
    assert float(make_mixer({"name": name, "preset": "twice"}, PLACEMENT)(x)[0].mean()) == 2
    assert float(make_mixer({"name": name, "preset": "twice", "factor": 3}, PLACEMENT)(x)[0].mean()) == 3


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    first = make_mixer({"name": write(tmp_path, GOOD)}, PLACEMENT)
    second = make_mixer(
        {"name": write(tmp_path, GOOD.replace("factor: float = 1.0", "factor: float = 7.0"))}, PLACEMENT
    )
    assert (first.config.factor, second.config.factor) == (1.0, 7.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + GOOD.replace("Scale", "Second"), "must define exactly one Mixer; it defines Scale, Second"),
        ("from paribus.nn.mixer import Mixer", "must define exactly one Mixer; it defines none"),
        ("import no_such_package", "cannot be imported: No module named 'no_such_package'"),
        ("def", "cannot be imported: invalid syntax"),
    ],
)
def test_a_users_mistake_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as problem:
        make_mixer({"name": write(tmp_path, text)}, PLACEMENT)
    assert "\n" not in str(problem.value)
    with pytest.raises(ValueError, match=r"^mixer: mixer file '.*absent.py' does not exist$"):
        make_mixer({"name": str(tmp_path / "absent.py")}, PLACEMENT)


def test_a_flat_folder_is_a_published_checkpoint(tmp_path: Path) -> None:
    for name in ("mixers_b.py", "mixers_a.py", "mixer.py"):
        write(tmp_path, "", name)
    registry = Registry("mixers", "flat", tmp_path)
    assert registry.flat
    assert registry.names() == ["a", "b"]
    assert not MIXERS.flat
