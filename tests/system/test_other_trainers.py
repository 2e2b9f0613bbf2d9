"""Published models are trained further by transformers' own Trainer and by peft, which know nothing of the library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from paribus.nn.initialization import initialize
from paribus.nn.model_settings import read_model_config
from paribus.nn.task import task_model
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
MASKED = {"causal": False, "task": {"name": "masked_lm", "mask_token": 2}}
IMAGES = {
    "causal": False,
    "task": {"name": "image_classification", "num_classes": 2},
    "image": {"size": 8, "patch_size": 2, "class_token": True, "scan": "cross"},
}


def publish(symbols: Any, out: Path, **values: Any) -> Path:
    """A hybrid of attention and two recurrences; every last projection is called `output`."""
    names = ["attention", "gla", "gated_delta_net"]
    blocks = {name: {"mixer": {"name": name}, "channel": {"name": "glu"}} for name in names}
    settings = {**SIZES, **SPECIAL, "blocks": blocks, "layout": names, "num_hidden_layers": 3, "hidden_size": 32}
    config = read_model_config({**settings, **values})
    model = task_model(config)(config)
    initialize(model, seed=0)
    return publish_model(model, symbols, out, card={}, name="A model")


def test_trained_further_where_the_library_is_out_of_reach(tmp_path: Path) -> None:
    tokenizer, masking = byte_tokenizer(), byte_tokenizer()
    masking.mask_token = masking.convert_ids_to_tokens(2)
    published = [
        publish(tokenizer, tmp_path / "causal", tie_word_embeddings=True),
        publish(masking, tmp_path / "masked", tie_word_embeddings=True, **MASKED),
        publish(("dark", "light"), tmp_path / "images", **IMAGES),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-I", "-c", HIDDEN, str(SCRIPT), *map(str, published), str(tmp_path / "further")]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("trained, saved, loaded") == 6, result.stdout
