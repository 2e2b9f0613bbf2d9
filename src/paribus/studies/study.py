"""`Study`: a question, and everything that decides its answer."""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from paribus.evaluation.metrics import METRICS
from paribus.nn.settings import nearest
from paribus.training.run import Budget, Run, with_values

Equalizer = Literal["parameters", "flops", "tokens", "seconds"]
_FIXED = {
    "name": "a study names its runs",
    "seed": "the study's seeds are every arm's",
    "data.seed": "the study's seeds are every arm's",
}
_DOCUMENTS = ("data.corpora", "data.images", "evaluation")
"""What decides on which documents or images an arm is measured."""


@dataclass(frozen=True)
class Leaves:
    """A level of a factor that sets several settings at once, such as an optimizer's name and its momentum."""

    values: dict[str, Any]
    """Dotted path of the run -> value; every other setting stays the base's."""
    tune: dict[str, list[Any]] = field(default_factory=dict)
    """Grids in place of the study's, for paths that the study tunes: of as many values, so that care stays equal."""


@dataclass(frozen=True)
class Study:
    """One factor (or several) varied, all else equal.

    Raises:
        ValueError: fewer than two arms, or two of one name; an unknown reference or level to stay within; no seed or a
            repeated one; a tuning seed that the verdict uses too; a tuned path without values; a path that may not
            vary, or that two factors set; a budget that the equalizer forbids.
    """

    question: str
    base: Run
    vary: dict[str, dict[str, Any]]
    """Dotted path of the run -> label -> value; several paths make an arm for each combination.
    A factor whose values are all `Leaves`, which name their paths themselves, is called anything."""
    reference: str
    """The arm that the others are compared with."""
    within: tuple[str, ...] = ()
    """Factors whose levels are not compared with each other: an arm's reference, to which it is also made equal, is the
    one at the arm's own levels of these. With depth in it, deep models are compared with the deep reference; with tasks
    in it, each task is judged by its own metric, on its own data."""
    equal: Equalizer = "parameters"
    """parameters: channel mixers are resized until totals agree within 0.5 %, and all arms read the same tokens.
    flops: steps are solved so that all arms spend what the reference spends. tokens: nothing is solved.
    seconds: the base budget is in seconds and every arm gets as many."""
    tune: dict[str, list[Any]] = field(default_factory=dict)
    """Dotted path -> values tried in every arm; a best value at an edge extends the grid."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Each seed decides the initial weights and the order of the data; arms are paired by seed."""
    tuning_seed: int = 1000
    baseline_orders: tuple[int, ...] = (1, 3, 5)
    """Byte n-gram baselines, counted on the bytes that the arms read, where the task reads text."""
    metric: str | None = None
    """What decides: a metric that the tasks of all arms measure on the test split; None is each task's own."""
    smallest_effect_of_interest: float | None = None
    """Differences surely within plus or minus this count as none; None is what the metric says."""
    confidence: float = 0.95

    def __post_init__(self) -> None:
        self._check_arms()
        self._check_seeds()
        self._check_paths()
        self._check_grids()
        if (self.equal == "seconds") != (self.base.budget.seconds is not None):
            raise ValueError(
                f"study: equal is '{self.equal}' and the base budget is {_given(self.base.budget)}; "
                "equal 'seconds' and a budget in seconds need each other"
            )
        if not all(1 <= order <= 8 for order in self.baseline_orders):
            raise ValueError(f"study: baseline_orders are {list(self.baseline_orders)}; 1 to 8 are allowed")
        if self.metric is not None and self.metric not in METRICS:
            raise ValueError(f"study: unknown metric '{self.metric}'; {nearest(self.metric, METRICS)}")

    def _check_arms(self) -> None:
        names = ["+".join(labels) for labels in itertools.product(*self.vary.values())] if self.vary else []
        repeated = next((name for index, name in enumerate(names) if name in names[:index]), None)
        if repeated:
            raise ValueError(f"study: two arms are called '{repeated}'; give their levels other labels")
        if len(names) < 2:
            raise ValueError(
                f"study: {len(names)} arms ({', '.join(names) or 'none'}); at least two are needed to compare"
            )
        if self.reference not in names:
            raise ValueError(f"study: reference '{self.reference}' is not an arm; {nearest(self.reference, names)}")
        for factor in self.within:
            if factor not in self.vary:
                raise ValueError(f"study: within names '{factor}', which does not vary; {nearest(factor, self.vary)}")
        if all(arm == reference for arm, reference in self.references().items()):
            raise ValueError(f"study: within leaves one arm at each level of {', '.join(self.within)}; two are needed")

    def _check_seeds(self) -> None:
        if not self.seeds:
            raise ValueError("study: no seeds; at least one is needed, and three for a verdict")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"study: seeds {list(self.seeds)} repeat one; each seed must be new evidence")
        if self.tune and self.tuning_seed in self.seeds:
            raise ValueError(f"study: tuning_seed {self.tuning_seed} is one of the seeds; the verdict needs fresh ones")

    def _check_paths(self) -> None:
        for path in (*self.varied_paths(), *self.tune):
            reason = next((why for prefix, why in _FIXED.items() if _within(path, prefix)), None)
            if reason:
                raise ValueError(f"study: '{path}' cannot vary between arms; {reason}")
        for path in self.compared_paths():
            if any(_within(path, name) or _within(name, path) for name in _DOCUMENTS):
                raise ValueError(
                    f"study: '{path}' varies, so that arms would be measured on different documents; "
                    "name its factor in within, whose levels are not compared"
                )
        for name, labels in self.labels().items():
            paths = [path for factor, label in labels.items() for path in _leaves(factor, self.vary[factor][label])]
            for index, path in enumerate(paths):
                covered = next((other for other in paths[:index] if _within(other, path)), None)
                if covered:
                    raise ValueError(f"study: arm '{name}' sets '{covered}' and then '{path}', which overwrites it")
        for path in self.tune:
            varied = next((other for other in self.varied_paths() if _within(other, path)), None)
            if varied:
                raise ValueError(f"study: '{path}' is tuned, which would overwrite the arms' '{varied}'")

    def _check_grids(self) -> None:
        for name in self.labels():
            for path, values in self.grid(name).items():
                if not values or any(value in values[:index] for index, value in enumerate(values)):
                    raise ValueError(
                        f"study: tune has the values {values} for '{path}'; at least one, none of them twice"
                    )
                if len(values) != len(self.tune[path]):
                    raise ValueError(
                        f"study: arm '{name}' tunes '{path}' over {len(values)} values of its own and the study over "
                        f"{len(self.tune[path])}; as many are needed, so that all arms get the same care"
                    )

    def labels(self) -> dict[str, dict[str, str]]:
        """Arm name -> factor -> label."""
        return {
            "+".join(labels): dict(zip(self.vary, labels, strict=True))
            for labels in itertools.product(*self.vary.values())
        }

    def arms(self) -> dict[str, dict[str, Any]]:
        """Arm name -> dotted path -> value."""
        return {
            name: {
                path: value
                for factor, label in labels.items()
                for path, value in _leaves(factor, self.vary[factor][label]).items()
            }
            for name, labels in self.labels().items()
        }

    def references(self) -> dict[str, str]:
        """Arm name -> name of the arm that it is compared with and made equal to; a reference is its own."""
        arms = self.labels()
        return {
            name: "+".join((arms[self.reference] | {factor: labels[factor] for factor in self.within}).values())
            for name, labels in arms.items()
        }

    def varied_paths(self) -> list[str]:
        """The dotted paths that the arms set."""
        return list(dict.fromkeys(path for values in self.arms().values() for path in values))

    def compared_paths(self) -> list[str]:
        """Those in which an arm may differ from its own reference: set by a factor outside `within`, or tuned."""
        factors = [name for name, labels in self.vary.items() if name not in self.within and len(labels) > 1]
        paths = [path for name in factors for level in self.vary[name].values() for path in _leaves(name, level)]
        return list(dict.fromkeys((*paths, *self.tune)))

    def grid(self, arm: str) -> dict[str, list[Any]]:
        """Dotted path -> values tried in `arm` to begin with."""
        own: dict[str, list[Any]] = {}
        for factor, label in self.labels()[arm].items():
            level = self.vary[factor][label]
            for path, values in level.tune.items() if isinstance(level, Leaves) else ():
                if path not in self.tune:
                    raise ValueError(f"study: arm '{arm}' tunes '{path}', which the study does not; add it to tune")
                if path in own:
                    raise ValueError(f"study: arm '{arm}' is given two grids for '{path}'; one is needed")
                own[path] = values
        return {path: list(own.get(path, values)) for path, values in self.tune.items()}

    def arm_run(self, name: str) -> Run:
        """The base run with the values of one arm, before anything is equalized."""
        return with_values(self.base, self.arms()[name])


