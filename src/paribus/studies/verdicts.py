"""From the finished runs of all arms to one verdict for each arm beside the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from . import statistics
from .result import ArmResult, Verdict
from .statistics import Decision, Interval

DocumentBits = Mapping[str, Mapping[int, np.ndarray]]


def judge(
    arms: Sequence[ArmResult],
    references: Mapping[str, str],
    document_bits: DocumentBits,
    document_bytes: np.ndarray,
    *,
    smallest_effect_of_interest: float = 0.01,
    confidence: float = 0.95,
) -> tuple[Verdict, ...]:
    """Compare every arm with its reference: t test over seeds, Holm over arms, bootstrap over documents.

    Args:
        references: by arm, the arm that it is compared with; a reference is its own, and gets no verdict.
        document_bits: by arm and finished seed, the bits spent on each test document: [documents].
        document_bytes: [documents] bytes of each test document, in the same order.
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
        found = _divergence(arm, reference)
        found = found or statistics.verdict(pair, adjusted_p, smallest_effect_of_interest)
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
                bootstrap_interval=_bootstrap(
                    document_bits, (reference.name, arm.name), common, document_bytes, confidence
                ),
                seeds=pair.seeds,
            )
        )
    return tuple(verdicts)


def finished_seeds(arm: ArmResult) -> dict[int, float]:
    """Bits per byte by seed, of the runs that finished."""
    return {run.seed: run.bits_per_byte for run in arm.seeds if run.bits_per_byte is not None}


def _bootstrap(
    document_bits: DocumentBits,
    names: tuple[str, str],
    seeds: list[int],
    document_bytes: np.ndarray,
    confidence: float,
) -> Interval | None:
    """Interval over documents of two arms' difference; a document's bits are the mean over the seeds."""
    if not seeds:
        return None
    before, after = (np.mean([document_bits[name][seed] for seed in seeds], axis=0) for name in names)
    return statistics.bootstrap_over_documents(before, after, document_bytes, confidence)


def _divergence(arm: ArmResult, reference: ArmResult) -> Decision | None:
    """The decision where a run of either arm diverged: the seeds that did not are no fair sample."""
    for side, who in ((arm, "runs"), (reference, "runs of the reference")):
        diverged = [run for run in side.seeds if run.status == "diverged"]
        if diverged:
            details = "; ".join(f"seed {run.seed}: {run.divergence}" for run in diverged)
            reason = f"{len(diverged)} of {len(side.seeds)} {who} diverged ({details})."
            return Decision("diverged" if side is arm else "inconclusive", reason)
    return None
