"""Initial values: one rule for linear maps and embeddings by name, and generators keyed by parameter name.

Two models that share a parameter name and shape start with equal bits there, whatever else differs between them: each
random fill of a parameter draws from a generator of its own, keyed by (seed, parameter name).

A rule knows the `Place` of what it fills: an ``nn.Linear`` or ``nn.Embedding``. Everything else keeps values of its
own, whatever the rule: parameters that a module holds itself (decays, token matrices, convolutions, experts) and maps
that a published scheme of a mixer sets anew. So a branch that does not end in a map called ``output``, or adds
something to what that map gives, is outside of what a rule says of output maps.

D is the model's width and L its number of layers; W is [outputs, inputs].
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .settings import nearest

Table = nn.Linear | nn.Embedding
"""What a rule fills; a head that is tied to the embeddings is one more view of their table."""


@dataclass(frozen=True)
class Place:
    """Where a linear map or an embedding stands in its model."""

    role: Literal["embedding", "head", "output", "factor", "matrix"]
    """embedding: the table, and a head tied to it; head: to the logits; output: the last map of a mixer or channel
    mixer; factor: from a factorised table to the width; matrix: every other map."""
    name: str
    """The attribute that holds it, such as "query"."""
    branch: Literal["mixer", "channel", "none"]
    """Which half of a block it belongs to."""
    width: int
    num_layers: int


def mark_places(model: nn.Module, width: int, num_layers: int, tied: bool) -> None:
    """Tell every linear map and embedding in `model` its place; a head is the model's own child called "head"."""
    for path, module in model.named_modules():
        if isinstance(module, Table):
            *owners, name = path.split(".")
            branch = next((owner for owner in owners if owner in ("mixer", "channel")), "none")
            if isinstance(module, nn.Embedding) or (path == "head" and tied):
                role = "embedding"
            elif path == "head":
                role = "head"
            elif name == "output" and branch != "none":
                role = "output"
            elif owners[-1:] == ["embedding"]:
                role = "factor"
            else:
                role = "matrix"
            module.place = Place(role, name, branch, width, num_layers)  # type: ignore[arg-type, assignment]


def _place(module: Table) -> Place:
    """The place that was marked; of a component alone, or a table that was made anew, a plain one."""
    found = getattr(module, "place", None)
    role: Literal["embedding", "matrix"] = "embedding" if isinstance(module, nn.Embedding) else "matrix"
    return found if isinstance(found, Place) else Place(role, "", "none", module.weight.shape[1], 1)


def _fan_in(module: Table, place: Place) -> None:
    """Normal, std 1/√inputs: unit inputs give unit outputs; vectors of tokens have length 1.

    The rule of the house. A table [V, n] has std 1/√n, and the map from a factorised table to the width std 1/√D, so
    that the vectors have length 1 with factors and without. (With ``embedding.scale`` sqrt_width it is √D: channels
    are unit.)
    """
    inputs = place.width if place.role == "factor" else module.weight.shape[1]
    nn.init.normal_(module.weight, std=1 / math.sqrt(inputs))


def _normal(module: Table, place: Place) -> None:
    """Everything normal, std 0.02 (GPT, Radford et al. 2018)."""
    nn.init.normal_(module.weight, std=0.02)


def _truncated_normal(module: Table, place: Place) -> None:
    """Everything normal with std 0.02, cut at three of them (OLMoE, Muennighoff et al. 2024, arXiv:2409.02060)."""
    nn.init.trunc_normal_(module.weight, std=0.02, a=-0.06, b=0.06)


def _gpt2(module: Table, place: Place) -> None:
    """Normal, std 0.02; output maps 0.02/√(2L), as 2L of them add up in the stream (GPT-2, Radford et al. 2019)."""
    nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * place.num_layers) if place.role == "output" else 0.02)


def _gpt_neox(module: Table, place: Place) -> None:
    """Normal, std √(2/(5D)); output maps 2/(L√D) (GPT-NeoX-20B, Black et al. 2022, arXiv:2204.06745)."""
    small = math.sqrt(2 / (5 * place.width))
    deep = 2 / (place.num_layers * math.sqrt(place.width))
    nn.init.normal_(module.weight, std=deep if place.role == "output" else small)


def _inverse_sqrt_width(module: Table, place: Place) -> None:
    """Everything normal, std 1/√D, whatever the inputs: output maps of a wide inner layer are louder than `fan_in`."""
    nn.init.normal_(module.weight, std=1 / math.sqrt(place.width))


def _small_embedding(module: Table, place: Place) -> None:
    """Table uniform in ±1e-4, the rest as `fan_in`: a table that starts small moves fast (RWKV, arXiv:2305.13048).

    Meant for a norm right behind the table. The mean square, 3e-9, is less than the 1e-6 that the norms of this library
    add to it, so that the first norm gives vectors of 0.06 at the start, and of 1 once the table has moved.
    """
    if place.role == "embedding":
        nn.init.uniform_(module.weight, -1e-4, 1e-4)
    else:
        _fan_in(module, place)


def _zero_output(module: Table, place: Place) -> None:
    """Output maps zero, the rest as `fan_in`: every branch starts at zero (Zhang et al. 2019, arXiv:1901.09321)."""
    if place.role == "output":
        nn.init.zeros_(module.weight)
    else:
        _fan_in(module, place)


def _xavier(module: Table, place: Place) -> None:
    """Maps uniform with std √(2/(inputs + outputs)) (Glorot and Bengio 2010); tables and head as `fan_in`."""
    if place.role in ("output", "matrix"):
        nn.init.xavier_uniform_(module.weight)
    else:
        _fan_in(module, place)


