"""A published model is trained further by transformers' own Trainer and by peft, which know nothing of the library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paribus.nn.initialization import initialize
from paribus.nn.model_settings import read_model_config
from paribus.nn.tasks.causal_lm import ParibusForCausalLM
from paribus.publish import publish_model
from tests.system.test_publish import SIZES, SPECIAL, byte_tokenizer

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("other_trainers.py")
HIDDEN = """
import runpy, sys
sys.modules["paribus"] = sys.modules["fla"] = sys.modules["einops"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_trained_further_where_the_library_is_out_of_reach(tmp_path: Path) -> None:
    """A hybrid of attention and two recurrences; every last projection is called `output`."""
    names = ["attention", "gla", "gated_delta_net"]
    blocks = {name: {"mixer": {"name": name}, "channel": {"name": "glu"}} for name in names}
    settings = {**SIZES, **SPECIAL, "blocks": blocks, "layout": names, "num_hidden_layers": 3, "hidden_size": 32}
    model = ParibusForCausalLM(read_model_config({**settings, "tie_word_embeddings": True}))
    initialize(model, seed=0)
    published = publish_model(model, byte_tokenizer(), tmp_path / "published", card={}, name="A model")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-I", "-c", HIDDEN, str(SCRIPT), str(published), str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("trained, saved, loaded") == 3, result.stdout
