"""Which tokens are hidden, as a pure function of (seed, step), and what stands in their places.

As in BERT (Devlin et al. 2018, arXiv:1810.04805, section 3.1), a row hides round(rate · n) of its n tokens, one at
least, and other ones whenever it is read again. Padding and special tokens, such as the ends of texts, are never
hidden, as BERT never hides [CLS] and [SEP]; they do not count among the n either.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from paribus.nn.loss import IGNORE

Scheme = Literal["bert", "all_mask"]
_SHARES: dict[str, tuple[float, float]] = {"bert": (0.8, 0.1), "all_mask": (1.0, 0.0)}
"""What part of the hidden tokens becomes the mask token, and what part a random token; the rest is left as it is."""


@dataclass(frozen=True)
class Masking:
    """How tokens are hidden.

    Raises:
        ValueError: a rate that hides nothing or everything.
    """

    rate: float
    """The share of hidden tokens."""
    scheme: Scheme
    """bert: 80 % become the mask token, 10 % a token drawn evenly from all, 10 % stay; all_mask: all become the mask
    token."""

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"objective: mask_rate is {self.rate}; more than 0 and less than 1 is needed")

    def __call__(
        self, tokens: Tensor, may_hide: Tensor, *, mask_token: int, vocab_size: int, seed: int, step: int
    ) -> tuple[Tensor, Tensor]:
        """Hide tokens of the whole batch number `step`.

        Args:
            tokens: int64 [B, T].
            may_hide: bool [B, T], which of them are neither padding nor special.
            vocab_size: random tokens are smaller.

        Returns:
            What the model reads [B, T], and the labels [B, T]: the true token where one is hidden, else -100.
        """
        order, kind, drawn = (
            torch.from_numpy(draw(f"{seed} masking {step} {part}".encode(), tokens.shape)).to(tokens.device)
            for part in ("order", "kind", "token")
        )
        hidden = chosen(order, may_hide, self.rate)
        masked, random = _SHARES[self.scheme]
        share = kind.double() / 2**63
        inputs = tokens.masked_fill(hidden & (share < masked), mask_token)
        inputs = torch.where(hidden & (share >= masked) & (share < masked + random), drawn % vocab_size, inputs)
        return inputs, tokens.masked_fill(~hidden, IGNORE)


def chosen(order: Tensor, may_hide: Tensor, rate: float) -> Tensor:
    """The round(rate · n) tokens, one at least, that are lowest in `order` among the n of each row that may be hidden.

    Args:
        order: int64 [B, T], not negative.
        may_hide: bool [B, T]; a row without any hides none.

    Returns:
        bool [B, T].
    """
    candidates = may_hide.sum(1)
    count = (rate * candidates.double()).round().long().clamp(min=1).minimum(candidates)
    place = order.masked_fill(~may_hide, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True).argsort(dim=1)
    return (place < count[:, None]) & may_hide


def draw(key: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Random int64 of `shape`, 0 to 2^63 - 1, that the key decides, whatever the version of numpy."""
    philox = np.random.Philox(key=int.from_bytes(hashlib.sha256(key).digest()[:16], "little"))
    numbers: np.ndarray = (philox.random_raw(int(np.prod(shape))) >> np.uint64(1)).astype(np.int64)
    return numbers.reshape(shape)
