"""Our models that see both sides beside BERT and ViT: the same function where that is claimed, and whole rows."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from paribus.benchmarks import two_directional
from paribus.benchmarks.two_directional import ATTENTIONS, beside_bert, beside_vit
from paribus.benchmarks.whole import Shape
from paribus.cli import main
from paribus.nn.backbone import parameter_count
from paribus.nn.loss import IGNORE

SHAPE = Shape(width=32, layers=2, inner=128)


def test_rows(tmp_path: Path) -> None:
    sizes = ["--lengths", "8", "--tokens", "16", "--width", "32", "--layers", "1", "--rounds", "2"]
    kinds = ["--vocabularies", "256", "300", "--image-sizes", "8", "--clock", "processor"]
    assert main(["bench", "two_directional", *sizes, *kinds, "--results", str(tmp_path)]) == 0
    with (tmp_path / "two_directional.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    cases = [("bert", "8", "256"), ("bert", "8", "300"), ("vit", "5", "")]
    assert [(row["peer"], row["length"], row["vocabulary"], row["attention"]) for row in found] == [
        (*case, attention) for case in cases for attention in ATTENTIONS
    ]
    assert [row["tokens_per_step"] for row in found] == ["16"] * 4 + ["15"] * 2
    assert all(float(row["ratio_to_peer"]) > 0 and row["clock"] == "processor" and row["torch"] for row in found)


def test_vit_has_our_function() -> None:
    contest = beside_vit(SHAPE, 8, 32)
    with torch.no_grad():
        mine = contest.mine(pixel_values=contest.inputs).logits
        for name, peer in contest.peers.items():
            assert peer.config._attn_implementation == name
            torch.testing.assert_close(peer(pixel_values=contest.inputs).logits, mine, atol=1e-5, rtol=1e-4)
    assert mine.std() > 0.01


def test_a_vit_of_another_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = two_directional.vit

    def broken(*arguments: object) -> nn.Module:
        model = whole(*arguments)
        nn.init.normal_(model.vit.layers[1].mlp.fc2.weight)
        return model

    monkeypatch.setattr(two_directional, "vit", broken)
    with pytest.raises(AssertionError, match="not close"):
        beside_vit(SHAPE, 8, 32)


def test_bert_differs_by_what_is_told() -> None:
    """Biases, the norm's among them; the embedding of one type; the head's map with its bias, norm and biases."""
    contest = beside_bert(SHAPE, 16, 300, 64)
    D, E, V, layers = 32, 128, 300, 2
    of_a_layer = 4 * D + E + D + 2 * D
    head = D * D + D + 2 * D + V
    for name, peer in contest.peers.items():
        assert peer.config._attn_implementation == name
        assert parameter_count(peer) - parameter_count(contest.mine) == layers * of_a_layer + D + D + head
    share = (contest.targets != IGNORE).double().mean()
    assert share == pytest.approx(0.15, abs=0.03)
    for model, loss in ((contest.mine, contest.mine_loss), *((p, contest.peer_loss) for p in contest.peers.values())):
        value = loss(model, contest.inputs, contest.targets)
        value.backward()
        assert 4 < value.item() < 8  # log 300 is 5.7
        unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert unused == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--vocabularies", "200"],
            "task masked_lm: mask_token is 253; vocab_size is 200, and a smaller number is needed",
        ),
        (["--image-sizes", "9", "--vocabularies", "256"], "patch_size is 4; a divisor of size 9 is needed"),
        (["--width", "30"], "width 30 is not divisible by num_heads 4"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--lengths", "8", "--tokens", "8", "--width", "32", "--layers", "1", "--rounds", "1"]
    assert main(["bench", "two_directional", *small, *arguments, "--results", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
