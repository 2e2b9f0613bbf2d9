"""Published folders, looked at by processes that cannot see the library."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import paribus.publish
from paribus.nn.component import MIXERS
from paribus.nn.initialization import initialize
from paribus.nn.model_settings import read_model_config
from paribus.nn.tasks.causal_lm import ParibusForCausalLM
from paribus.publish import ProofFailed, load_published, publish_model

pytestmark = pytest.mark.slow

PROVE = Path(paribus.publish.__file__).with_name("prove.py")
SIZES = {"vocab_size": 258, "hidden_size": 40, "max_position_embeddings": 48}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
USER_MIXER = '''"""Attention gated by the token itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paribus.nn.mixer import (
    Context,
    Placement,
)
from paribus.nn.mixers.attention import Attention
from paribus.nn.segments import Rows
from paribus.nn.state import State


class GatedAttention(Attention):
    def __init__(self, placement: Placement, config: Attention.Config) -> None:
        super().__init__(placement, config)
        self.gate = nn.Linear(placement.width, placement.width, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: State, context: Context | None) -> tuple[Tensor, State]:
        y, state = super().mix(x, rows, state, context)
        return y * torch.sigmoid(self.gate(x)), state
'''
USER_CHANNEL = '''"""A perceptron with squared ReLU and a learned scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paribus.nn.channel import Channel, inner_width
from paribus.nn.mixer import Placement


class SquaredReLU(Channel):
    @dataclass(frozen=True)
    class Config:
        expansion: float = 2.0

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        inner = inner_width(placement.width, config.expansion)
        self.up = nn.Linear(placement.width, inner, bias=False)
        self.down = nn.Linear(inner, placement.width, bias=False)
        self.scale = nn.Parameter(torch.empty(placement.width))

    def transform(self, x: Tensor) -> Tensor:
        return self.scale * self.down(self.up(x).relu().square())

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)
'''


def byte_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(["<pad>", "<eos>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_model(**settings: object) -> ParibusForCausalLM:
    model = ParibusForCausalLM(read_model_config({**SIZES, **SPECIAL, **settings}))
    initialize(model, seed=0)
    return model


def hybrid_model(folder: Path) -> ParibusForCausalLM:
    """A user's own mixer and channel mixer, then the library's; tied embeddings."""
    mixer, channel = folder / "gated.py", folder / "squared.py"
    mixer.write_text(USER_MIXER)
    channel.write_text(USER_CHANNEL)
    local = {"mixer": {"name": str(mixer), "window": 5}, "channel": {"name": str(channel)}}
    whole = {"mixer": {"name": "attention", "preset": "multi_query"}, "channel": {"name": "mlp"}}
    return make_model(
        num_hidden_layers=3,
        blocks={"local": local, "global": whole},
        layout=["local", "global"],
        tie_word_embeddings=True,
    )


def bare(arguments: list[str], place: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run python with `arguments`, isolated, in the folder `place`."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(place / "cache"),
        **environment,
    }
    command = [sys.executable, "-I", *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published model with attention; what the other tests look at."""
    out = tmp_path_factory.mktemp("published") / "attention-1.0"
    facts = {"bits per byte | test": 2.31456, "seconds": 7}
    return publish_model(make_model(num_hidden_layers=2), byte_tokenizer(), out, card=facts, name="A model")


def test_the_folder_is_whole(published: Path) -> None:
    config = json.loads((published / "config.json").read_text())
    assert {value.split(".")[0] for value in config["auto_map"].values()} == {"modeling_paribus"}
    assert config["architectures"] == ["ParibusForCausalLM"]
    names = {path.name for path in published.iterdir()}
    assert {"README.md", "generation_config.json", "model.safetensors", "proof.safetensors"} <= names
    assert {"mixers_attention.py", "channels_glu.py"} <= names
    assert "channels_mlp.py" not in names
    assert [path.name for path in published.parent.iterdir()] == [published.name]
    assert len({path.stat().st_mode for path in published.iterdir()}) == 1


