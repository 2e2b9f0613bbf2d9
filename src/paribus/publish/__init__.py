"""From a model to a Hugging Face folder, and the proof that it loads without this library."""

from __future__ import annotations

from .evaluate import evaluate_folder
from .generate import generate
from .publication import ProofFailed, load_published, publish_model
from .runs import load_any, publish_run

__all__ = [
    "ProofFailed",
    "evaluate_folder",
    "generate",
    "load_any",
    "load_published",
    "publish_model",
    "publish_run",
]
