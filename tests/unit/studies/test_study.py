"""What a study may be, and what is tuned; what the equalizers solve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paribus.evaluation.cost import training_flops
from paribus.nn.component import MIXERS, RESIDUALS
from paribus.studies.conduct import _word
from paribus.studies.equalizers import TOLERANCE, count_parameters, equalize
from paribus.studies.result import TuningPoint
from paribus.studies.study import Leaves, Study, read_study, study_name
from paribus.studies.tuning import best_values, extended
from paribus.training.model import build_model
from paribus.training.run import Budget, with_values
from paribus.training.task import make_task
from tests import small

MIXER = "model.blocks.main.mixer"
OPTIMIZERS: dict[str, Any] = {
    "vary": {
        "optimizer": {
            "adamw": Leaves({"optimizer.name": "adamw"}),
            "calm": Leaves(
                {"optimizer.settings": {"betas": [0.8, 0.9]}, "optimizer.clip_norm": 0.5}, {"optimizer.lr": [0.03, 0.1]}
            ),
        }
    },
    "reference": "adamw",
}
FILE = """
from pathlib import Path
from tests import small
study = small.study(Path("text.txt"))
other = 3
"""


@pytest.fixture
def study(text: Path) -> Study:
    return small.study(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vary": {}}, r"0 arms \(none\); at least two"),
        ({"vary": {MIXER: {"attention": {"name": "attention"}}}}, r"1 arms \(attention\); at least two"),
        ({"reference": "atention"}, "'atention' is not an arm; did you mean 'attention'"),
        ({"seeds": ()}, "no seeds"),
        ({"seeds": (1, 2, 1)}, r"seeds \[1, 2, 1\] repeat one"),
        ({"tune": {"optimizer.lr": [1e-3]}, "tuning_seed": 2}, "tuning_seed 2 is one of the seeds"),
        ({"tune": {"optimizer.lr": []}}, r"tune has the values \[\] for 'optimizer.lr'"),
        ({"tune": {"optimizer.lr": [0.1, 0.2, 0.1]}}, "none of them twice"),
        ({"tune": {MIXER: [{"name": "gla"}]}}, "would overwrite the arms' 'model.blocks.main.mixer'"),
        ({"tune": {"model.blocks": [{}]}}, "would overwrite the arms'"),
        ({"tune": {"seed": [1, 2]}}, "'seed' cannot vary"),
        ({"vary": {"data.seed": {"a": 1, "b": 2}}, "reference": "a"}, "'data.seed' cannot vary"),
        ({"vary": {"evaluation.points": {"a": 1, "b": 2}}, "reference": "a"}, "different documents"),
        ({"equal": "seconds"}, "the base budget is 20 steps"),
        ({"baseline_orders": (0,)}, r"baseline_orders are \[0\]"),
        ({"within": ("optimizer.lr",)}, "within names 'optimizer.lr', which does not vary; known: model.blocks.main"),
        ({"within": (MIXER,)}, "within leaves one arm at each level of model.blocks.main.mixer"),
        (
            {"vary": {"optimizer.lr": {"a": 1, "a+b": 2}, "schedule.warmup": {"b+c": 0.1, "c": 0.2}}},
            "two arms are called",
        ),
        (
            {"vary": {"optimizer.lr": {"a": 0.1, "b": 0.2}, "optimizer": {"c": {"lr": 1}}}, "reference": "a+c"},
            "arm 'a\\+c' sets 'optimizer.lr' and then 'optimizer', which overwrites it",
        ),
        ({"tune": {"optimizer.name": ["adamw"]}, **OPTIMIZERS}, "would overwrite the arms' 'optimizer.name'"),
        ({"tune": {"optimizer.weight_decay": [0.1]}, **OPTIMIZERS}, "tunes 'optimizer.lr', which the study does not"),
        ({"tune": {"optimizer.lr": [0.1]}, **OPTIMIZERS}, "over 2 values of its own and the study over 1"),
    ],
)
def test_studies_that_are_refused(study: Study, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        replace(study, **values)
    assert "\n" not in str(caught.value)


def test_a_budget_in_seconds_is_for_equal_seconds(study: Study) -> None:
    base = replace(study.base, budget=Budget(seconds=2.0))
    assert replace(study, base=base, equal="seconds").equal == "seconds"
    for equal in ("parameters", "flops", "tokens"):
        with pytest.raises(ValueError, match="the base budget is 2 seconds"):
            replace(study, base=base, equal=equal)


def test_several_factors_make_all_combinations(study: Study) -> None:
    vary = {"optimizer.lr": {"slow": 1e-3, "fast": 1e-2}, "schedule.name": {"cosine": "cosine", "wsd": "wsd"}}
    found = replace(study, vary=vary, reference="slow+cosine")
    assert list(found.arms()) == ["slow+cosine", "slow+wsd", "fast+cosine", "fast+wsd"]
    run = found.arm_run("fast+wsd")
    assert (run.optimizer.lr, run.schedule.name) == (1e-2, "wsd")


def test_a_level_may_set_several_leaves(study: Study) -> None:
    base = with_values(study.base, {"optimizer.weight_decay": 0.3})
    found = replace(study, base=base, tune={"optimizer.lr": [1e-3, 3e-3]}, **OPTIMIZERS)
    assert found.arms()["calm"] == {"optimizer.settings": {"betas": [0.8, 0.9]}, "optimizer.clip_norm": 0.5}
    calm = found.arm_run("calm").optimizer
    assert (calm.settings, calm.clip_norm) == ({"betas": [0.8, 0.9]}, 0.5)
    assert calm.weight_decay == 0.3, "what a level does not name stays the base's"
    assert found.varied_paths() == ["optimizer.name", "optimizer.settings", "optimizer.clip_norm"]
    assert found.grid("adamw") == {"optimizer.lr": [1e-3, 3e-3]}
    assert found.grid("calm") == {"optimizer.lr": [0.03, 0.1]}
    twice = {"schedule": {"wsd": Leaves({"schedule.name": "wsd"}, {"optimizer.lr": [1.0, 2.0]})}}
    with pytest.raises(ValueError, match=r"arm 'calm\+wsd' is given two grids for 'optimizer.lr'"):
        replace(found, vary={**found.vary, **twice}, reference="adamw+wsd")


def test_references_are_of_the_same_level(study: Study) -> None:
    vary = {
        "model.num_hidden_layers": {"2": 2, "6": 6},
        "model.blocks.main.norm": {"rms": "rms_norm", "layer": "layer_norm"},
        "schedule.name": {"wsd": "wsd", "cosine": "cosine"},
    }
    found = replace(study, vary=vary, reference="2+rms+wsd")
    assert set(found.references().values()) == {"2+rms+wsd"}
    within = replace(found, within=("model.num_hidden_layers", "schedule.name"))
    references = within.references()
    assert references["6+layer+cosine"] == "6+rms+cosine"
    assert references["2+layer+wsd"] == references["2+rms+wsd"] == "2+rms+wsd"
    assert len(set(references.values())) == 4


def test_sizes_are_matched_within_each_level(study: Study) -> None:
    vary = {MIXER: {name: {"name": name} for name in ("attention", "gla")}, "model.num_hidden_layers": {"1": 1, "4": 4}}
    found = replace(study, vary=vary, reference="attention+1")
    with pytest.raises(ValueError, match=r"arm 'attention\+4': parameters cannot be matched"):
        equalize(found)
    equalized = equalize(replace(found, within=("model.num_hidden_layers",)))
    sizes = {name: count_parameters(run) for name, run in equalized.runs.items()}
    assert equalized.solved["attention+4"] == equalized.solved["attention+1"] == {}
    for depth in ("1", "4"):
        assert sizes[f"gla+{depth}"] == pytest.approx(sizes[f"attention+{depth}"], rel=TOLERANCE)
    assert sizes["attention+4"] > 1.5 * sizes["attention+1"]


def test_every_residual_scheme_is_matched(study: Study) -> None:
    """Schemes have weights of their own, which are within tolerance or outweighed by the channel mixer."""
    schemes = {name: {"name": name} for name in RESIDUALS.names()}
    base = with_values(study.base, {"model.hidden_size": 48})
    found = replace(study, base=base, vary={"model.blocks.main.residual": schemes}, reference="pre")
    equalized = equalize(found)
    sizes = {name: count_parameters(run) for name, run in equalized.runs.items()}
    target = sizes["pre"]
    for name, size in sizes.items():
        assert size == pytest.approx(target, rel=TOLERANCE), name
        own = count_parameters(found.arm_run(name))
        assert abs(size - target) <= abs(own - target)
        assert bool(equalized.solved[name]) == (size != own), "a channel mixer is resized only if that helps"


def test_a_block_without_a_channel_mixer(study: Study) -> None:
    alone = {"mixer": {"name": "attention"}, "channel": None}
    whole = {"mixer": {"name": "attention"}, "channel": {"name": "glu"}}
    vary = {"model.blocks.main": {"alone": alone, "gla": {**alone, "mixer": {"name": "gla"}}}}
    with pytest.raises(ValueError, match="arm 'gla': no block has a channel mixer"):
        equalize(replace(study, vary=vary, reference="alone"))
    layout = {"model.num_hidden_layers": 2, "model.layout": ["main", "alone"], "model.hidden_size": 32}
    layout["model.blocks"] = {"main": whole, "alone": alone}
    found = replace(study, base=with_values(study.base, layout), vary={"model.blocks.alone.mixer": vary_names()})
    equalized = equalize(found)
    assert set(equalized.solved["gla"]) == {"model.blocks.main.channel.expansion"}
    sizes = {name: count_parameters(run) for name, run in equalized.runs.items()}
    assert sizes["gla"] == pytest.approx(sizes["attention"], rel=TOLERANCE)
    bare = replace(study, vary={"model.blocks.main.channel": {"glu": {"name": "glu"}, "none": None}}, reference="glu")
    with pytest.raises(ValueError, match="arm 'none': no block has a channel mixer"):
        equalize(bare)
    assert equalize(replace(bare, equal="flops")).solved["none"]["budget.steps"] > 20


def vary_names() -> dict[str, dict[str, str]]:
    return {name: {"name": name} for name in ("attention", "gla")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (FILE.replace("study =", "stud ="), "defines no Study called 'study'"),
        (FILE.replace("study = ", "study = ("), "cannot be imported: SyntaxError"),
        ("import nothing_of_this_name", "cannot be imported: ModuleNotFoundError"),
        (FILE.replace('"text.txt")', '"text.txt"), seeds=()'), "no seeds"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "study.py"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_study(path)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "study.py"
    path.write_text(FILE)
    assert read_study(path).reference == "attention"
    with pytest.raises(ValueError, match="defines no Study called 'other'"):
        read_study(path, "other")
    with pytest.raises(ValueError, match=r"study\.txt' is not a Python file"):
        read_study(path.rename(tmp_path / "study.txt"))
    with pytest.raises(ValueError, match="does not exist"):
        read_study(path)
    assert study_name(tmp_path / "0007_question" / "study.py") == "0007_question"
    assert study_name(tmp_path / "mine.py") == "mine"


def test_every_mixer_is_matched_to_attention(text: Path) -> None:
    sizes = {"model.hidden_size": 48, "model.num_hidden_layers": 2, "model.max_position_embeddings": 32}
    # Wide channel mixers leave room for the mixers that are larger than attention.
    base = with_values(small.run(text), sizes | {"model.blocks.main.channel.expansion": 8.0})
    arms = {name: {"name": name} for name in MIXERS.names()}
    study = replace(small.study(text), base=base, vary={MIXER: arms})
    equalized = equalize(study)
    target = count_parameters(equalized.runs["attention"])
    assert target == sum(parameter.numel() for parameter in build_model(equalized.runs["attention"]).parameters())
    assert equalized.solved["attention"] == {}
    for name, run in equalized.runs.items():
        assert abs(count_parameters(run) - target) <= TOLERANCE * target, name
        assert with_values(run, {"model": study.arm_run(name).model}) == study.arm_run(name), "only sizes were solved"
    assert {name for name, values in equalized.solved.items() if not values} >= {"attention"}
    assert len({count_parameters(study.arm_run(name)) for name in arms}) > 1, "there was something to solve"


def test_what_needs_no_solving_stays_as_it_is(study: Study) -> None:
    found = replace(study, vary={"optimizer.lr": {"slow": 1e-3, "fast": 1e-2}}, reference="slow")
    assert equalize(found).solved == {"slow": {}, "fast": {}}


def test_several_blocks_are_scaled_alike(study: Study) -> None:
    wide = {"mixer": {"name": "attention"}, "channel": {"name": "glu", "expansion": 4.0}}
    thin = {"mixer": {"name": "attention"}, "channel": {"name": "mlp", "expansion": 2.0}}
    sizes = {"num_hidden_layers": 2, "layout": ["wide", "thin"], "hidden_size": 32}
    base = with_values(study.base, {"model": {**study.base.model, **sizes, "blocks": {"wide": wide, "thin": thin}}})
    arms = {name: {"name": name} for name in ("attention", "gated_delta_net")}
    solved = equalize(replace(study, base=base, vary={"model.blocks.wide.mixer": arms})).solved["gated_delta_net"]
    expansions = [solved[f"model.blocks.{name}.channel.expansion"] for name in ("wide", "thin")]
    assert expansions[0] == pytest.approx(2 * expansions[1], abs=0.1)
    assert expansions[0] < 4


def test_sizes_that_cannot_be_matched(study: Study) -> None:
    found = replace(study, vary={"model.hidden_size": {"small": 16, "large": 64}}, reference="small")
    with pytest.raises(ValueError, match=r"arm 'large': parameters cannot be matched: [\d,]+ at best"):
        equalize(found)


def test_equal_arms_are_refused(study: Study) -> None:
    arms = {"one": {"name": "gla"}, "two": {"name": "gla"}}
    with pytest.raises(ValueError, match="arms 'one' and 'two' are the same run"):
        equalize(replace(study, vary={MIXER: arms}, reference="one"))


def test_an_arm_that_does_not_fit_is_named(study: Study) -> None:
    arms = {"attention": {"name": "attention"}, "odd": {"name": "gla", "num_heads": 3}}
    for equal in ("parameters", "flops", "tokens"):
        with pytest.raises(ValueError, match=r"arm 'odd': .*3"):
            equalize(replace(study, vary={MIXER: arms}, equal=equal))
    with pytest.raises(ValueError, match=r"arm 'odd': .*unknown mixer 'glaa'; did you mean 'gla'"):
        equalize(replace(study, vary={MIXER: {**arms, "odd": {"name": "glaa"}}}))


@pytest.mark.parametrize("budget", [Budget(steps=400), Budget(tokens=400 * 64), Budget(flops=1e10)])
def test_flops_are_matched_by_steps(study: Study, budget: Budget) -> None:
    found = replace(study, equal="flops", base=replace(study.base, budget=budget))
    runs = equalize(found).runs
    spent = {}
    for name, run in runs.items():
        step = training_flops(build_model(run), make_task(run).example(), make_task(run).arguments) * 2
        spent[name] = run.budget.flops or step * (run.budget.steps or (run.budget.tokens or 0) / 64)
    assert spent["gla"] == pytest.approx(spent["attention"], rel=0.005)
    assert with_values(runs["gla"], {"budget.steps": 1}) == with_values(found.arm_run("gla"), {"budget.steps": 1})


def point(value: float, bits: float | None) -> TuningPoint:
    return TuningPoint({"optimizer.lr": value}, bits, 0, False, bits is None)


def test_the_best_value() -> None:
    assert best_values([point(1, 3.0), point(2, 2.0), point(3, None)]) == {"optimizer.lr": 2}
    assert best_values([point(1, None)]) is None
    assert best_values([]) is None


@pytest.mark.parametrize(
    ("values", "best", "wider"),
    [
        ([1e-3, 2e-3, 4e-3], 2e-3, []),
        ([1e-3, 2e-3, 4e-3], 4e-3, [8e-3]),
        ([4e-3, 1e-3, 2e-3], 1e-3, [5e-4]),
        ([1e-3, 1e-2], None, [1e-4]),
        ([1e-3], 1e-3, []),
        (["cosine", "wsd"], "wsd", []),
        ([0, 1, 2], 2, []),
        ([True, False], True, []),
        ([0.0, 0.1, 0.2], 0.2, []),
    ],
)
def test_grids_grow_where_the_best_is_at_an_edge(values: list[Any], best: Any, wider: list[Any]) -> None:
    grid = {"optimizer.lr": values, "other": ["a"]}
    found = extended(grid, None if best is None else {"optimizer.lr": best, "other": "a"})
    assert found == {"optimizer.lr": [*values, *wider], "other": ["a"]}
    assert grid["optimizer.lr"] == values


def test_any_value_makes_a_name() -> None:
    assert [_word(value) for value in (1e-3, 3, "wsd", {"name": "gla"}, [1, 2])] == [
        "0.001",
        "3",
        "wsd",
        "_name_gla_",
        "_1_2_",
    ]
