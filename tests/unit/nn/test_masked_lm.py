"""The masked language model: its loss and gradients against a written-out cross entropy over hidden places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.evaluation.cost import training_flops
from paribus.nn.initialization import initialize
from paribus.nn.loss import IGNORE
from paribus.nn.model_settings import read_model_config
from paribus.nn.tasks.masked_lm import ParibusForMaskedLM

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "factors": {"embedding": {"rank": 5}},
    "tied factors": {"embedding": {"rank": 5}, "tie_word_embeddings": True},
}
V, B, T = 300, 3, 9


def model(mixer: str = "attention", **settings: Any) -> ParibusForMaskedLM:
    block = {"mixer": {"name": mixer}, "channel": {"name": "glu"}}
    sizes = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 16}
    found = ParibusForMaskedLM(
        read_model_config(
            {**sizes, "causal": False, "task": {"name": "masked_lm"}, "blocks": {"main": block}, **settings}
        )
    )
    initialize(found, seed=0)
    torch.nn.init.normal_(found.head.weight, std=0.5)  # so that tokens are not all alike
    return found.double()


def batch() -> tuple[Tensor, Tensor]:
    """Ids, and labels at one place, at several, at none."""
    ids, labels = torch.randint(V, (B, T)), torch.full((B, T), IGNORE)
    labels[0, 4] = 7
    labels[1, [0, 3, 8]] = torch.tensor([0, 299, 253])
    return ids, labels


def written_out(logits: Tensor, labels: Tensor) -> list[Tensor]:
    """log Σ exp logits - logits[label], of every place with a label."""
    return [
        logits[b, t].exp().sum().log() - logits[b, t, labels[b, t]]
        for b in range(len(labels))
        for t in range(labels.shape[1])
        if labels[b, t] != IGNORE
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_loss_and_gradients(kind: str, z_loss: float) -> None:
    one, (ids, labels) = model(**KINDS[kind]).train(), batch()
    logits = one(input_ids=ids).logits
    places = labels != IGNORE
    cross_entropy = torch.stack(written_out(logits, labels)).mean()
    expected = cross_entropy + z_loss * logits[places].logsumexp(-1).square().mean()
    names, parameters = zip(*one.named_parameters(), strict=True)
    gradients = torch.autograd.grad(expected, parameters)
    output = one(input_ids=ids, labels=labels, return_logits=False, z_loss=z_loss)
    assert output.logits is None
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.losses["cross_entropy"], cross_entropy.detach())
    for name, found, right in zip(names, torch.autograd.grad(output.loss, parameters), gradients, strict=True):
        torch.testing.assert_close(found, right, msg=name)
    if "factors" in kind and "tied" in kind:
        assert one.head.weight is one.model.embedding.table.weight and one.head.weight.shape == (V, 5)


def test_only_hidden_places_cost_a_prediction() -> None:
    """Logits, and gradients of what they are the product of: three products of D x V for each place with a label."""
    one, (ids, labels) = model().train(), batch()
    flops = [
        training_flops(
            one, {"input_ids": ids[row : row + 1], "labels": labels[row : row + 1]}, {"return_logits": False}
        )
        for row in range(B)
    ]
    assert (flops[0] - flops[2], flops[1] - flops[2]) == (3 * 2 * 16 * V, 3 * 3 * 2 * 16 * V)


def test_without_any_target_the_loss_is_zero_and_so_are_gradients() -> None:
    one, (ids, labels) = model().train(), batch()
    loss = one(input_ids=ids[2:], labels=labels[2:], return_logits=False).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in one.parameters())


def test_evaluation_returns_the_mean_and_all_logits() -> None:
    one, (ids, labels) = model().eval(), batch()
    output = one(input_ids=ids, labels=labels, z_loss=0.1)
    assert output.losses is None and output.logits.shape == (B, T, V)
    torch.testing.assert_close(output.loss, torch.stack(written_out(output.logits, labels)).mean())


@pytest.mark.parametrize("mixer", ["attention", "gla", "tnn", "mlp_mixer"])
def test_padding_and_packing_change_nothing_for_the_others(mixer: str) -> None:
    """Documents of 5 and 4 tokens: alone, padded at either side, and in one row; losses add up by their targets."""
    one, (ids, labels) = model(mixer).eval(), batch()
    first, second = slice(0, 5), slice(5, 9)
    alone = torch.cat([one(input_ids=ids[1:2, part]).logits for part in (first, second)], 1)
    packed = torch.tensor([[1] * 5 + [2] * 4])
    torch.testing.assert_close(one(input_ids=ids[1:2], attention_mask=packed).logits, alone)
    for mask in (packed == 1, packed == 2):
        shown = mask.long()
        found = one(input_ids=ids[1:2].masked_fill(~mask, 254), attention_mask=shown).logits
        torch.testing.assert_close(found[mask], alone[mask])
    losses = [one(input_ids=ids[1:2, part], labels=labels[1:2, part]).loss for part in (first, second)]
    together = one(input_ids=ids[1:2], labels=labels[1:2], attention_mask=packed).loss
    torch.testing.assert_close(together, (2 * losses[0] + losses[1]) / 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": {"name": "masked_lm", "mask_token": -1}}, "mask_token is -1; the number of a token is needed"),
        ({"task": {"name": "masked_lm", "mask_token": V}}, f"mask_token is {V}; vocab_size is {V}, and a smaller"),
        ({"causal": True}, "causal is true; the task masked_lm needs false"),
        ({"image": {"size": 8}}, "image is given; the task masked_lm reads text and needs null"),
    ],
)
def test_mistakes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**settings)
