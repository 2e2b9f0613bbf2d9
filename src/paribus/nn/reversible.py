"""A coupling of two streams, and its training in memory that does not grow with depth.

    (x0, x1) ↦ (x1, y),  y = x0 + f(norm(x1))          inverted: x0 = y − f(norm(x1))

`couple` with a `Tape` keeps no activation of a branch, `finish` keeps the last pair of streams. The backward pass, from
the last coupling to the first, computes each branch again with gradients and subtracts it, and so has the pair that the
coupling before needs; the tape passes it on.

Everything that a branch reads is an input of an autograd function and everything that it writes an output: the streams,
its parameters, what `Context` shares. So autograd itself adds up what several layers contribute, parameters' hooks run,
and gradients arrive layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import InitVar, dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from .mixer import Context
from .residual import Branch


@dataclass(eq=False)
class Tape:
    """How many couplings one forward has made, and in its backward pass the pair of streams between two of them."""

    length: int = 0
    place: int = 0
    here: tuple[Tensor, Tensor] | None = None
    """The pair after the first `place` couplings."""

    def invert(self, number: int, f: Tensor) -> None:
        """Go back over coupling `number`, whose branch has given `f`."""
        x1, y = self.after(number)
        # The last two streams are what the forward pass keeps; a retained graph may need them again.
        x0 = y - f if number >= self.length - 1 else y.sub_(f)
        self.place, self.here = number - 1, (x0, x1)

    def after(self, number: int) -> tuple[Tensor, Tensor]:
        """The pair after coupling `number`.

        Raises:
            ValueError: the backward pass is elsewhere.
        """
        if self.here is None or number != self.place:
            raise ValueError(
                "a gradient enters a reversible model elsewhere than at its end, where no streams are kept; "
                "call the model with output_hidden_states=True, which keeps everything"
            )
        return self.here


class Pair(NamedTuple):
    """Two streams [B, T, D]."""

    first: Tensor
    second: Tensor
    narrow: torch.dtype
    """The model's own type; the streams may be wider."""
    tape: Tape | None
    """Given if the backward pass shall invert."""


def couple(pair: Pair, norm: nn.Module, branch: Branch) -> Pair:
    """(x0, x1) -> (x1, x0 + branch(norm(x1)))."""
    x0, x1, narrow, tape = pair
    if tape is None:
        return Pair(x1, x0 + _run(norm, branch, x1, narrow), narrow, None)
    context = branch.context or Context()
    half = _Half(_Modules(norm, branch), branch, context, narrow, tape)
    return Pair(x1, _recorded(x0, x1, half, context), narrow, tape)


def finish(pair: Pair) -> Tensor:
    """x0 + x1, where the backward pass begins."""
    if pair.tape is None:
        return pair.first + pair.second
    return _finished(pair.first, pair.second, pair.tape)


@torch.compiler.disable
def _finished(x0: Tensor, x1: Tensor, tape: Tape) -> Tensor:
    total: Tensor = _Sum.apply(x0, x1, tape)
    return total


def _run(norm: nn.Module, branch: Branch, x: Tensor, narrow: torch.dtype) -> Tensor:
    """The branch in the model's type, the norm in that or in float32."""
    x = norm(x.to(torch.promote_types(narrow, torch.float32)))
    return branch(x.to(narrow))


@torch.compiler.disable
def _recorded(x0: Tensor, x1: Tensor, half: _Half, context: Context) -> Tensor:
    """The new stream; it has no graph of its own but the way to invert it."""
    y, first_value, *losses = _Coupling.apply(half, x0, x1, *half.shared(context), *half.modules.parameters())
    if first_value is not None:
        context.first_value = (half.branch.modules[-1].placement.layer, first_value)
    for name, value in zip(half.losses, losses, strict=True):
        context.add_loss(name, value)
    new: Tensor = y
    return new


class _Modules(nn.Module):
    """All that has parameters in one half of a block."""

    def __init__(self, norm: nn.Module, branch: Branch) -> None:
        super().__init__()
        self.norm = norm
        self.parts = nn.ModuleList(branch.modules)

    def forward(self, branch: Branch, x: Tensor, narrow: torch.dtype) -> Tensor:
        """The branch, which calls `parts`, of the normed stream."""
        return _run(self.norm, branch, x, narrow)


