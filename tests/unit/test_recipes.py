"""Every recipe is a run that can be started: its settings are read and its model is built, without memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from paribus.data.corpus import find_source
from paribus.data.images.image_set import find_source as find_images
from paribus.data.images.spec import Images
from paribus.nn.backbone import on_meta, parameter_count
from paribus.nn.model_settings import read_model_config
from paribus.nn.tasks.causal_lm import ParibusForCausalLM
from paribus.training.model import check_model
from paribus.training.run import read_run

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*/run.json"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_a_recipe_is_a_run(path: Path) -> None:
    run = read_run(path)
    assert run.name == path.parent.name
    check_model(run)
    if isinstance(run.data, Images):
        find_images(run.data.images)
    else:
        for corpus in run.data.corpora:
            find_source(corpus)
    readme = (path.parent / "README.md").read_text()
    assert f"recipes/{run.name}/run.json" in readme, "it says how to start it"
    assert run.data.batch_size % (8 * run.accumulation) == 0, "eight processes share a batch evenly"


def test_the_124m_recipe_is_as_large_as_it_says() -> None:
    run = read_run(next(path for path in RECIPES if path.parent.name == "fineweb_edu_124m"))
    parameters = parameter_count(on_meta(read_model_config(run.model), ParibusForCausalLM))
    assert parameters == pytest.approx(124e6, rel=0.01)
    assert run.budget.steps == 100_000
    assert run.data.batch_size * run.data.sequence_length == 2**19
