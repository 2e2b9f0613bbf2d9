"""How a component fares in every task: the model learns, and reads the side or the sides that the task shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import initialize
from paribus.nn.task import TaskModel, task_model

from .subjects import WIDTH, Check, Kind, finite, tokens

STEPS = 4
"""Updates on one batch, after which a model must be better there."""
SEEN = 1e-7
"""The least relative change of an output that depends on a token."""
_ROWS, _LENGTH, _SIZE, _CLASSES = 3, 16, 8, 4
_MASK = 253
_MIDDLE = 3
"""A token that has two neighbours, and in the trial of prefixes is among the first `_PREFIX`."""
_PREFIX = 8


@dataclass(frozen=True)
class Trial:
    """One task, small."""

    task: dict[str, Any]
    sides: Literal["before", "both"]
    """Which tokens others depend on."""
    image: dict[str, Any] | None = None
    residual: str = "pre"
    more: dict[str, Tensor] = field(default_factory=dict)
    """What else the backbone is given."""

    def make(self, block: Mapping[str, Any]) -> TaskModel:
        """A model of two layers, both as `block` says, in float64, initialised with seed 0."""
        parts = {"mixer": {"name": "attention"}, "channel": {"name": "glu"}, "residual": {"name": self.residual}}
        config = ParibusConfig(
            hidden_size=WIDTH,
            num_hidden_layers=2,
            max_position_embeddings=32,
            blocks={"main": {**parts, **block}},
            task=self.task,
            causal=self.task["name"] == "causal_lm",
            image=self.image,
        )
        model = task_model(config)(config)
        initialize(model, seed=0)
        return model.double()

    def batch(self) -> dict[str, Tensor]:
        """Arguments of the model with targets, the same each time."""
        generator = torch.Generator().manual_seed(2)
        ids = torch.randint(0, 64, (_ROWS, _LENGTH), generator=generator)
        name, images = self.task["name"], (_ROWS, 1, _SIZE, _SIZE)
        if name == "causal_lm":
            return {"input_ids": ids, "labels": ids, **self.more}
        if name == "masked_lm":
            hidden = torch.arange(_LENGTH) % 3 == 1
            return {"input_ids": ids.masked_fill(hidden, _MASK), "labels": ids.masked_fill(~hidden, -100)}
        pixels, velocity = (torch.randn(images, generator=generator, dtype=torch.float64) for _ in range(2))
        classes = torch.arange(_ROWS) % _CLASSES
        if name == "image_classification":
            return {"pixel_values": pixels, "labels": classes}
        times = torch.linspace(0.1, 0.9, _ROWS, dtype=torch.float64)
        return {"pixel_values": pixels, "times": times, "classes": classes, "velocity": velocity}


_IMAGE = {"size": _SIZE, "patch_size": 2, "num_channels": 1}
_CLASSIFICATION = {"name": "image_classification", "num_classes": _CLASSES}
TRIALS = {
    "causal_lm": Trial({"name": "causal_lm"}, "before"),
    "causal_lm with prefixes": Trial(
        {"name": "causal_lm", "prefix": True}, "both", more={"prefix_length": torch.full((_ROWS,), _PREFIX)}
    ),
    "masked_lm": Trial({"name": "masked_lm", "mask_token": _MASK}, "both"),
    "image_classification": Trial(_CLASSIFICATION, "both", _IMAGE),
    "image_classification by a class token": Trial(_CLASSIFICATION, "both", {**_IMAGE, "class_token": True}),
    "image_classification in two scan orders": Trial(_CLASSIFICATION, "both", {**_IMAGE, "scan": "alternate"}),
    "image_generation": Trial(
        {"name": "image_generation", "num_classes": _CLASSES}, "both", _IMAGE, residual="adaln_zero"
    ),
}
"""Every task, some in several forms."""


def check_tasks(kind: Kind, name: str) -> None:
    """In every task a model learns one batch, all parameters take part, and tokens see the sides that they may.

    A mixer whose parameters differ between the directions does not read prefixes, which is its right.
    """
    for label, trial in TRIALS.items():
        where = f"{name}: tasks: {label}"
        try:
            model = trial.make({kind.role: {"name": name}})
        except ValueError as problem:
            if trial.more and "prefix true" in str(problem):
                continue
            raise AssertionError(f"{where}: {problem}") from problem
        learn(where, model, trial)
        if not kind.alone:
            check_sides(where, model, trial)


def learn(where: str, model: TaskModel, trial: Trial, idle: str = "no part") -> None:
    """Train on one batch: the loss falls, and every parameter has a gradient in the end.

    Args:
        idle: how the names of those end that have no part in this task.
    """
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    batch, losses = trial.batch(), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        losses.append(float(finite(f"{where}: loss", loss).detach()))
        optimizer.step()
    assert losses[-1] < losses[0], f"{where}: the loss goes from {losses[0]:.4f} to {losses[-1]:.4f} in {STEPS} steps"
    for part, parameter in model.named_parameters():
        gradient = finite(f"{where}: gradient of {part}", parameter.grad)
        assert part.endswith(idle) or gradient.any(), f"{where}: the gradient of {part} is zero"


@torch.no_grad()
def check_sides(where: str, model: TaskModel, trial: Trial) -> None:
    """What a token becomes depends on its neighbours of the right sides; rows are one text each, changed in one."""
    x = tokens(1, _LENGTH).repeat(_ROWS, 1, 1)
    for row, place in ((1, _MIDDLE - 1), (2, _MIDDLE + 1)):
        x[row, place] = tokens(1, 1, seed=9)[0, 0]
    y = model.eval().model(inputs_embeds=x, **trial.more).last_hidden_state[:, _MIDDLE]
    before, after = ((y[row] - y[0]).abs().max() / y.abs().max() for row in (1, 2))
    assert before > SEEN, f"{where}: a token changes by {before:.1e} when the token before it does"
    if trial.sides == "both":
        assert after > SEEN, f"{where}: a token changes by {after:.1e} when the token after it does"
    else:
        assert after <= 1e-12, f"{where}: a token changes by {after:.1e} when the token after it does, and must not"


TASK_CHECKS: dict[str, Check] = {"tasks": check_tasks}