def test_the_card(published: Path) -> None:
    card = (published / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "license: apache-2.0" in card
    assert "# A model\n" in card
    assert "| bits per byte \\| test | 2.315 |" in card
    assert "| layers | 2 of width 40: main (attention + glu) |" in card
    assert 'folder = "attention-1.0"' in card
    assert "$" not in card


def test_the_library_loads_it(published: Path) -> None:
    model, tokenizer = load_published(published)
    original = make_model(num_hidden_layers=2)
    assert type(model) is not ParibusForCausalLM
    ids = torch.tensor([tokenizer("naïve")["input_ids"]])
    torch.testing.assert_close(model(input_ids=ids).logits, original(ids).logits)
    assert tokenizer.decode(ids[0]) == "naïve"
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("left", 48)


def test_every_mixer_is_published_and_loads_bare(tmp_path: Path) -> None:
    names = MIXERS.names()
    blocks = {name: {"mixer": {"name": name}, "channel": {"name": "glu", "expansion": 1.0}} for name in names}
    sizes = {"hidden_size": 32, "num_hidden_layers": len(names)}
    out = publish_model(
        make_model(blocks=blocks, layout=names, **sizes), byte_tokenizer(), tmp_path / "out", card={}, name="All"
    )
    assert {f"mixers_{name}.py" for name in names} <= {path.name for path in out.iterdir()}


def test_users_files_hybrid_and_tied(published: Path, tmp_path: Path) -> None:
    model = hybrid_model(tmp_path)
    out = shutil.copytree(published, tmp_path / "out")  # an earlier publication is replaced
    publish_model(model, byte_tokenizer(), out, card={}, name="Hybrid")
    assert not (out / "channels_glu.py").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gated.py", "out", "squared.py"]
    config = json.loads((out / "config.json").read_text())
    assert config["blocks"]["local"]["mixer"] == {"name": "gated", "window": 5}
    assert config["blocks"]["local"]["channel"] == {"name": "squared"}
    assert model.config.blocks["local"]["mixer"]["name"] == str(tmp_path / "gated.py")
    assert not hasattr(model.config, "auto_map")
    assert "head.weight" not in load_file(out / "model.safetensors")
    assert "paribus.nn" not in (out / "mixers_gated.py").read_text()


def test_a_failing_proof_publishes_nothing(tmp_path: Path) -> None:
    model = hybrid_model(tmp_path)
    (tmp_path / "gated.py").write_text(USER_MIXER.replace("torch.sigmoid", "torch.tanh"))
    with pytest.raises(ProofFailed, match="the logits differ from the proof by up to ") as caught:
        publish_model(model, byte_tokenizer(), tmp_path / "out", card={}, name="Changed meanwhile")
    assert not (tmp_path / "out").exists()
    found = re.search(r"\(see '(.*)'\)", str(caught.value))
    assert found is not None
    assert (Path(found[1]).parent / "model.safetensors").is_file()


def test_a_changed_weight_fails_the_proof(published: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(published, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] *= 1 + 2**-20
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    result = bare([str(PROVE), str(copy), str(copy / "proof.safetensors")], tmp_path)
    assert result.returncode == 1
    assert "the logits differ from the proof by up to" in result.stderr


def test_it_loads_as_from_the_hub(published: Path, tmp_path: Path) -> None:
    commit = "0123456789" * 4
    repository = tmp_path / "hub" / "models--someone--a-model"
    shutil.copytree(published, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    arguments = [str(PROVE), "someone/a-model", str(published / "proof.safetensors")]
    result = bare(arguments, tmp_path, HF_HUB_CACHE=str(tmp_path / "hub"))
    assert result.returncode == 0, result.stderr


def test_the_commands_of_the_card_work(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path / published.name)
    blocks = re.findall(r"```python\n(.*?)```", (published / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    hide = "import sys\nsys.modules['paribus'] = sys.modules['fla'] = sys.modules['einops'] = None\n"
    again = (
        "AutoModelForCausalLM.from_pretrained('further', trust_remote_code=True)\n"
        "print('trained', trainer.state.global_step)"
    )
    (tmp_path / "commands.py").write_text("\n".join([hide, *blocks, again]))
    result = bare(["commands.py"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "trained 2" in result.stdout
    assert (tmp_path / "further" / "mixers_attention.py").is_file()


def test_what_is_in_the_way_stays(published: Path, tmp_path: Path) -> None:
    model, tokenizer = make_model(num_hidden_layers=1), byte_tokenizer()
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="exists and is not a published model; choose another folder"):
        publish_model(model, tokenizer, tmp_path, card={}, name="Careless")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="exists and is not"):
        publish_model(model, tokenizer, tmp_path / "thesis.txt", card={}, name="Careless")
    with pytest.raises(ValueError, match=r"is not a published model: it has no config\.json"):
        load_published(tmp_path)


def test_the_tokenizer_must_fit(tmp_path: Path) -> None:
    model = make_model(vocab_size=100)
    with pytest.raises(ValueError, match="the tokenizer has 258 tokens; the model knows 100"):
        publish_model(model, byte_tokenizer(), tmp_path / "out", card={}, name="Small")
    assert not list(tmp_path.iterdir())
