"""Cross entropy of a large vocabulary without ever holding all logits."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -100
"""Targets with this value carry no loss, as everywhere in transformers."""
_CHUNK_LOGITS = 1 << 22


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient is made together with the loss, chunk by chunk of tokens, while the chunk's logits are at hand."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
        accumulate = torch.promote_types(weight.dtype, torch.float32)
        exact = _in_float16(hidden)
        narrow = accumulate if exact else hidden.dtype
        count = (targets != IGNORE).sum().clamp(min=1)
        cross_entropy, squares = (hidden.new_zeros((), dtype=accumulate) for _ in range(2))
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        hidden_gradient = torch.empty_like(hidden, dtype=narrow) if need_hidden else None
        weight_gradient = torch.zeros_like(weight, dtype=accumulate) if need_weight else None
        matrix = weight.to(hidden.dtype)
        size = max(1, _CHUNK_LOGITS // weight.shape[0])
        for start in range(0, hidden.shape[0], size):
            part = slice(start, start + size)
            chosen = targets[part]
            counted = chosen != IGNORE
            index = chosen.clamp(min=0)[:, None]
            logits = (hidden[part] @ matrix.T).to(accumulate)  # n V
            log_sum = logits.logsumexp(-1, keepdim=True)
            cross_entropy += ((log_sum - logits.gather(1, index))[:, 0] * counted).sum()
            squares += (log_sum[:, 0].square() * counted).sum()
            if not (need_hidden or need_weight):
                continue
            gradient = logits.sub_(log_sum).exp_()
            if z_loss:
                gradient.mul_(1 + 2 * z_loss * log_sum)
            gradient.scatter_add_(1, index, -torch.ones_like(gradient[:, :1]))
            gradient.mul_((counted.to(accumulate) / count)[:, None])
            gradient = gradient.to(narrow)
            with torch.autocast(hidden.device.type, enabled=False) if exact else nullcontext():
                if hidden_gradient is not None:
                    torch.mm(gradient, matrix.to(narrow), out=hidden_gradient[part])
                if weight_gradient is not None:
                    weight_gradient += gradient.T @ hidden[part].to(narrow)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.dtypes = hidden.dtype, weight.dtype
        cross_entropy /= count
        ctx.mark_non_differentiable(cross_entropy)
        return cross_entropy + z_loss * squares / count, cross_entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = outputs[0]
        return (
            None if hidden_gradient is None else (hidden_gradient * scale.to(hidden_gradient.dtype)).to(ctx.dtypes[0]),
            None if weight_gradient is None else (weight_gradient * scale).to(ctx.dtypes[1]),
            None,
            None,
        )


def _in_float16(hidden: Tensor) -> bool:
    """Whether products are rounded to float16, in which one word's share of a mean over many tokens is zero."""
    kind = hidden.device.type
    automatic = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.float16 in (hidden.dtype, torch.get_autocast_dtype(kind) if automatic else hidden.dtype)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mean cross entropy, in nats, of logits hidden · weightᵀ against targets, in float32 or wider.

    Memory is one chunk of about four million logits, whatever the number of tokens; gradients equal those of
    ``cross_entropy(hidden @ weight.T, targets)``.

    Args:
        hidden: [N, D].
        weight: [V, D].
        targets: [N] integers; -100 carries no loss. The mean is over the others (0 when there are none).
        z_loss: weight of the mean of log(Σ exp logits)² (Chowdhery et al. 2022, arXiv:2204.02311, section 5).

    Returns:
        The objective, cross entropy + z_loss · mean log²; and the cross entropy alone, without gradient.
    """
    objective, cross_entropy = _LinearCrossEntropy.apply(hidden, weight, targets, z_loss)
    return objective, cross_entropy


def language_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, others: dict[str, Tensor] | None, z_loss: float
) -> tuple[Tensor, dict[str, Tensor] | None]:
    """What a language model minimises, and in training its parts; elsewhere it is the cross entropy alone.

    Args:
        hidden: [B, T, D].
        weight: [V, D], of the head.
        targets: [B, T]; -100 carries no loss.
        others: the weighted losses of the blocks, which a model in training has (it may have none); None elsewhere.
        z_loss: as in `linear_cross_entropy`, in training.
    """
    z_loss = 0.0 if others is None else z_loss
    loss, cross_entropy = linear_cross_entropy(hidden.flatten(0, 1), weight, targets.flatten(), z_loss=z_loss)
    if others is None:
        return loss, None
    parts = {"cross_entropy": cross_entropy, **others}
    if z_loss:
        parts["z_loss"] = loss.detach() - cross_entropy
    return sum(others.values(), loss), parts
