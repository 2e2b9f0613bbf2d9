"""The ``model`` part of a run as a config; a published checkpoint does without this file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from .config import ParibusConfig
from .hybrids import spell_out
from .settings import nearest


def read_model_config(settings: Mapping[str, Any]) -> ParibusConfig:
    """A config from the ``model`` part of a run.

    Raises:
        ValueError: a key that this library does not define (transformers' own keys are for its files, not for runs),
            or an unknown hybrid.
    """
    parameters = inspect.signature(ParibusConfig.__init__).parameters
    known = [name for name in parameters if name not in ("self", "transformers_keys")]
    for key in settings:
        if key not in known:
            raise ValueError(f"model: unknown key '{key}'; {nearest(key, known)}")
    return ParibusConfig(**spell_out(settings))
