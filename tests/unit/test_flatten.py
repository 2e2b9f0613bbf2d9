"""Flattening: imports are rewritten and nothing else, and what cannot be published is refused in one line."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports

from paribus.nn.component import CHANNELS, MIXERS
from paribus.nn.task import TASKS, TaskModel
from paribus.publish.flatten import ENTRY, flatten, rewrite

USER_MIXER = "from paribus.nn.mixer import Mixer\n\nclass Mine(Mixer):\n    pass\n"


def blocks(mixer: Any = "attention", channel: Any = "glu") -> dict[str, Any]:
    return {"main": {"mixer": {"name": str(mixer)}, "channel": {"name": str(channel)}}}


def write(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return sorted(folder.glob("*.py"))


def test_only_import_sources_change() -> None:
    text = (
        '"""ü: from ..kernels.attention import x, said in passing."""\n'
        "from ..kernels.attention import (  # why\n    AttentionHistory,\n    attention,\n)\n"
        "from ..mixer import Mixer; from ..state import State\n"
        "try:\n    import fla\nexcept ImportError:\n    fla = None\n"
        "def f():\n    é = 1; from paribus.nn.channels.mlp import MultiLayerPerceptron as P\n    return é\n"
    )
    flat, needed = rewrite(text, "mixers.any", "any.py")
    assert needed == {"kernels.attention", "mixer", "state", "channels.mlp"}
    assert flat == (
        text.replace("..kernels.attention import (", ".kernels_attention import (")
        .replace("from ..mixer ", "from .mixer ")
        .replace("from ..state ", "from .state ")
        .replace("paribus.nn.channels.mlp", ".channels_mlp")
    )


def test_relative_names_are_resolved_from_where_the_file_is() -> None:
    assert rewrite("from .state import State\n", "cache", "cache.py") == (
        "from .state import State\n",
        {"state"},
    )
    assert rewrite("from .glu import G\n", "channels.new", "new.py")[0] == "from .channels_glu import G\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import einops", "line 2: imports 'einops'; a published model may import only the standard library"),
        ("def f():\n    import fla", "line 3: imports 'fla'"),
        ("from numpy.linalg import norm", "imports 'numpy'"),
        ("import paribus.nn.mixer", "'import paribus.nn.mixer' cannot be published; write 'from"),
        ("from paribus import nn", "imports from 'paribus'; only files of paribus.nn can be published"),
        ("from paribus.data.text import read", "imports from 'paribus.data.text'"),
        (
            "try:\n    from paribus.data.text import read\nfinally:\n    pass",
            "imports from 'paribus.data.text'",
        ),
        ("from paribus.nn import mixer", "imports from 'paribus.nn'"),
        ("from paribus.nn.kernels import attention", "imports from 'paribus.nn.kernels'"),
        ("from . import attention", "imports from 'paribus.nn.mixers'"),
        ("from ...data import text", "imports from 'paribus.data'"),
        ("from \\\n  paribus.nn.mixer import Mixer", "this form cannot be published"),
        ('"""\nfrom .nowhere import x\n"""', "reads the text 'from .nowhere import' as an import"),
        ('"""\nimport .nowhere\n"""', "reads the text 'import .nowhere' as an import"),
    ],
)
def test_what_cannot_be_published_is_refused(line: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        rewrite(f"import torch\n{line}\n", "mixers.mine", "mine.py")
    assert str(caught.value).startswith("mine.py")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", MIXERS.names())
def test_every_mixer_makes_a_closed_folder(name: str, tmp_path: Path) -> None:
    texts, _ = flatten("causal_lm", blocks(name))
    check_closed(texts, tmp_path)
    assert f"mixers_{name}" in texts


@pytest.mark.parametrize("task", TASKS.names())
def test_every_task_with_all_mixers_makes_a_closed_folder(task: str, tmp_path: Path) -> None:
    every = {name: blocks(name)["main"] for name in MIXERS.names()}
    texts, _ = flatten(task, every)
    check_closed(texts, tmp_path)
    assert [name for name in texts if name.startswith("tasks_")] == [f"tasks_{task}"]
    assert {f"mixers_{name}" for name in every} <= set(texts)


def check_closed(texts: Mapping[str, str], tmp_path: Path) -> None:
    """Every file that is named is there, every file is named by the entry, and no other package is needed."""
    paths = write(tmp_path, texts)
    for path in paths:
        assert set(get_relative_imports(path)) <= set(texts)
        assert set(get_imports(path)) <= sys.stdlib_module_names | {"torch", "transformers"}
    assert set(get_relative_imports(tmp_path / f"{ENTRY}.py")) == set(texts) - {ENTRY}


def test_only_what_the_model_needs_is_shipped() -> None:
    texts, renamed = flatten("causal_lm", blocks("attention", "glu"))
    assert {"mixers_attention", "kernels_attention", "channels_glu", "residuals_pre", "tasks_causal_lm"} <= set(texts)
    assert [name for name in texts if name.startswith(("mixers_", "channels_", "residuals_"))] == [
        name for name in texts if name in ("mixers_attention", "channels_glu", "residuals_pre")
    ]
    defaults = {"residual": {"name": "pre"}, "norm": "rms_norm", "dropout": 0.0, "token_shift": "none"}
    assert renamed == {"main": {**blocks("attention", "glu")["main"], **defaults}}


def test_a_block_without_a_channel_mixer_ships_none() -> None:
    texts, renamed = flatten(
        "causal_lm", {"main": {"mixer": {"name": "mamba"}, "channel": None, "residual": {"name": "rezero"}}}
    )
    assert not [name for name in texts if name.startswith("channels_")]
    assert "residuals_rezero" in texts
    assert "residuals_pre" not in texts
    assert renamed["main"]["channel"] is None


@pytest.mark.parametrize("task", TASKS.names())
def test_the_entry_names_real_things(task: str) -> None:
    texts, _ = flatten(task, blocks())
    entry = ast.parse(texts[ENTRY])
    imported = {node.module: node.names[0].name for node in entry.body if isinstance(node, ast.ImportFrom)}
    assert set(imported) == set(texts) - {ENTRY}
    for module, name in imported.items():
        assert module is not None
        assert name in texts[module]
    classes = {node.name for node in entry.body if isinstance(node, ast.ClassDef)}
    assert classes == {"ParibusModel", TASKS.component(task, TaskModel).__name__}
    assert "ParibusConfig" in imported.values()


def test_a_users_file_travels_along(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(USER_MIXER)
    settings = blocks(path)
    texts, renamed = flatten("causal_lm", {**settings, "again": settings["main"]})
    assert texts["mixers_mine"] == USER_MIXER.replace("paribus.nn.mixer", ".mixer")
    assert [block["mixer"]["name"] for block in renamed.values()] == ["mine", "mine"]
    assert settings == blocks(path)


def test_a_users_file_needs_a_name_of_its_own(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, dict.fromkeys(("mine", "my-mixer", "attention"), USER_MIXER))
    first, second = (blocks(tmp_path / folder / "mine.py")["main"] for folder in ("a", "b"))
    with pytest.raises(ValueError, match=r"b/mine.py' and '.*a/mine.py' cannot both be 'mixers_mine.py'"):
        flatten("causal_lm", {"first": first, "second": second})
    with pytest.raises(ValueError, match=r"has the name of the library's own 'attention'; rename it"):
        flatten("causal_lm", blocks(tmp_path / "a" / "attention.py"))
    with pytest.raises(ValueError, match=r"my-mixer.py' cannot be imported by that name"):
        flatten("causal_lm", blocks(tmp_path / "a" / "my-mixer.py"))


def test_a_mixer_may_have_the_name_of_a_channel(tmp_path: Path) -> None:
    name = CHANNELS.names()[0]
    paths = write(tmp_path, {name: USER_MIXER})
    assert f"mixers_{name}" in flatten("causal_lm", blocks(paths[0]))[0]
