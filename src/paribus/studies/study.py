"""`Study`: a question, and everything that decides its answer."""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from paribus.nn.settings import nearest
from paribus.training.run import Budget, Run, with_values

Equalizer = Literal["parameters", "flops", "tokens", "seconds"]
_FIXED = {
    "name": "a study names its runs",
    "seed": "the study's seeds are every arm's",
    "data.seed": "the study's seeds are every arm's",
    "data.corpora": "arms would be measured on different documents",
    "evaluation": "arms would be measured on different documents",
}


@dataclass(frozen=True)
class Study:
    """One factor (or several) varied, all else equal.

    Raises:
        ValueError: fewer than two arms, an unknown reference, no seed or a repeated one, a tuning seed that the verdict
            uses too, a tuned path without values, a path that may not vary, or a budget that the equalizer forbids.
    """

    question: str
    base: Run
    vary: dict[str, dict[str, Any]]
    """Dotted path of the run -> label -> value; several paths make an arm for each combination."""
    reference: str
    """The arm that the others are compared with."""
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
    """Byte n-gram baselines, counted on the bytes that the arms read."""
    smallest_effect_of_interest: float = 0.01
    """Bits per byte; differences surely within plus or minus this count as none."""
    confidence: float = 0.95

    def __post_init__(self) -> None:
        arms = self.arms()
        if len(arms) < 2:
            raise ValueError(
                f"study: {len(arms)} arms ({', '.join(arms) or 'none'}); at least two are needed to compare"
            )
        if self.reference not in arms:
            raise ValueError(f"study: reference '{self.reference}' is not an arm; {nearest(self.reference, arms)}")
        self._check_seeds()
        self._check_paths()
        if (self.equal == "seconds") != (self.base.budget.seconds is not None):
            raise ValueError(
                f"study: equal is '{self.equal}' and the base budget is {_given(self.base.budget)}; "
                "equal 'seconds' and a budget in seconds need each other"
            )
        if not all(1 <= order <= 8 for order in self.baseline_orders):
            raise ValueError(f"study: baseline_orders are {list(self.baseline_orders)}; 1 to 8 are allowed")

    def _check_seeds(self) -> None:
        if not self.seeds:
            raise ValueError("study: no seeds; at least one is needed, and three for a verdict")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"study: seeds {list(self.seeds)} repeat one; each seed must be new evidence")
        if self.tune and self.tuning_seed in self.seeds:
            raise ValueError(f"study: tuning_seed {self.tuning_seed} is one of the seeds; the verdict needs fresh ones")

    def _check_paths(self) -> None:
        for path in (*self.vary, *self.tune):
            reason = next((why for prefix, why in _FIXED.items() if _within(path, prefix)), None)
            if reason:
                raise ValueError(f"study: '{path}' cannot vary between arms; {reason}")
        for path, values in self.tune.items():
            if not values or any(value in values[:index] for index, value in enumerate(values)):
                raise ValueError(f"study: tune has the values {values} for '{path}'; at least one, none of them twice")
            varied = next((other for other in self.vary if _within(other, path)), None)
            if varied:
                raise ValueError(f"study: '{path}' is tuned, which would overwrite the arms' '{varied}'")

    def arms(self) -> dict[str, dict[str, Any]]:
        """Arm name -> dotted path -> value."""
        choices = [[(path, label, value) for label, value in levels.items()] for path, levels in self.vary.items()]
        return {
            "+".join(label for _, label, _ in combination): {path: value for path, _, value in combination}
            for combination in itertools.product(*choices)
            if combination
        }

    def arm_run(self, name: str) -> Run:
        """The base run with the values of one arm, before anything is equalized."""
        return with_values(self.base, self.arms()[name])


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
