"""Training masked language models: the inputs of every step, learning, resuming, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paribus.cli import main
from paribus.data.masking import Masking
from paribus.evaluation.metrics import METRICS
from paribus.evaluation.ngram import ByteNGram
from paribus.nn.loss import IGNORE
from paribus.training.loop import train
from paribus.training.run import Run, with_values
from paribus.training.step import forward_and_backward
from paribus.training.task import make_task
from tests import small
from tests.unit.training.test_resume import assert_resumes
from tests.unit.training.test_step import trainer_of, uneven


def masked_run(text: Path, values: dict[str, Any] | None = None, **settings: Any) -> Run:
    task = {"model.task": {"name": "masked_lm"}, "model.causal": False}
    return with_values(small.run(text, **settings), {**task, **(values or {})})


def test_inputs_are_the_first_tokens_of_a_batch_masked_by_seed_and_step(text: Path, cache: Path) -> None:
    run = masked_run(text, {"objective.mask_rate": 0.3, "objective.scheme": "all_mask", "data.seed": 5})
    task = make_task(run)
    batch = task.batches(cache).batch(0)
    for step in (0, 7):
        found = task.inputs(batch, step)
        again = make_task(run).inputs(batch, step)
        inputs, labels = Masking(0.3, "all_mask")(
            batch.tokens[:, :-1],
            batch.tokens[:, :-1] != 255,
            mask_token=253,
            vocab_size=256,
            seed=5,
            step=step,
        )
        assert found.tensors["attention_mask"] is None
        for tensors in (found.tensors, again.tensors):
            assert torch.equal(tensors["input_ids"], inputs)
            assert torch.equal(tensors["labels"], labels)
        assert torch.equal(found.num_targets, (labels != IGNORE).sum(1))
    assert not torch.equal(task.inputs(batch, 0).tensors["labels"], labels)


def test_padding_and_ends_of_texts_are_never_hidden(text: Path) -> None:
    task, batch = make_task(masked_run(text, {"objective.mask_rate": 0.999})), uneven()
    batch.tokens[:] = 97
    batch.tokens[3, 2] = 255
    found = task.inputs(batch, 0)
    hidden = found.tensors["labels"] != IGNORE
    assert batch.segments is not None
    assert torch.equal(hidden, (batch.segments[:, :-1] != 0) & (batch.tokens[:, :-1] != 255))
    assert torch.equal(found.tensors["attention_mask"], batch.segments[:, :-1])
    assert found.num_targets.tolist() == [2, 4, 8, 7]


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_pieces_add_up_to_the_mean_over_all_targets(text: Path, cache: Path, tmp_path: Path, pieces: int) -> None:
    values = {"data.batch_size": 4, "accumulation": pieces, "z_loss": 0.01, "objective.mask_rate": 0.4}
    trainer = trainer_of(masked_run(text, values), tmp_path, cache)
    trainer.model.double()
    inputs = trainer.task.inputs(uneven(), 0)
    assert len(set(inputs.num_targets.tolist())) > 1
    losses = forward_and_backward(trainer, inputs)
    found = [parameter.grad.clone() for parameter in trainer.model.parameters()]
    trainer.model.zero_grad()
    labels = inputs.tensors["labels"]
    assert labels is not None
    logits = trainer.model(
        input_ids=inputs.tensors["input_ids"], attention_mask=inputs.tensors["attention_mask"]
    ).logits[labels != IGNORE]
    log_sum = logits.exp().sum(-1).log()
    right = logits.gather(1, labels[labels != IGNORE][:, None])[:, 0]
    (log_sum - right + 0.01 * log_sum.square()).mean().backward()
    assert float(losses["cross_entropy"]) == pytest.approx((log_sum - right).mean().item(), rel=1e-6)
    for gradient, parameter in zip(found, trainer.model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_it_learns_more_than_frequencies(text: Path, cache: Path, tmp_path: Path) -> None:
    values = {"optimizer.lr": 0.02, "data.batch_size": 8, "model.tie_word_embeddings": True}
    run = masked_run(text, values, steps=60, mixer="short_convolution")
    result = train(run, tmp_path / "run", cache)
    assert result["status"] == "finished" and result["metric"] == "masked_bits_per_byte"
    frequencies, neighbours = make_task(run).baselines((1, 2), 60, cache)
    assert (frequencies.name, neighbours.name) == ("byte frequencies", "both neighbours")
    test = result["scores"]["test"]
    assert test["masked_bits_per_byte"] < frequencies.score - 1
    assert neighbours.score < frequencies.score
    assert set(test) <= METRICS.keys()
    assert 1 < test["pseudo_perplexity"] < 20
    bits, num_bytes = (sum(document[place] for document in result["documents"]) for place in (1, 2))
    assert test["masked_bits_per_byte"] == pytest.approx(bits / num_bytes)
    assert num_bytes == result["details"]["hidden_bytes"] == result["details"]["hidden_tokens"]
    assert result["sample"].count("⟦") == result["sample"].count("⟧") > 0
    assert result["state_bytes"] == {}


def test_the_baseline_of_frequencies_is_a_unigram_of_hidden_bytes(text: Path, cache: Path) -> None:
    run = masked_run(text)
    task = make_task(run)
    read = task.batches(cache).consumed_bytes(20)
    documents = task.measure(cache).documents["test"]
    hidden = b"".join(bytes(h.document.tokens[h.hidden]) for h in documents)
    expected = ByteNGram(1, read[1:-1]).bits(np.frombuffer(hidden, dtype=np.uint8)) / len(hidden)
    assert next(task.baselines((), 20, cache)).score == pytest.approx(expected)


def words(folder: Path, **special: str) -> str:
    """A tokenizer of whole words."""
    vocabulary = {word: index for index, word in enumerate(["<end>", "<hide>", "?", *small.WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", **special).save_pretrained(folder)
    return str(folder)


def test_words_are_hidden_whole_and_judged_by_their_bytes(text: Path, cache: Path, tmp_path: Path) -> None:
    tokenizer = words(tmp_path / "words", mask_token="<hide>")
    result = train(
        masked_run(text, {"data.tokenizer": tokenizer, "model.task.mask_token": 1}, steps=2), tmp_path / "run", cache
    )
    assert result["status"] == "finished"
    assert 3 < result["details"]["hidden_bytes"] / result["details"]["hidden_tokens"] < 4.5  # a space and 3 letters


def test_a_tokenizer_without_a_mask_token_is_refused(text: Path, cache: Path, tmp_path: Path) -> None:
    run = masked_run(text, {"data.tokenizer": words(tmp_path / "words")})
    with pytest.raises(ValueError, match="words' has no mask token, which the task masked_lm needs"):
        train(run, tmp_path / "run", cache)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("scheme", ["bert", "all_mask"])
def test_resumed_with_the_same_bits(
    scheme: str, text: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"evaluation.points": 3, "objective.scheme": scheme, "model.blocks.main.dropout": 0.1, "accumulation": 2}
    assert assert_resumes(masked_run(text, values, steps=7), tmp_path, cache, monkeypatch)["status"] == "finished"


def test_the_scheme_is_no_part_of_the_judgement(text: Path, cache: Path) -> None:
    measures = [
        make_task(masked_run(text, {"objective.scheme": scheme, "objective.mask_rate": rate})).measure(cache)
        for scheme, rate in (("bert", 0.15), ("all_mask", 0.5))
    ]
    assert measures[0].documents_sha256 == measures[1].documents_sha256
    for one, other in zip(*(measure.documents["test"] for measure in measures), strict=True):
        assert (one.hidden == other.hidden).all() and one.hidden.any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective.mask_rate": 1.5}, "objective: mask_rate is 1.5; more than 0 and less than 1 is needed"),
        ({"objective.scheme": "brt"}, "objective of masked_lm: scheme is 'brt'; allowed: 'bert', 'all_mask'"),
        ({"objective.mask_rat": 0.1}, "objective of masked_lm: unknown key 'mask_rat'; did you mean 'mask_rate'?"),
        ({"model.task.mask_token": 7}, "model: task: mask_token is 7; that of the tokenizer 'bytes' is 253"),
        ({"model.task.mask_token": 256}, "task masked_lm: mask_token is 256; vocab_size is 256, and a smaller"),
        ({"model.causal": True}, "model: causal is true; the task masked_lm needs false"),
        ({"model.max_position_embeddings": 31}, "max_position_embeddings is 31; data: sequence_length is 32"),
        ({"model.vocab_size": 255}, "model: vocab_size is 255; the tokenizer 'bytes' has 256 tokens"),
    ],
)
def test_mistakes_are_one_line(
    values: dict[str, Any],
    message: str,
    text: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = masked_run(text).to_json()
    for path, value in values.items():
        here = settings
        for key in path.split(".")[:-1]:
            here = here[key]
        here[path.rpartition(".")[2]] = value
    (tmp_path / "run.json").write_text(json.dumps(settings))
    monkeypatch.setenv("PARIBUS_CACHE", str(cache))
    assert main(["run", str(tmp_path / "run.json"), "--root", str(tmp_path / "runs")]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "runs").exists()
