"""`Study`: a question, and everything that decides its answer."""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from paribus.nn.settings import nearest
from paribus.training.run import Run, with_values

Equalizer = Literal["parameters", "flops", "tokens", "seconds"]


@dataclass(frozen=True)
class Study:
    """One factor (or several) varied, all else equal.

    Raises:
        ValueError: fewer than two arms, no seed, a repeated seed, an unknown reference, a tuned path without values, a
            tuning seed that the verdict uses too, or an equalizer that the budget does not allow.
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
                f"study: {len(arms)} arm ({', '.join(arms) or 'none'}); at least two are needed to compare"
            )
        if self.reference not in arms:
            raise ValueError(
                f"study: reference '{self.reference}' is not an arm; {nearest(self.reference, arms)}"
            )
        if not self.seeds:
            raise ValueError("study: no seeds; at least one is needed, and three for a verdict")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"study: seeds {list(self.seeds)} repeat one; each seed must be new evidence")
        if self.tune and self.tuning_seed in self.seeds:
            raise ValueError(
                f"study: tuning_seed {self.tuning_seed} is one of the seeds; the verdict needs fresh ones"
            )
        for path, values in self.tune.items():
            if not values:
                raise ValueError(f"study: tune has no values for '{path}'")
        if self.equal == "seconds" and self.base.budget.seconds is None:
            raise ValueError("study: equal='seconds' needs a base budget in seconds")
        if self.equal in ("parameters", "tokens") and self.base.budget.seconds is not None:
            raise ValueError(
                f"study: equal='{self.equal}' needs a base budget in tokens, steps or flops, not seconds"
            )

    def arms(self) -> dict[str, dict[str, Any]]:
        """Arm name -> dotted path -> value."""
        choices = [
            [(path, label, value) for label, value in levels.items()] for path, levels in self.vary.items()
        ]
        return {
            "+".join(label for _, label, _ in combination): {path: value for path, _, value in combination}
            for combination in itertools.product(*choices)
            if combination
        }

    def arm_run(self, name: str) -> Run:
        """The base run with the values of one arm, before anything is equalized."""
        return with_values(self.base, self.arms()[name])


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
        raise ValueError(
            f"study file '{path}' cannot be imported: {type(problem).__name__}: {problem}"
        ) from problem
    found = getattr(module, variant, None)
    if not isinstance(found, Study):
        raise ValueError(f"study file '{path}' defines no Study called '{variant}'")
    return found


def study_name(path: Path) -> str:
    """The name of a study: that of its folder (``studies/0001_token_mixers/study.py``) or of its file."""
    return path.resolve().parent.name if path.name == "study.py" else path.stem