def _xavier_fairseq(module: Table, place: Place) -> None:
    """`xavier`, with gain 2^-0.5 for the maps into a mixer, as attention in fairseq (Ott et al. 2019)."""
    if place.branch == "mixer" and place.role == "matrix":
        nn.init.xavier_uniform_(module.weight, gain=2**-0.5)
    else:
        _xavier(module, place)


def _xavier_fla(module: Table, place: Place) -> None:
    """Xavier-uniform with gain 2^-2.5 for all maps of a mixer, the rest as `fan_in` (flash-linear-attention's GLA)."""
    if place.branch == "mixer":
        nn.init.xavier_uniform_(module.weight, gain=2**-2.5)
    else:
        _fan_in(module, place)


def _deep_norm(module: Table, place: Place) -> None:
    """Xavier-normal with gain (8L)^-¼ in blocks, 1 for queries and keys (Wang et al. 2022, arXiv:2203.00555).

    The half of DeepNorm that is no residual scheme, for decoders. All maps of a mixer but those called query and key
    count as values; tables and head as `fan_in`.
    """
    if place.branch == "none":
        _fan_in(module, place)
    else:
        gain = 1.0 if place.name in ("query", "key") else (8 * place.num_layers) ** -0.25
        nn.init.xavier_normal_(module.weight, gain=gain)


def _orthogonal(module: Table, place: Place) -> None:
    """Maps with orthogonal rows or columns, uniformly drawn (Saxe et al. 2014, arXiv:1312.6120); the rest as `fan_in`.

    Rows have length 1 (W Wᵀ = 1), or columns length √(outputs/inputs) where there are more outputs than inputs: the
    scale of `fan_in` in both cases, so that nothing but the spectrum differs from it.
    """
    if place.role in ("output", "matrix"):
        outputs, inputs = module.weight.shape
        nn.init.orthogonal_(module.weight, gain=max(1.0, math.sqrt(outputs / inputs)))
    else:
        _fan_in(module, place)


def _mup(module: Table, place: Place) -> None:
    """Width-independent updates: table std 1, maps 1/√inputs, head 1/inputs (Yang et al. 2022, arXiv:2203.03466).

    Half of the parametrisation (their table 3, Adam). The other half is the learning rate of each role, which a run
    sets in ``optimizer.roles``. Tuned at width D₀ and used at width D, the factors of ``lr`` are

        embedding 1        vector 1        gate 1        matrix D₀/D        head D₀/D

    Decoupled weight decay is multiplied by the learning rate; D/D₀ times as much of it for matrix and head keeps the
    decay of a step. Grow the number of heads with their width fixed, or set the mixer's scale to 1/K: scores then keep
    their size. `expansion` and the rank of factorised embeddings stay as they are, and nothing is tied.
    """
    inputs = module.weight.shape[1]
    deviation = {"embedding": 1.0, "head": 1 / inputs}.get(place.role, 1 / math.sqrt(inputs))
    nn.init.normal_(module.weight, std=deviation)


INITIALIZATIONS: dict[str, Callable[[Table, Place], None]] = {
    "fan_in": _fan_in,
    "normal": _normal,
    "truncated_normal": _truncated_normal,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "inverse_sqrt_width": _inverse_sqrt_width,
    "small_embedding": _small_embedding,
    "zero_output": _zero_output,
    "xavier": _xavier,
    "xavier_fairseq": _xavier_fairseq,
    "xavier_fla": _xavier_fla,
    "deep_norm": _deep_norm,
    "orthogonal": _orthogonal,
    "mup": _mup,
}


def get_initialization(name: str) -> Callable[[Table, Place], None]:
    """The rule called `name`.

    Raises:
        ValueError: unknown name.
    """
    if name not in INITIALIZATIONS:
        raise ValueError(f"model: unknown initialization '{name}'; {nearest(name, INITIALIZATIONS)}")
    return INITIALIZATIONS[name]


def initialize_module(module: nn.Module, rule: str) -> None:
    """Initialise what `module` owns directly. Call children first: an owner may override what its parts got."""
    if isinstance(module, Table):
        get_initialization(rule)(module, _place(module))
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
    """Hands every random fill of a named parameter its own generator.

    Some functions of torch.nn.init draw into a tensor of their own as well: the generator of the named parameter that
    was touched last goes on there.
    """

    def __init__(self, module: nn.Module, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.names = {id(parameter): name for name, parameter in module.named_parameters()}
        self.touched: Tensor | None = None
        self.generator: torch.Generator | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, Tensor):
            fills = getattr(func, "__name__", "") in _RANDOM_FILLS
            if id(target) in self.names and (fills or target is not self.touched):
                self.touched, self.generator = target, None
            if fills and self.touched is not None:
                self.generator = self.generator or self._new_generator(self.touched)
                kwargs["generator"] = self.generator
        return func(*args, **kwargs)

    def _new_generator(self, parameter: Tensor) -> torch.Generator | None:
        if parameter.is_meta:
            return None
        key = hashlib.sha256(f"{self.seed}/{self.names[id(parameter)]}".encode()).digest()
        return torch.Generator(parameter.device).manual_seed(int.from_bytes(key[:8], "little") >> 1)


_RANDOM_FILLS = frozenset(
    ("normal_", "uniform_", "trunc_normal_", "xavier_normal_", "xavier_uniform_", "kaiming_normal_", "kaiming_uniform_")
)
