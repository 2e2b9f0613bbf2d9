"""The result of a study: everything that its verdict and its report are made of, as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from paribus.evaluation.metrics import METRICS
from paribus.nn.settings import nearest, read_settings

from .statistics import Interval, Outcome

SCHEMA_VERSION = 2
PICTURE = "data:image/png;base64,"
"""How a sample begins that is a picture and no text."""


@dataclass(frozen=True)
class CurvePoint:
    """What a run had consumed, and its score on the validation split, after `step` steps."""

    step: int
    tokens: int
    flops: float
    seconds: float
    score: float


@dataclass(frozen=True)
class GradientPoint:
    """The largest gradient norm, before clipping, of the logged steps since the point before."""

    step: int
    tokens: int
    norm: float


@dataclass(frozen=True)
class Stability:
    """How calmly a run trained (see `paribus.training.stability`); a number that was not finite is None.

    Attributes:
        spikes: steps at which the loss began to stand out of those before.
        skipped_steps: updates left out because a gradient overflowed in fp16.
        first_not_finite_step: where a run diverged.
        max_gradient_norm: before clipping, over all steps.
        update_ratios: by role of parameters, norm of the last logged update over that of the weights.
        activation_rms: by layer, of the block's output at the last logged step.
        activation_max: by layer, the largest number in the block's output at any logged step.
        gradient_norms: along the run.
    """

    spikes: tuple[int, ...]
    skipped_steps: int
    first_not_finite_step: int | None
    max_gradient_norm: float
    update_ratios: dict[str, float | None]
    activation_rms: tuple[float | None, ...]
    activation_max: tuple[float | None, ...]
    gradient_norms: tuple[GradientPoint, ...]


@dataclass(frozen=True)
class SeedResult:
    """One run of an arm.

    Attributes:
        divergence: what happened where the status is diverged, such as "loss was NaN at step 120".
        score: the arm's metric on the test split; None for a run that diverged.
        state_bytes: what one sequence has to remember while generating, by its length in tokens.
        optimizer_state_bytes: what the optimizer remembers; None, as stability, in results older than the measurement.
        scores: everything that was measured on the test split, by metric.
    """

    seed: int
    run_folder: str
    status: Literal["finished", "diverged"]
    divergence: str | None
    score: float | None
    parameters: int
    flops_per_token: float
    tokens: int
    flops: float
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int | None
    state_bytes: dict[str, int]
    curve: tuple[CurvePoint, ...]
    optimizer_state_bytes: int | None = None
    stability: Stability | None = None
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TuningPoint:
    """One tried combination of the tuned values, measured with the tuning seed on the validation split."""

    values: dict[str, Any]
    score: float | None
    seed: int
    chosen: bool
    diverged: bool


@dataclass(frozen=True)
class Sensitivity:
    """How an arm answers to the learning rate; `paribus.studies.sensitivity` says how it is computed.

    Attributes:
        best: None where every tried run diverged.
        excess: what a value of the grid costs on average beside the best, in the arm's tuning metric.
        grid: the values of the study, before any was added.
        threshold: the smallest value above the best at which a run diverged or ended above `bound`; None: none did.
        largest: of all that were tried.
        bound: above it training has failed; None where nothing says what that would be.
        ceiling: what a run that diverged or did worse counts as; None: as the worst that finished.
    """

    best: float | None
    excess: float | None
    grid: tuple[float, ...]
    threshold: float | None
    largest: float
    bound: float | None
    ceiling: float | None


@dataclass(frozen=True)
class ArmResult:
    """One arm: what varies in it, its runs, how it was tuned and what it writes.

    Attributes:
        task: the name of its model's task.
        metric: what decides between the arm and its reference, one of `paribus.evaluation.metrics.METRICS`.
        curve_metric: what its learning curves show on the validation split: the task's own.
        tuning_metric: what its tuned values were chosen by.
        labels: its level of each factor.
        settings: the leaves in which the arm differs from the others, before anything was solved.
        sample: text, or a picture as a data: URI that begins with `PICTURE`; "" where there is none.
        mean: of the metric, over the finished seeds; None where none finished.
        interval: t interval of the mean.
        sensitivity: None where the learning rate was not tuned.

    Raises:
        ValueError: a metric that is not known.
    """

    name: str
    task: str
    metric: str
    curve_metric: str
    tuning_metric: str
    labels: dict[str, str]
    settings: dict[str, Any]
    seeds: tuple[SeedResult, ...]
    tuning: tuple[TuningPoint, ...]
    sample: str
    mean: float | None
    interval: Interval | None
    sensitivity: Sensitivity | None = None

    def __post_init__(self) -> None:
        for metric in (self.metric, self.curve_metric, self.tuning_metric):
            if metric not in METRICS:
                raise ValueError(f"arm '{self.name}': unknown metric '{metric}'; {nearest(metric, METRICS)}")


@dataclass(frozen=True)
class Verdict:
    """What the study says of one arm beside the reference; a negative difference is better.

    Attributes:
        interval: t interval over seeds of the mean difference.
        bootstrap_interval: of the difference when the test documents or images are drawn again; None where the metric
            is no mean over them.
        seeds: how many seeds the two arms both finished.
        smallest_effect_of_interest: differences within plus or minus this count as none.
    """

    arm: str
    reference: str
    outcome: Outcome
    reason: str
    difference: float | None
    interval: Interval | None
    p_value: float | None
    adjusted_p_value: float | None
    smallest_detectable_effect: float | None
    bootstrap_interval: Interval | None
    seeds: int
    smallest_effect_of_interest: float


@dataclass(frozen=True)
class Baseline:
    """A trivial predictor on the same test split.

    Attributes:
        metric: what its score is.
        references: the references beside which, and beside whose arms, it stands.
    """

    name: str
    score: float
    description: str
    metric: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """One leaf of the specification that is not the same in all arms; undeclared, it is a confound."""

    path: str
    values: dict[str, Any]
    declared: bool


@dataclass(frozen=True)
class Audit:
    """The machine-made proof of what differs between the arms and what does not.

    Attributes:
        declared: paths of the factors that the study set out to vary.
        equal: statements proven, each with its evidence.
        confounds: what else differs, one sentence each.
        solved: what the equalizer solved, by arm.
        shared_parameters: by arm, the share of its parameters that start bit-equal to the reference's.
        ratios: by arm, quantities (parameters, flops, …) as multiples of the reference's.
    """

    declared: tuple[str, ...]
    differences: tuple[Difference, ...]
    equal: tuple[str, ...]
    confounds: tuple[str, ...]
    solved: dict[str, dict[str, Any]]
    shared_parameters: dict[str, float]
    ratios: dict[str, dict[str, float]]


@dataclass(frozen=True)
class StudyResult:
    """A finished study.

    Attributes:
        reference_arm: what arms are compared with, at the arm's own levels of the factors `within`.
        equal: what the arms were matched in, such as ("parameters", "tokens").
        created: ISO 8601 time.
    """

    name: str
    question: str
    reference_arm: str
    equal: tuple[str, ...]
    confidence: float
    arms: tuple[ArmResult, ...]
    verdicts: tuple[Verdict, ...]
    baselines: tuple[Baseline, ...]
    audit: Audit
    environment: dict[str, Any]
    created: str
    within: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if self.reference_arm not in names:
            raise ValueError(f"study '{self.name}': reference arm '{self.reference_arm}' is none of {names}")


def to_json(result: StudyResult) -> str:
    """The result as strict JSON.

    Raises:
        ValueError: a number in it is NaN or infinite.
    """
    return json.dumps(dataclasses.asdict(result), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> StudyResult:
    """Read what `to_json` wrote.

    Raises:
        ValueError: no JSON (a file cut short, for example), NaN, another version of the schema, an unknown or missing
            key, a wrong type.
    """
    try:
        settings = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as problem:
        raise ValueError(f"study result: not JSON: {problem}") from problem
    version = settings.get("schema_version") if isinstance(settings, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"study result: schema version is {version}; {SCHEMA_VERSION} is needed, which a new study writes"
        )
    return read_settings(StudyResult, settings, "study result")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"study result: {name} is no JSON number")
