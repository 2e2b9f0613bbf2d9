"""Lower bounds of forget gates that rise with depth, learned by all layers together."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .mixer import Context, Placement, SharedPart


class LowerBound(SharedPart):
    """l[i] = Σ_{0 < j ≤ i} softmax(P)[j], the softmax over layers (Qin et al. 2023, arXiv:2311.04823, section 3.2).

    Each layer owns its row of P, which it shares with the others through `Context.shared`; the first layer's bound is
    0. A part used alone is the first layer of a model of one layer.

    Args:
        size: how many gates have a bound of their own.
    """

    def __init__(self, placement: Placement, size: int) -> None:
        super().__init__()
        self.placement = placement
        self.shared_name = f"lower_bound/{size}"  # rows of one length only can be normalised together
        self.weight = nn.Parameter(torch.empty(size))

    def share(self) -> Tensor:
        """This layer's row of P, [size]; a copy, as the weight itself may not stay whole after this call."""
        return self.weight.clone()

    def forward(self, context: Context | None) -> Tensor:
        """The bounds of this layer, [size], from 0 to 1, in float32 or wider."""
        layer = self.placement.layer
        rows = {layer: self.weight} if context is None else context.shared[self.shared_name]
        layers = sorted(rows)
        P = torch.stack([rows[index] for index in layers])
        shares = P.to(torch.promote_types(P.dtype, torch.float32)).softmax(0)
        return shares[1 : layers.index(layer) + 1].sum(0)

    def reset_parameters(self) -> None:
        """P one: bounds grow evenly, layer / number of layers."""
        nn.init.ones_(self.weight)


def bounded_log_decay(logits: Tensor, bound: Tensor) -> Tensor:
    """log a for a = l + (1 - l) sigmoid(z), exact for every logit z and every bound l in [0, 1).

    Above a half it is taken from 1 - a, below it from the logarithms of the two summands: each keeps its digits there.
    """
    forgotten = (1 - bound) * torch.sigmoid(-logits)
    weak, bounded = forgotten < 0.5, bound > 0
    log_sigmoid = functional.logsigmoid(logits)
    log_bound, log_rest = torch.where(bounded, bound, 1).log(), torch.log1p(-bound)
    strong = torch.where(bounded, torch.logaddexp(log_bound, log_rest + log_sigmoid), log_sigmoid)
    return torch.where(weak, torch.log1p(-torch.where(weak, forgotten, 0)), strong)
