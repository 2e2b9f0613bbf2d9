"""What takes minutes: sequences far beyond a chunk, and the gallery's arms trained to the end of their budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paribus.data.batches import TextBatches, held_out
from paribus.data.cache import cache_folder
from paribus.evaluation.bits_per_byte import bits_per_byte
from paribus.evaluation.ngram import ngram_document_bits
from paribus.nn.component import MIXERS, make_mixer
from paribus.nn.initialization import initialize
from paribus.nn.mixer import Placement
from paribus.studies.equalizers import equalize
from paribus.studies.study import read_study, seeded
from paribus.training.loop import train

pytestmark = pytest.mark.long
STUDY = Path(__file__).parents[2] / "studies" / "0001_token_mixers" / "study.py"
LENGTH = 4096
CLEARLY = 0.1
"""Bits per byte."""


@pytest.mark.parametrize("name", MIXERS.names())
@torch.no_grad()
def test_a_long_sequence_in_pieces(name: str) -> None:
    mixer = make_mixer({"name": name}, Placement(width=32, max_length=LENGTH))
    initialize(mixer, seed=0)
    x = torch.randn(1, LENGTH, 32)
    whole, _ = mixer(x)
    pieces, state = [], None
    for piece in x.split([1000, 1, 2047, LENGTH - 3048], dim=1):
        y, state = mixer(piece, state=state, keep_state=True)
        pieces.append(y)
    assert whole.isfinite().all()
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("arm", read_study(STUDY).arms())
def test_an_arm_of_the_gallery_beats_the_trigram(arm: str, tmp_path: Path) -> None:
    study = read_study(STUDY)
    run = seeded(equalize(study).runs[arm], 7, f"endurance-{arm}")
    result = train(run, tmp_path / "run", cache_folder())
    settings = run.evaluation
    documents = held_out(run.data, "test", cache_folder(), settings.test_documents, settings.max_bytes_per_document)
    read = TextBatches(run.data, cache_folder()).consumed_bytes(result["step"])
    trigram = bits_per_byte(ngram_document_bits(3, read, documents))
    assert result["scores"]["test"]["bits_per_byte"] < trigram - CLEARLY
