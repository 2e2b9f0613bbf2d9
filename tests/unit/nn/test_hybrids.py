"""Named layouts: what they stand for, what is refused, and how a run changes a part of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paribus.nn.hybrids import HYBRIDS, spell_out
from paribus.nn.initialization import initialize
from paribus.nn.model_settings import read_model_config
from paribus.nn.tasks.causal_lm import ParibusForCausalLM
from paribus.studies.equalizers import count_parameters, equalize
from paribus.training.run import Run, with_values
from tests.small import run, study, write_text


@pytest.mark.parametrize("name", HYBRIDS)
def test_every_hybrid_is_a_model(name: str) -> None:
    config = read_model_config({"hidden_size": 64, "num_hidden_layers": 8, "layout": name})
    assert config.layout == HYBRIDS[name]().layout and set(config.layout) == set(config.blocks)
    model = ParibusForCausalLM(config)
    initialize(model, seed=0)
    ids = torch.arange(20)[None]
    whole = model(ids)
    prefix = model(ids[:, :11], use_cache=True)
    rest = model(ids[:, 11:], past_key_values=prefix.past_key_values)
    torch.testing.assert_close(torch.cat([prefix.logits, rest.logits], 1), whole.logits, rtol=1e-4, atol=1e-4)


def test_mistakes_are_one_clear_line() -> None:
    with pytest.raises(ValueError, match="model: unknown layout 'grifin'; did you mean 'griffin'"):
        spell_out({"layout": "grifin"})
    with pytest.raises(ValueError, match="layout 'griffin' brings its own blocks"):
        spell_out({"layout": "griffin", "blocks": {}})


@pytest.fixture
def griffin(tmp_path: Path) -> Run:
    found = run(write_text(tmp_path / "text.txt"))
    sizes = {key: value for key, value in found.model.items() if key != "blocks"}
    return Run.from_json(found.to_json() | {"model": {**sizes, "layout": "griffin", "num_hidden_layers": 3}})


def test_a_part_of_a_hybrid_is_changed_by_its_path(griffin: Run) -> None:
    changed = with_values(griffin, {"model.blocks.local.mixer.window": 16})
    config = read_model_config(changed.model)
    assert config.block("local").mixer["window"] == 16
    assert config.block("recurrent").mixer == {"name": "rg_lru", "preset": "griffin"}
    assert griffin.model["layout"] == "griffin", "the run itself is unchanged"


def test_a_study_varies_the_layout_with_equal_parameters(griffin: Run, tmp_path: Path) -> None:
    layouts = {"attention": ["main"], "griffin": "griffin"}
    hybrids = study(tmp_path / "text.txt", base=griffin, vary={"model.layout": layouts}, reference="attention")
    runs = equalize(hybrids).runs
    attention, mixed = (count_parameters(runs[arm]) for arm in layouts)
    assert abs(attention - mixed) < 0.005 * attention
