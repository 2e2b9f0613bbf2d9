"""What models are judged by. Every metric is a cost: lower is better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One number of a trained model."""

    title: str
    """What it is, with its unit, as tables say it."""
    smallest_effect_of_interest: float
    """Differences surely within plus or minus this count as none, unless a study says otherwise."""
    knowing_nothing: float | None = None
    """What a model that has learnt nothing reaches; None where that depends on the data."""


METRICS: dict[str, Metric] = {
    "bits_per_byte": Metric("bits per byte", 0.01, knowing_nothing=8.0),
    "masked_bits_per_byte": Metric("bits per hidden byte", 0.01, knowing_nothing=8.0),
    "error_rate": Metric("share of images misclassified", 0.005, knowing_nothing=1.0),
    "flow_loss": Metric("squared error of the velocity", 0.001),
    "frechet_distance": Metric("Fréchet distance of samples", 0.5),
    "sample_error_rate": Metric("share of samples not recognised", 0.01, knowing_nothing=1.0),
    "cross_entropy": Metric("cross entropy, nats", 0.01),
    "pseudo_perplexity": Metric("pseudo-perplexity of a token", 0.05),
}
"""By the name that results and studies use."""
