"""Masking token by token in plain Python, its shares over many tokens, and that nothing but seed and step decide it."""

from __future__ import annotations

import hashlib
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from paribus.data.masking import Masking, Scheme, chosen, draw
from paribus.nn.loss import IGNORE

MASK, VOCABULARY = 253, 256
SCHEMES = get_args(Scheme)
DRAWN = [
    2101447617529886953,
    3590726486564069301,
    8447905782272931539,
    5551145560233877730,
    979734363563895793,
    8357517004930935999,
]
"""Of `draw(b"key", (2, 3))`, as first computed: another version of numpy must draw the same."""


def rows(B: int, T: int) -> tuple[Tensor, Tensor]:
    """Random tokens, and which may be hidden: padding at both ends, and some special tokens inside."""
    tokens = torch.randint(200, (B, T))
    may_hide = torch.rand(B, T) < 0.9
    may_hide[0, : T // 2] = False
    may_hide[1, T // 3 :] = False
    return tokens, may_hide


def masked(rate: float, scheme: Scheme, B: int, T: int, seed: int = 0, step: int = 0) -> tuple[Tensor, ...]:
    tokens, may_hide = rows(B, T)
    inputs, labels = Masking(rate, scheme)(
        tokens, may_hide, mask_token=MASK, vocab_size=VOCABULARY, seed=seed, step=step
    )
    return tokens, may_hide, inputs, labels


def raw(key: str, size: int) -> list[int]:
    """Numbers of numpy's Philox generator, without their lowest bit."""
    digest = hashlib.sha256(key.encode()).digest()
    return [int(number) >> 1 for number in np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(size)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("T", [7, 33])
def test_token_by_token(scheme: Scheme, T: int) -> None:
    tokens, may_hide, inputs, labels = masked(0.3, scheme, 5, T, seed=3, step=11)
    order, kind, drawn = (raw(f"3 masking 11 {part}", 5 * T) for part in ("order", "kind", "token"))
    for b in range(5):
        candidates = [t for t in range(T) if may_hide[b, t]]
        ranked = sorted(candidates, key=lambda t: order[b * T + t])
        hidden = set(ranked[: max(1, round(0.3 * len(candidates)))])
        for t in range(T):
            expected, share = int(tokens[b, t]), kind[b * T + t] / 2**63
            if t in hidden and (scheme == "all_mask" or share < 0.8):
                expected = MASK
            elif t in hidden and share < 0.9:
                expected = drawn[b * T + t] % VOCABULARY
            assert inputs[b, t] == expected
            assert labels[b, t] == (tokens[b, t] if t in hidden else IGNORE)


@pytest.mark.parametrize(("scheme", "shares"), [("bert", (0.8, 0.1, 0.1)), ("all_mask", (1.0, 0.0, 0.0))])
def test_shares(scheme: Scheme, shares: tuple[float, ...]) -> None:
    tokens, may_hide, inputs, labels = masked(0.15, scheme, 200, 500)
    hidden = labels != IGNORE
    assert torch.equal(hidden.sum(1), (0.15 * may_hide.sum(1).double()).round().long())
    assert not (hidden & ~may_hide).any()
    assert torch.equal(labels[hidden], tokens[hidden])
    assert torch.equal(inputs[~hidden], tokens[~hidden])
    total = int(hidden.sum())
    as_mask, kept = (inputs == MASK)[hidden].sum(), (inputs == tokens)[hidden].sum()
    found = (int(as_mask) / total, 1 - int(as_mask + kept) / total, int(kept) / total)
    # Of the random tokens, 1 in 256 is the true one, and as many the mask token; four standard errors.
    assert found == pytest.approx(shares, abs=0.1 * 2 / 256 + 4 * (0.8 * 0.2 / total) ** 0.5)
    where = hidden.double()[2:].mean(0)  # every place of a whole row is as likely
    assert abs(where[:250].mean() - where[250:].mean()) < 0.01
    drawn = inputs[hidden & (inputs != MASK) & (inputs != tokens)]
    assert scheme == "all_mask" or (drawn.min() == 0 and drawn.max() == VOCABULARY - 1)


def test_seed_and_step_decide() -> None:
    torch.manual_seed(0)
    first = masked(0.15, "bert", 4, 64, seed=1, step=2)
    for seed, step, same in ((1, 2, True), (1, 3, False), (2, 2, False)):
        torch.manual_seed(0)
        again = masked(0.15, "bert", 4, 64, seed=seed, step=step)
        assert torch.equal(again[0], first[0])
        assert torch.equal(again[2], first[2]) == same
        assert torch.equal(again[3], first[3]) == same


def test_every_row_has_a_target_if_it_can() -> None:
    may_hide = torch.tensor([[True] * 3, [False, True, False], [False] * 3])
    assert chosen(torch.tensor([[2, 1, 3]] * 3), may_hide, 0.01).tolist() == [
        [False, True, False],
        [False, True, False],
        [False, False, False],
    ]


def test_drawn_numbers_stay_what_they_are() -> None:
    numbers = draw(b"key", (2, 3))
    assert numbers.dtype == np.int64 and (numbers >= 0).all()
    assert numbers.flatten().tolist() == DRAWN


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_that_hides_nothing_or_everything(rate: float) -> None:
    with pytest.raises(ValueError, match=r"objective: mask_rate is .*; more than 0 and less than 1 is needed"):
        Masking(rate, "bert")