@dataclass(eq=False)
class _Half:
    """One half of a block with all that it takes to compute it again."""

    modules: _Modules
    branch: Branch
    context: InitVar[Context]
    narrow: torch.dtype
    tape: Tape
    number: int = 0
    losses: list[str] = field(default_factory=list)
    """What the branch adds to the loss, by name."""

    def __post_init__(self, context: Context) -> None:
        self.keys = [(name, layer) for name, layers in context.shared.items() for layer in layers]
        self.first_layer = None if context.first_value is None else context.first_value[0]
        # What is kept for the backward pass holds no tensor that has a graph: it would hold this half in turn.
        bare = replace(context, shared={}, first_value=None, losses={})
        self.branch = replace(self.branch, context=bare)

    def shared(self, context: Context) -> list[Tensor | None]:
        """The tensors of `context` that the branch may read: the first value, if there is one, and the others."""
        first_value = None if context.first_value is None else context.first_value[1]
        return [first_value, *(context.shared[name][layer] for name, layer in self.keys)]

    def compute(
        self, x1: Tensor, shared: Sequence[Tensor | None], parameters: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The branch of norm(x1); and the first value, if this branch wrote it, and the losses.

        Args:
            shared: what the branch may read.
            parameters: to be used in place of the modules' own.
        """
        base = self.branch.context
        assert base is not None, "made in __post_init__"
        context = replace(base, shared={}, losses={})
        for (name, layer), value in zip(self.keys, shared[1:], strict=True):
            assert value is not None, "only the first value may be missing"
            context.shared.setdefault(name, {})[layer] = value
        if self.first_layer is not None and shared[0] is not None:
            context.first_value = (self.first_layer, shared[0])
        before = context.first_value
        arguments = (replace(self.branch, context=context), x1, self.narrow)
        f = self.modules(*arguments) if parameters is None else functional_call(self.modules, parameters, arguments)
        self.losses = list(context.losses)
        written = None if context.first_value is before or context.first_value is None else context.first_value[1]
        return f, [written, *context.losses.values()]


class _Sum(torch.autograd.Function):
    """The sum of the last pair, the only one that is kept."""

    @staticmethod
    def forward(ctx: Any, x0: Tensor, x1: Tensor, tape: Tape) -> Tensor:
        ctx.tape = tape
        ctx.save_for_backward(x0, x1)
        return x0 + x1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x0, x1 = ctx.saved_tensors
        ctx.tape.place, ctx.tape.here = ctx.tape.length, (x0.detach(), x1.detach())
        return gradients[0], gradients[0], None


class _Coupling(torch.autograd.Function):
    """x0 + branch(norm(x1)), the first value and the losses of the branch; keeps neither x0 nor x1."""

    @staticmethod
    def forward(ctx: Any, half: _Half, x0: Tensor, x1: Tensor, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
        shared = inputs[: 1 + len(half.keys)]
        ctx.half, ctx.conditions = half, _Conditions(x1.device)
        ctx.save_for_backward(*shared)
        ctx.set_materialize_grads(False)
        with ctx.conditions.autocast():
            f, others = half.compute(x1, shared)
        y = x0 + f
        half.tape.length += 1
        half.number = half.tape.length
        return y, *others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        half: _Half = ctx.half
        x1 = _leaf(half.tape.after(half.number)[0])
        shared = [None if x is None else _leaf(x) for x in ctx.saved_tensors]
        # Leaves of their own: the parameters' hooks shall see the gradients once, when autograd gets them from here.
        parameters = {name: _leaf(p, p.requires_grad) for name, p in half.modules.named_parameters()}
        with torch.enable_grad(), ctx.conditions.again():
            f, others = half.compute(x1, shared, parameters)
        half.tape.invert(half.number, f.detach())
        leaves = [x1, *shared, *parameters.values()]
        return None, gradients[0], *_differentiate([f, *others], gradients, leaves)


def _leaf(x: Tensor, differentiable: bool = True) -> Tensor:
    return x.detach().requires_grad_(differentiable)


def _differentiate(
    outputs: list[Tensor | None], gradients: tuple[Tensor | None, ...], leaves: list[Tensor | None]
) -> list[Tensor | None]:
    """The gradient of each leaf; None for one that has or needs none."""
    ends = [
        (output, gradient.to(output.dtype))
        for output, gradient in zip(outputs, gradients, strict=True)
        if output is not None and gradient is not None and output.requires_grad
    ]
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    found: dict[int, Tensor | None] = {}
    if ends:
        values = torch.autograd.grad(
            [output for output, _ in ends], wanted, [gradient for _, gradient in ends], allow_unused=True
        )
        found = dict(zip(map(id, wanted), values, strict=True))
    return [found.get(id(leaf)) for leaf in leaves]


class _Conditions:
    """What a branch was computed under, beside its inputs: the random generators and autocast."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.random = _random_states(device)
        kind = device.type
        self.half = torch.get_autocast_dtype(kind) if _autocast_is_on(kind) else None

    def autocast(self) -> AbstractContextManager[Any]:
        """The same autocast, which keeps no casts: those made without gradients would be found by other layers."""
        kind = self.device.type
        if not torch.amp.is_autocast_available(kind):
            return nullcontext()
        return torch.autocast(kind, self.half, enabled=self.half is not None, cache_enabled=False)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Compute under the same conditions inside the block, and leave the generators as they were before it."""
        now = _random_states(self.device)
        _set_random_states(self.device, self.random)
        try:
            with self.autocast():
                yield
        finally:
            _set_random_states(self.device, now)


def _autocast_is_on(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _random_states(device: torch.device) -> list[Tensor]:
    """The state of the CPU's generator and, if it is another, of the device's."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    return states


def _set_random_states(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states[1])
