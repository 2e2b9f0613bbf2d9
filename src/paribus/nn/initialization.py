"""Initial values: one rule for linear maps and embeddings by name, and generators keyed by parameter name.

Two models that share a parameter name and shape start with equal bits there, whatever else differs between them: each
random fill of a parameter draws from a generator of its own, keyed by (seed, parameter name).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .settings import nearest


def _fan_in(module: nn.Linear | nn.Embedding) -> None:
    """Linear: normal, std 1/√fan_in, so that unit inputs give unit outputs. Embedding: normal, std 1/√D."""
    nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight.shape[1]))


def _normal(module: nn.Linear | nn.Embedding) -> None:
    """Everything normal with std 0.02 (GPT-2, Radford et al. 2019)."""
    nn.init.normal_(module.weight, std=0.02)


INITIALIZATIONS: dict[str, Callable[[nn.Linear | nn.Embedding], None]] = {"fan_in": _fan_in, "normal": _normal}


def get_initialization(name: str) -> Callable[[nn.Linear | nn.Embedding], None]:
    """The rule called `name`.

    Raises:
        ValueError: unknown name.
    """
    if name not in INITIALIZATIONS:
        raise ValueError(f"unknown initialization '{name}'; {nearest(name, INITIALIZATIONS)}")
    return INITIALIZATIONS[name]


def initialize_module(module: nn.Module, rule: str) -> None:
    """Initialise what `module` owns directly. Call children first: an owner may override what its parts got."""
    if isinstance(module, nn.Linear | nn.Embedding):
        get_initialization(rule)(module)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    elif callable(reset := getattr(module, "reset_parameters", None)):
        reset()


def fill_with(parameter: Tensor, function: Callable[[Tensor], Tensor]) -> None:
    """Set `parameter` to `function` of numbers uniform in [0, 1) of its shape, for what torch.nn.init has no name.

    torch.nn.init goes first, so that values which transformers has loaded stay: it guards those functions only.
    """
    nn.init.constant_(parameter, math.nan)
    if parameter.is_meta or not bool(parameter.isnan().all()):
        return
    nn.init.uniform_(parameter)
    with torch.no_grad():
        parameter.copy_(function(parameter))


def initialize(module: nn.Module, seed: int, rule: str = "fan_in") -> None:
    """Initialise every parameter of `module` from (seed, its name); the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _NameKeyed(module, seed):
        torch.manual_seed(seed)
        module.apply(lambda part: initialize_module(part, rule))


class _NameKeyed(TorchFunctionMode):
    """Hands every random fill of a named parameter its own generator."""

    def __init__(self, module: nn.Module, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.names = {id(parameter): name for name, parameter in module.named_parameters()}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, Tensor) and id(target) in self.names and getattr(func, "__name__", "") in _RANDOM_FILLS:
            kwargs["generator"] = self._generator(target)
        return func(*args, **kwargs)

    def _generator(self, parameter: Tensor) -> torch.Generator | None:
        if parameter.is_meta:
            return None
        key = hashlib.sha256(f"{self.seed}/{self.names[id(parameter)]}".encode()).digest()
        return torch.Generator(parameter.device).manual_seed(int.from_bytes(key[:8], "little") >> 1)


_RANDOM_FILLS = frozenset(
    ("normal_", "uniform_", "trunc_normal_", "xavier_normal_", "xavier_uniform_", "kaiming_normal_", "kaiming_uniform_")
)
