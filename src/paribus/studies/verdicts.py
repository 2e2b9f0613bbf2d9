"""From the finished runs of all arms to one verdict for each arm beside the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paribus.evaluation.metrics import METRICS

from . import statistics
from .result import ArmResult, Verdict
from .statistics import Decision, Interval


@dataclass(frozen=True)
class DocumentCosts:
    """What a run's score is made of: Σ costs / Σ weights over the test documents or images, [N] both."""

    costs: np.ndarray
    weights: np.ndarray


Documents = Mapping[str, Mapping[int, DocumentCosts]]
"""By arm and finished seed; an arm without any has a metric that is no mean over documents."""


def judge(
    arms: Sequence[ArmResult],
    references: Mapping[str, str],
    documents: Documents,
    *,
    smallest_effect_of_interest: float | None = None,
    confidence: float = 0.95,
) -> tuple[Verdict, ...]:
    """Compare every arm with its reference: t test over seeds, Holm over arms, bootstrap over documents.

    Args:
        references: by arm, the arm that it is compared with; a reference is its own, and gets no verdict.
        documents: of the same test documents in the same order wherever arms share a reference.
        smallest_effect_of_interest: None: that of each arm's metric.
    """
    by_name = {arm.name: arm for arm in arms}
    others = [arm for arm in arms if references[arm.name] != arm.name]
    scores = {arm.name: finished_seeds(arm) for arm in arms}
    pairs = {
        arm.name: statistics.paired_difference(scores[references[arm.name]], scores[arm.name], confidence, len(others))
        for arm in others
    }
    adjusted = statistics.holm({name: p.p_value for name, p in pairs.items() if p.p_value is not None})
    verdicts = []
    for arm in others:
        reference = by_name[references[arm.name]]
        pair, adjusted_p = pairs[arm.name], adjusted.get(arm.name)
        interest = smallest_effect_of_interest
        interest = METRICS[arm.metric].smallest_effect_of_interest if interest is None else interest
        found = _divergence(arm, reference) or statistics.verdict(pair, adjusted_p, interest)
        common = sorted(scores[reference.name].keys() & scores[arm.name].keys())
        verdicts.append(
            Verdict(
                arm=arm.name,
                reference=reference.name,
                outcome=found.outcome,
                reason=found.reason,
                difference=pair.difference,
                interval=pair.interval,
                p_value=pair.p_value,
                adjusted_p_value=adjusted_p,
                smallest_detectable_effect=pair.smallest_detectable_effect,
                bootstrap_interval=_bootstrap(documents, reference.name, arm.name, common, confidence),
                seeds=pair.seeds,
                smallest_effect_of_interest=interest,
            )
        )
    return tuple(verdicts)


def finished_seeds(arm: ArmResult) -> dict[int, float]:
    """Scores by seed, of the runs that finished."""
    return {run.seed: run.score for run in arm.seeds if run.score is not None}


def _bootstrap(
    documents: Documents, reference: str, other: str, seeds: list[int], confidence: float
) -> Interval | None:
    """Interval over documents of two arms' difference; what a document costs and weighs are means over the seeds."""
    pairs = [(documents.get(reference, {}).get(seed), documents.get(other, {}).get(seed)) for seed in seeds]
    known = [(before, after) for before, after in pairs if before is not None and after is not None]
    if not known or len(known) < len(pairs):
        return None
    before, after = (np.mean([pair[side].costs for pair in known], axis=0) for side in (0, 1))
    weights = np.mean([pair[0].weights for pair in known], axis=0)
    counted = weights > 0  # a document in which nothing is asked for says nothing
    return statistics.bootstrap_over_documents(before[counted], after[counted], weights[counted], confidence)


def _divergence(arm: ArmResult, reference: ArmResult) -> Decision | None:
    """The decision where a run of either arm diverged: the seeds that did not are no fair sample."""
    for side, who in ((arm, "runs"), (reference, "runs of the reference")):
        diverged = [run for run in side.seeds if run.status == "diverged"]
        if diverged:
            details = "; ".join(f"seed {run.seed}: {run.divergence}" for run in diverged)
            reason = f"{len(diverged)} of {len(side.seeds)} {who} diverged ({details})."
            return Decision("diverged" if side is arm else "inconclusive", reason)
    return None
