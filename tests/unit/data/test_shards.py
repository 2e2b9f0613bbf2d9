"""Data sets read one shard at a time: the order, what is kept on the disk, and what is refused."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet

from paribus.data import shards
from paribus.data.batches import Data, TextBatches, held_out
from paribus.data.corpus import find_source, prepare, split_of
from paribus.data.local import Shard
from tests import small

FILES, DOCUMENTS, T = 5, 120, 32


@pytest.fixture(scope="module")
def texts() -> list[list[str]]:
    """Documents of each file; the first few are in all of them."""
    draw = random.Random(0)
    unique = [[" ".join(draw.choices(small.WORDS, k=12)) for _ in range(DOCUMENTS)] for _ in range(FILES)]
    return [[*unique[0][:20], *documents] for documents in unique]


@pytest.fixture(scope="module")
def name(texts: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    for number, documents in enumerate(texts):
        parquet.write_table(pyarrow.table({"text": documents}), folder / f"train-{number:05d}.parquet")
    return f"stream:{folder}"


def read(batches: TextBatches, steps: range) -> torch.Tensor:
    return torch.cat([batches.batch(step).tokens for step in steps])


def make(name: str, cache: Path, **values: object) -> TextBatches:
    return TextBatches(Data({name: 1.0}, sequence_length=T, batch_size=4, **values), cache)  # type: ignore[arg-type]


def test_an_epoch_reads_every_window_once(name: str, texts: list[list[str]], tmp_path: Path) -> None:
    batches = make(name, tmp_path)
    shard = batches.shards[name]
    counts = [shard._counts(number) for number in range(FILES)]
    visits = Counter()
    for index in range(2 * sum(counts)):
        stream, start = shard.place(index)
        visits[bytes(stream.ids[start : start + T + 1])] += 1
        if index == sum(counts) - 1:
            assert shard.epochs(sum(counts)) == 1
    expected = Counter()
    for documents in texts:
        kept = [text for text in dict.fromkeys(documents) if split_of(text.encode()) == "train"]
        ids = b"".join(text.encode() + b"\xff" for text in kept)
        expected.update(ids[start : start + T + 1] for start in range(0, len(ids) - T, T))
    assert visits == Counter({window: 2 * count for window, count in expected.items()})


def test_a_batch_follows_from_its_number(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "KEPT_SHARDS", 1)
    first = make(name, tmp_path / "one")
    whole = read(first, range(60))
    read(first, range(60, 300))  # more than an epoch
    left = list((tmp_path / "one" / "shards").glob("*/0*/manifest.json"))
    remembered = list((tmp_path / "one" / "shards").glob("*/*.json"))
    assert len(remembered) == FILES, "all shards were read"
    assert len(left) <= 1, "besides the first shard, which lies elsewhere, only the last one read is on the disk"
    later = make(name, tmp_path / "one")  # continued, with shards that are no longer there
    assert torch.equal(read(later, range(30, 60)), whole[120:])
    assert torch.equal(read(later, range(10)), whole[:40])
    assert torch.equal(read(make(name, tmp_path / "two"), range(40, 50)), whole[160:200])
    assert not torch.equal(read(make(name, tmp_path / "one", seed=1), range(10)), whole[:40])
    assert make(name, tmp_path / "one").manifests() == first.manifests()


def test_held_out_documents_are_in_no_shard(name: str, texts: list[list[str]], tmp_path: Path) -> None:
    data = Data({name: 1.0}, sequence_length=T, batch_size=4)
    documents = held_out(data, "test", tmp_path, 50, 1000)
    assert documents
    assert {document.content.decode() for document in documents} <= set(texts[0])
    batches = make(name, tmp_path)
    streams = [bytes(batches.shards[name]._stream(number).ids) for number in range(FILES)]
    for document in documents:
        assert not any(document.content in stream for stream in streams)


def test_mixed_with_a_finite_corpus_and_documents_apart(name: str, text: Path, tmp_path: Path) -> None:
    corpora = {name: 1.0, str(text): 1.0}
    batches = TextBatches(Data(corpora, sequence_length=T, batch_size=8, isolate_documents=True), tmp_path)
    batch = batches.batch(3)
    assert batch.segments is not None
    assert batch.segments.shape == batch.tokens.shape
    ends = (batch.tokens[:, :-1] == 0xFF).long()
    assert torch.equal(batch.segments.diff(dim=1), ends)
    assert 0 < batches.epochs_at(20)[name] < 1


def test_what_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'stream:someone/texts' has no @REVISION; files read one by one"):
        find_source("stream:someone/texts")
    assert isinstance(find_source("stream:someone/texts@v1"), Shard)
    with pytest.raises(ValueError, match="no text under 'body'; known: text"):
        prepare(f"{name}#body", tmp_path)
    with pytest.raises(ValueError, match="cannot be loaded"):
        prepare("stream:someone/texts@v1", tmp_path)
    with pytest.raises(ValueError, match=r"shard \d has \d+ training tokens; one sequence needs 100001"):
        make(name, tmp_path).shards[name].__class__(name, make(name, tmp_path).tokenizer, 100_000, 0, tmp_path).place(0)