def _leaves(factor: str, value: Any) -> dict[str, Any]:
    """Dotted path -> value, of one level of a factor."""
    return value.values if isinstance(value, Leaves) else {factor: value}


def _within(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}.")


def _given(budget: Budget) -> str:
    return next(f"{value:g} {key}" for key, value in asdict(budget).items() if value is not None)


def seeded(run: Run, seed: int, name: str) -> Run:
    """The run with `seed` for its weights and its data, under `name`."""
    return with_values(run, {"seed": seed, "data.seed": seed, "name": name})


def read_study(path: Path, variant: str = "study") -> Study:
    """The `Study` that a Python file defines under the name `variant`.

    Raises:
        ValueError: no such file, one that cannot be imported, or one without that name.
    """
    if not path.is_file():
        raise ValueError(f"study file '{path}' does not exist")
    spec = importlib.util.spec_from_file_location(f"paribus_study_{path.parent.name}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"study file '{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ValueError:
        raise
    except Exception as problem:
        raise ValueError(f"study file '{path}' cannot be imported: {type(problem).__name__}: {problem}") from problem
    found = getattr(module, variant, None)
    if not isinstance(found, Study):
        raise ValueError(f"study file '{path}' defines no Study called '{variant}'")
    return found


def study_name(path: Path) -> str:
    """The name of a study: that of its folder (``studies/0001_token_mixers/study.py``) or of its file."""
    return path.resolve().parent.name if path.name == "study.py" else path.stem
