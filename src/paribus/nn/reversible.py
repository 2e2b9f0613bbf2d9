"""A coupling of two streams, and its training in memory that does not grow with depth.

    (x0, x1) ↦ (x1, y),  y = x0 + f(norm(x1))          inverted: x0 = y − f(norm(x1))

`couple` with a `Tape` keeps no activation of a branch. The tape holds the last pair of streams; the backward pass,
which reaches the couplings from the last to the first, computes each branch again with gradients and subtracts it, and
so has the pair that the coupling before needs.

Everything that a branch reads is an input of an autograd function and everything that it writes an output: the streams,
its parameters, what `Context` shares. So autograd itself adds up what several layers contribute, parameters' hooks run,
and gradients arrive layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .mixer import Context
from .residual import Branch


@dataclass(eq=False)
class Tape:
    """The pair of streams after some coupling of one forward: after the last, and in the backward pass at each."""

    length: int = 0
    """How many couplings the forward pass has made."""
    last: tuple[Tensor, Tensor] | None = None
    """The pair after all of them; kept, so that a retained graph can be walked again."""
    place: int = 0
    here: tuple[Tensor, Tensor] | None = None
    """The pair after the first `place` couplings, on the way back."""

    def record(self, x1: Tensor, y: Tensor) -> int:
        """Note the pair after one coupling more, and say which it is, counted from 1."""
        self.length += 1
        self.last = x1.detach(), y.detach()
        return self.length

    def after(self, number: int) -> tuple[Tensor, Tensor]:
        """The pair after coupling `number`, the last one or the one before that which was just inverted.

        Raises:
            ValueError: the backward pass begins elsewhere.
        """
        found = self.last if number == self.length else self.here
        if found is None or number not in (self.length, self.place):
            raise ValueError(
                "a gradient enters a reversible model between its blocks, and no pair of streams is kept there; "
                "take hidden states with output_hidden_states=True, which keeps all of them"
            )
        return found

    def rewind(self, number: int, x0: Tensor, x1: Tensor) -> None:
        """Note the pair before coupling `number`."""
        self.place, self.here = number - 1, (x0, x1)


class Pair(NamedTuple):
    """Two streams [B, T, D], and the tape if the backward pass shall invert."""

    first: Tensor
    second: Tensor
    tape: Tape | None


def couple(pair: Pair, norm: nn.Module, branch: Branch) -> Pair:
    """(x0, x1) -> (x1, x0 + branch(norm(x1)))."""
    if pair.tape is None:
        return Pair(pair.second, pair.first + _run(norm, branch, pair.second), None)
    return Pair(pair.second, _recorded(pair, pair.tape, norm, branch), pair.tape)


def _run(norm: nn.Module, branch: Branch, x: Tensor) -> Tensor:
    """The branch in its own precision, as the streams may be wider than the model."""
    x = norm(x)
    narrow = next((p.dtype for p in branch.part.parameters() if p.is_floating_point()), x.dtype)
    return branch(x.to(narrow))


@torch.compiler.disable
def _recorded(pair: Pair, tape: Tape, norm: nn.Module, branch: Branch) -> Tensor:
    """The new stream; it has no graph of its own but the way to invert it."""
    context = branch.context or Context()
    shared = [(name, layer) for name, layers in context.shared.items() for layer in layers]
    half = _Half(norm, branch, tape, shared, None if context.first_value is None else context.first_value[0])
    inputs = [None if context.first_value is None else context.first_value[1]]
    inputs += [context.shared[name][layer] for name, layer in shared]
    y, first_value, *losses = _Coupling.apply(half, pair.first, pair.second, *inputs, *half.parameters)
    if first_value is not None:
        context.first_value = (branch.part.placement.layer, first_value)
    for name, value in zip(half.losses, losses, strict=True):
        context.add_loss(name, value)
    new: Tensor = y
    return new


@dataclass(eq=False)
class _Half:
    """One branch with all that it takes to compute it again; no tensor that has a graph, which would be a cycle."""

    norm: nn.Module
    branch: Branch
    tape: Tape
    shared: list[tuple[str, int]]
    """Name and layer of what `Context.shared` held."""
    first_layer: int | None
    """The layer of `Context.first_value` before this branch."""
    number: int = 0
    losses: list[str] = field(default_factory=list)
    """What this branch adds to the loss, by name."""

    def __post_init__(self) -> None:
        context = replace(self.branch.context or Context(), shared={}, first_value=None, losses={})
        self.branch = replace(self.branch, context=context)
        parameters = dict.fromkeys([*self.norm.parameters(), *self.branch.part.parameters()])
        self.parameters = list(parameters)

    def compute(
        self, x1: Tensor, first_value: Tensor | None, shared: list[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The branch of norm(x1); and the first value, if this branch wrote it, and the losses."""
        base = self.branch.context
        assert base is not None, "made in __post_init__"
        context = replace(base, shared={}, losses={})
        for (name, layer), value in zip(self.shared, shared, strict=True):
            context.shared.setdefault(name, {})[layer] = value
        if self.first_layer is not None and first_value is not None:
            context.first_value = (self.first_layer, first_value)
        before = context.first_value
        f = _run(self.norm, replace(self.branch, context=context), x1)
        self.losses = list(context.losses)
        written = None if context.first_value is before or context.first_value is None else context.first_value[1]
        return f, [written, *context.losses.values()]


class _Coupling(torch.autograd.Function):
    """x0 + branch(norm(x1)), the first value and the losses of the branch; keeps neither x0 nor x1."""

    @staticmethod
    def forward(ctx: Any, half: _Half, x0: Tensor, x1: Tensor, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
        first_value, *shared = inputs[: 1 + len(half.shared)]
        given = [x for x in shared if x is not None]  # all of them; only the first value may be missing
        ctx.half, ctx.conditions = half, _Conditions(x1.device)
        ctx.save_for_backward(first_value, *shared)
        ctx.set_materialize_grads(False)
        with ctx.conditions.autocast():
            f, others = half.compute(x1, first_value, given)
        y = x0 + f
        half.number = half.tape.record(x1, y)
        return y, *others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        half: _Half = ctx.half
        x1, y = half.tape.after(half.number)
        x1 = _leaf(x1)
        first_value = None if ctx.saved_tensors[0] is None else _leaf(ctx.saved_tensors[0])
        shared = [_leaf(x) for x in ctx.saved_tensors[1:]]
        with torch.enable_grad(), ctx.conditions.again():
            f, others = half.compute(x1, first_value, shared)
        half.tape.rewind(half.number, y - f.detach(), x1.detach())
        leaves = [x1, first_value, *shared, *half.parameters]
        return None, gradients[0], *_differentiate([f, *others], gradients, leaves)


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


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
