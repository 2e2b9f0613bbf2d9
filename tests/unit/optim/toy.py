"""The smallest model with parameters of every role and shape, and a few steps of training it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from paribus.optim.optimizer import Optimizer, make_optimizer, set_learning_rate


class Mixer(nn.Module):
    """A linear map, a convolution, a stack of matrices, a scalar, and a gate that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.output = nn.Linear(8, 6, bias=False)
        self.convolution = nn.Parameter(torch.randn(8, 1, 3) * 0.3)
        self.stack = nn.Parameter(torch.randn(2, 4, 4) * 0.3)
        self.skip = nn.Parameter(torch.ones(()))
        self.log_rate = nn.Parameter(torch.ones(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = functional.pad(self.up(x).transpose(1, 2), (2, 0))
        h = functional.conv1d(h, self.convolution, groups=8).transpose(1, 2)
        h = torch.einsum("bthk,hkl->bthl", h.unflatten(-1, (2, 4)), self.stack).flatten(-2)
        return x * self.skip + self.output(h.tanh())


class Toy(nn.Module):
    """Named as the parts of a language model are."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "embedding": nn.ModuleDict({"table": nn.Embedding(11, 6)}),
                "blocks": nn.ModuleList([nn.ModuleDict({"mixer": Mixer()})]),
                "norm": nn.LayerNorm(6),
            }
        )
        self.head = nn.Linear(6, 11, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.model["embedding"]["table"](ids)  # type: ignore[index]
        x = self.model["blocks"][0]["mixer"](x)  # type: ignore[index]
        return self.head(self.model["norm"](x))


def make(settings: Optimizer, seed: int = 0) -> tuple[Toy, torch.optim.Optimizer]:
    """A toy and its optimizer."""
    torch.manual_seed(seed)
    toy = Toy()
    return toy, make_optimizer(settings, toy)


def train(toy: Toy, optimizer: torch.optim.Optimizer, lr: float, steps: range) -> list[float]:
    """Train on one batch at a falling learning rate; the losses before each of the steps."""
    ids = torch.randint(0, 11, (4, 8), generator=torch.Generator().manual_seed(0))
    losses = []
    for step in steps:
        set_learning_rate(optimizer, lr * (1 - step / 100))
        loss = functional.cross_entropy(toy(ids).flatten(0, 1), (3 * ids.flatten() + 1) % 11)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
