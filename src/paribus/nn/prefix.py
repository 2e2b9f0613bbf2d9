"""Prefix LM: the first tokens of each segment see one another both ways, all others what is before them.

    y[t] = mixer_both(x[1 … P])[t], t ≤ P        y[t] = mixer_causal(x)[t], t > P

Both readings are of the same parameters, whatever the mixer. For attention that is the causal mask with the square of
the prefix filled in (Raffel et al. 2019, arXiv:1910.10683, section 3.2.1). A recurrence reads the prefix from its end
as well, and what it carries on is the causal state after it. Token shifts, and channel mixers that look at neighbours,
do the same. Where a mixer reads a prefix, it computes everything twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call

from .channel import Channel
from .mixer import Context, Mixer, Placement
from .position_bias import RelativeBias
from .segments import resolve
from .state import State

_INSIDE = ("inside",)


@dataclass(frozen=True)
class Prefixed:
    """A mixer whose prefix is read both ways; without a prefix in the context it is the mixer alone."""

    mixer: Mixer
    twin: Mixer
    """The same with causal=False, without memory of its own."""

    def __call__(
        self, x: Tensor, *, segments: Tensor | None, state: State, keep_state: bool, context: Context | None
    ) -> tuple[Tensor, State]:
        """[B, T, D] -> [B, T, D] and the state, as a mixer.

        Raises:
            ValueError: a token of the prefix follows others of it that an earlier call has seen.
        """
        y, after = self.mixer(x, segments=segments, state=state, keep_state=keep_state, context=context)
        if context is None or context.prefix_length is None:
            return y, after
        inside = self._inside(x, segments, state, context)
        if inside is None:
            return y, after
        marks = inside.long() if segments is None else segments * inside
        # Its tables are its own, as positions behind the prefix are not told; its losses are those of the mixer.
        own = replace(context, tables=context.prefix_tables, losses={})
        both: Tensor = functional_call(self.twin, self._values(), (x,), {"segments": marks, "context": own})[0]
        if (
            own.first_value is not None
            and context.first_value is not None
            and own.first_value is not context.first_value
        ):
            layer, value = context.first_value
            context.first_value = (layer, torch.where(inside[..., None, None], own.first_value[1], value))
        return torch.where(inside[..., None], both, y), after

    def _inside(self, x: Tensor, segments: Tensor | None, state: State, context: Context) -> Tensor | None:
        """[B, T], the tokens of a prefix; None if there are none. All layers ask the same, so it is found once."""
        if _INSIDE not in context.prefix_tables:
            assert context.prefix_length is not None, "asked with a prefix only"
            found = tokens_inside(x, segments, state, context.prefix_length)
            context.prefix_tables[_INSIDE] = () if found is None else (found,)
        kept = context.prefix_tables[_INSIDE]
        return kept[0] if kept else None

    def _values(self) -> dict[str, Tensor]:
        """The mixer's parameters and buffers as they are now, which may be shares gathered for this layer."""
        values: dict[str, Tensor] = {}
        values.update(self.mixer.named_parameters(remove_duplicate=False))
        values.update(self.mixer.named_buffers(remove_duplicate=False))
        if values.keys() != self.twin.state_dict(keep_vars=True).keys():
            raise ValueError(
                f"{type(self.mixer).__name__}: its parameters are called {', '.join(values)}; with a prefix they "
                "must be as the model made them (merge adapters first)"
            )
        return values


def tokens_inside(x: Tensor, segments: Tensor | None, state: State, prefix_length: Tensor) -> Tensor | None:
    """Which tokens are among the first `prefix_length` [B] of their segment: [B, T].

    Args:
        state: of a mixer; a prefix lies in one call, so that with a past there is usually none, and None is returned.

    Raises:
        ValueError: a token of a prefix that began in the past.
    """
    rows = resolve(x, segments, None if state is None else state[0])
    inside = rows.positions < prefix_length[:, None]
    if rows.valid is not None:
        inside = inside & rows.valid
    if state is None:
        return inside
    if not bool(inside.any()):
        return None
    late = inside & (rows.positions != resolve(x, segments, None).positions)
    if bool(late.any()):
        row, column = late.nonzero()[0].tolist()
        raise ValueError(
            f"prefix_length is {int(prefix_length[row])}, and {int(rows.positions[row, column])} tokens of that prefix "
            "are in the cache already; the whole prefix must be in one call"
        )
    return inside


def read_prefix(prefix_length: Tensor, rows: int) -> Tensor | None:
    """The lengths [B], checked; None if all are 0.

    Raises:
        ValueError: another shape, numbers that are not whole, or a negative one.
    """
    if prefix_length.shape != (rows,) or prefix_length.is_floating_point():
        raise ValueError(
            f"prefix_length has shape {list(prefix_length.shape)} and is {prefix_length.dtype}; "
            f"a whole number for each of {rows} rows is needed"
        )
    if bool((prefix_length < 0).any()):
        raise ValueError(f"prefix_length is {int(prefix_length.min())}; 0 or more is needed")
    return prefix_length if bool((prefix_length > 0).any()) else None


def make_twin(mixer: Mixer, make: Callable[[Placement], Mixer], where: str) -> Mixer | None:
    """`mixer` with causal=False and without memory; None for one that looks at each token alone, and needs no other.

    Args:
        make: makes the mixer at a placement.

    Raises:
        ValueError: parameters that are others, or mean something else, when it reads both ways.
    """
    if isinstance(mixer, Channel):
        return None
    with torch.device("meta"):
        twin = make(replace(mixer.placement, causal=False))
    shapes, others = ({name: list(value.shape) for name, value in m.state_dict().items()} for m in (mixer, twin))
    for name in (*shapes, *others):
        if shapes.get(name) != others.get(name):
            raise ValueError(
                f"{where}: '{name}' has shape {shapes.get(name)} when it reads forward and {others.get(name)} when it "
                "reads both ways; a model with prefix true needs a mixer whose parameters are the same"
            )
    if any(isinstance(part, RelativeBias) for part in mixer.modules()):
        raise ValueError(
            f"{where}: position is 'relative_bias', whose buckets mean other distances when it reads both ways; "
            "a model with prefix true needs another position"
        )
    return twin
