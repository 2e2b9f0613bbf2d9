"""What each parameter is for, so that optimizers can treat kinds of parameters apart.

    embedding   everything of the model's embedding and of its absolute position; also a head that is tied to it
    head        what turns the last hidden states into logits
    vector      weights of norms, biases, shifts: parameters that act on single channels
    gate        what sets decays, step sizes, gates and the shares of branches, channel by channel
    matrix      everything else: weights of linear maps and of convolutions, tables over positions

The weight of a linear map is a matrix even where it computes a gate: it is trained like every other matrix. Gates are
the parameters of one or two axes that a module holds by itself and whose name, or the name of whose module, has one of
`GATE_WORDS` in it; so are biases of such modules, and what a residual scheme holds beside its norms.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from torch import nn

RoleName = Literal["embedding", "matrix", "vector", "head", "gate"]
ROLES: tuple[RoleName, ...] = get_args(RoleName)

GATE_WORDS = {
    "bonus",
    "bound",
    "damping",
    "decay",
    "forget",
    "frequency",
    "gate",
    "lambda",
    "log",
    "phase",
    "rate",
    "residual",
    "ridge",
    "scale",
    "share",
    "skip",
    "step",
    "strength",
    "take",
    "temperature",
}
VECTOR_WORDS = {"augmentation", "bias", "mix", "mixes", "shift"}


def parameter_roles(model: nn.Module) -> dict[str, RoleName]:
    """Parameter name -> role, for every parameter of a language model; a tied one appears once, as embedding."""
    modules = dict(model.named_modules())
    return {name: _role(name, parameter, modules) for name, parameter in model.named_parameters()}


def _role(name: str, parameter: nn.Parameter, modules: dict[str, nn.Module]) -> RoleName:
    module_name, _, own_name = name.rpartition(".")
    if name.startswith(("model.embedding.", "model.position.")):
        return "embedding"
    if name.startswith(("head.", "reduction.")):
        return "head"
    words = set(re.split(r"[._]", re.sub(r"^model\.blocks\.\d+\.(mixer|channel)?\.?", "", name)))
    linear = isinstance(modules[module_name], nn.Linear)
    if words & {"norm", "norms"}:
        return "vector"
    if parameter.dim() <= 2 and not (linear and own_name == "weight"):
        if words & GATE_WORDS:
            return "gate"
        if words & VECTOR_WORDS or parameter.dim() < 2:
            return "vector"
    return "matrix"
