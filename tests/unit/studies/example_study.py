"""A study's result made by hand: every number is arbitrary, every awkward case is there once."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from paribus.studies.result import (
    ArmResult,
    Audit,
    Baseline,
    CurvePoint,
    Difference,
    GradientPoint,
    SeedResult,
    Stability,
    StudyResult,
    TuningPoint,
)
from paribus.studies.sensitivity import sensitivity
from paribus.studies.statistics import mean_interval
from paribus.studies.verdicts import DocumentCosts, judge

HOSTILE = "γραμμικό <script>alert('é')</script>"
"""The name of an arm: markup and letters beyond ASCII."""
STEPS = 600
TOKENS_PER_STEP = 4096
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)


def run(arm: str, seed: int, end: float, speed: float, diverged_at: int | None = None) -> SeedResult:
    """A run that ends at `end` bits per byte, or that broke at a step."""
    draws = np.random.default_rng([seed, len(arm)])
    curve = []
    for step in range(0, STEPS + 1, 20):
        if diverged_at is not None and step >= diverged_at:
            break
        score = end + (8 - end) * math.exp(-((step / 45) ** 0.55)) * (1 + 0.02 * draws.normal())
        tokens = step * TOKENS_PER_STEP
        curve.append(CurvePoint(step, tokens, tokens * 2.1e6, tokens / speed, score))
    last = curve[-1]
    optimizer_state = None if arm == "mlp_mixer" else 2_498_764
    return SeedResult(
        seed=seed,
        run_folder=f"runs/example/{arm[:4]}-seed{seed}-0a1b2c3d",
        status="finished" if diverged_at is None else "diverged",
        divergence=None if diverged_at is None else f"loss was NaN at step {diverged_at}",
        score=None if diverged_at is not None else end,
        parameters=312_345 + len(arm),
        flops_per_token=2.1e6,
        tokens=last.tokens,
        flops=last.flops,
        seconds=last.seconds,
        tokens_per_second=speed,
        peak_memory_bytes=None if arm == "mlp_mixer" else 412_000_000 + 1000 * seed,
        state_bytes={str(n): n * 1024 if arm == "attention" else 65_536 for n in (256, 2048, 16384)},
        curve=tuple(curve),
        optimizer_state_bytes=optimizer_state,
        stability=None if arm == "mlp_mixer" else stability(arm, last.step, draws, diverged_at),
        scores={} if diverged_at is not None else {"bits_per_byte": end},
    )


def stability(arm: str, last_step: int, draws: np.random.Generator, diverged_at: int | None) -> Stability:
    """Norms that fall along the run, activations that grow with the layer; a run that broke knows less."""
    size = len(arm) % 7
    norms = [size * math.exp(-step / 300) + 0.3 * draws.random() for step in range(15, last_step + 1, 15)]
    points = [GradientPoint(15 * i, 15 * i * TOKENS_PER_STEP, norm) for i, norm in enumerate(norms, 1)]
    growth = [1 + 0.1 * size * layer + 0.1 * draws.random() for layer in range(4)]
    broken = diverged_at is not None
    return Stability(
        spikes=(200, 480) if arm == "tnn" else (),
        skipped_steps=3 if arm == "gla" else 0,
        first_not_finite_step=diverged_at,
        max_gradient_norm=1234.5 if broken else max(norms),
        update_ratios={
            "embedding": 0.002,
            "matrix": None if broken else 0.0015 + 0.0001 * draws.random(),
            **({"gate": 0.004} if arm == "gla" else {}),
        },
        activation_rms=tuple(growth),
        activation_max=tuple(None if broken and layer > 1 else 9 * value for layer, value in enumerate(growth)),
        gradient_norms=tuple(points),
    )


def tuning(best: float, best_rate: float, diverged: bool) -> tuple[TuningPoint, ...]:
    """A parabola in the logarithm of the learning rate; the largest may diverge."""
    scores = [best + 0.06 * math.log(rate / best_rate) ** 2 for rate in LEARNING_RATES]
    return tuple(
        TuningPoint(
            values={"optimizer.lr": rate},
            score=None if diverged and rate == 1e-2 else score,
            seed=1000,
            chosen=score == min(scores),
            diverged=diverged and rate == 1e-2,
        )
        for rate, score in zip(LEARNING_RATES, scores, strict=True)
    )


def arm(name: str, runs: tuple[SeedResult, ...], best_rate: float, diverged: bool = False) -> ArmResult:
    """An arm with its tuning and a sample."""
    scores = [run.score for run in runs if run.score is not None]
    mean, interval = mean_interval(scores) if scores else (None, None)
    points = tuning((mean or 2.2) + 0.05, best_rate, diverged)
    return ArmResult(
        name=name,
        task="causal_lm",
        metric="bits_per_byte",
        curve_metric="bits_per_byte",
        tuning_metric="bits_per_byte",
        labels={"model.blocks.main.mixer": name},
        settings={"model.blocks.main.mixer.name": name},
        seeds=runs,
        tuning=points,
        sample=f'def forward(self, x):\n    """{name}</script>"""\n    return x + 1 & 2  # ünïcödé ∑',
        mean=mean,
        interval=interval,
        sensitivity=sensitivity(points, LEARNING_RATES, 4.902, 8.0),
    )


def arms() -> tuple[ArmResult, ...]:
    """Better, hostile in name, diverged, a single seed, worse; the reference is not the first."""
    ends = {"attention": (2.151, 2.158, 2.146), "gla": (2.109, 2.113, 2.104), HOSTILE: (2.153, 2.1575, 2.149)}
    made = {name: tuple(run(name, i, end, 9100.0) for i, end in enumerate(e)) for name, e in ends.items()}
    return (
        arm("gla", made["gla"], 1e-2),
        arm("attention", made["attention"], 1e-3),
        arm(HOSTILE, made[HOSTILE], 1e-3),
        arm("hgrn1", (run("hgrn1", 0, 2.2, 7000.0), run("hgrn1", 1, 2.2, 7000.0, 260)), 3e-3, diverged=True),
        arm("mlp_mixer", (run("mlp_mixer", 0, 2.39, 16500.0),), 1e-3),
        arm("tnn", tuple(run("tnn", i, end, 6200.0) for i, end in enumerate((2.232, 2.251, 2.229))), 3e-3),
    )


def baseline(name: str, score: float, description: str = "") -> Baseline:
    """A trivial predictor beside attention."""
    return Baseline(name, score, description, "bits_per_byte", ("attention",))


def audit(names: list[str]) -> Audit:
    """One declared factor, one confound."""
    return Audit(
        declared=("model.blocks.main.mixer",),
        differences=(
            Difference("model.blocks.main.mixer.name", {name: name for name in names}, declared=True),
            Difference("optimizer.lr", {name: 0.01 if name == "gla" else 0.001 for name in names}, declared=True),
            Difference("data.tokenizer", {name: "byte" if name != "tnn" else "byte-2" for name in names}, False),
        ),
        equal=(
            "batches: SHA-256 5d41402abc4b2a76b9719d911017c592ae0f identical in all arms, seed by seed",
            "corpus manifest: SHA-256 7d793037a0760186574b0282f2f435e7 identical in all runs",
            "versions: torch 2.13.0, transformers 5.23.0 in all runs",
        ),
        confounds=("data.tokenizer is 'byte-2' in tnn and 'byte' elsewhere & was not declared",),
        solved={name: {"channel.inner_size": 352 + 8 * i} for i, name in enumerate(names)},
        shared_parameters={name: 1.0 if name == "attention" else 0.615 for name in names},
        ratios={
            name: {"parameters": 1 + 0.001 * i, "flops": 1 - 0.04 * i, "tokens": 1.0, "seconds": 1 + 0.2 * i}
            for i, name in enumerate(sorted(names))
        },
    )


def example_study() -> StudyResult:
    """The whole result; verdicts come from the library, out of arbitrary document scores."""
    made = arms()
    document_bytes = np.random.default_rng(0).integers(200, 9000, size=150)
    noise = np.random.default_rng(1)
    documents = {
        a.name: {
            r.seed: DocumentCosts(document_bytes * (r.score + noise.normal(0, 0.1, size=150)), document_bytes)
            for r in a.seeds
            if r.score is not None
        }
        for a in made
    }
    return StudyResult(
        name="0000_example",
        question="Which token mixer learns most from the same ten million bytes?",
        reference_arm="attention",
        equal=("parameters", "tokens"),
        confidence=0.95,
        arms=made,
        verdicts=judge(made, {a.name: "attention" for a in made}, documents),
        baselines=(
            baseline("byte 5-gram", 2.871, "interpolated Kneser-Ney counts of the training bytes"),
            baseline("byte frequencies", 4.902, "each byte by how often it occurs"),
        ),
        audit=audit([a.name for a in made]),
        environment={
            "machine": {"processor": "an arbitrary one", "cores": 2, "memory_bytes": 8_000_000_000},
            "versions": {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0"},
        },
        created="2000-01-01T12:00:00+00:00",
    )


DIGITS = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAYAAAAGCAAAAADFp7CUAAAAM0lEQVR4nGNgYGBgYGBgZFBVVVVVZWFQ9fLy8mJgyL/nu0eb"
    "gWGKxp6AJwwMO4u0n8wFAIOIChCcJ3INAAAAAElFTkSuQmCC"
)
"""A picture of six by six pixels."""


def example_tasks() -> StudyResult:
    """Two mixers under two tasks, which differ in their metric; gla diverged in the second, and only there."""
    of_text, of_images = ("attention", "gla"), ("attention+digits", "gla+digits")
    made: list[ArmResult] = []
    for name in of_text:
        given = {a.name: a for a in arms()}[name]
        runs = tuple(replace(run, scores={**run.scores, "cross_entropy": 1.4}) for run in given.seeds)
        made.append(replace(given, name=f"{name}+text", seeds=runs, labels={"mixer": name, "task": "text"}))
    for name in of_images:
        broken = 260 if name.startswith("gla") else None
        runs = tuple(run(name, i, end, 5200.0, broken if i == 1 else None) for i, end in enumerate((0.05, 0.06, 0.058)))
        runs = tuple(replace(r, scores={} if r.score is None else {"error_rate": r.score}) for r in runs)
        given = replace(arm(name, runs, 1e-3), sample=DIGITS, labels={"mixer": name.split("+")[0], "task": "digits"})
        found = sensitivity(given.tuning, LEARNING_RATES, 0.9, 1.0)
        metrics = dict.fromkeys(("metric", "curve_metric", "tuning_metric"), "error_rate")
        made.append(replace(given, task="image_classification", sensitivity=found, **metrics))
    names = [a.name for a in made]
    references = {name: f"attention+{name.split('+')[1]}" for name in names}
    study = example_study()
    frequency = Baseline("most frequent class", 0.9, "of the training images", "error_rate", ("attention+digits",))
    return replace(
        study,
        name="0000_tasks",
        question="Which mixer suits which task?",
        reference_arm="attention+text",
        within=("task",),
        arms=tuple(made),
        verdicts=judge(made, references, {}),
        baselines=(*(replace(line, references=("attention+text",)) for line in study.baselines), frequency),
        audit=audit(names),
    )
