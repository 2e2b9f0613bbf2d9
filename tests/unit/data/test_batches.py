"""Batches: pure in the step, exact in the mixture, once over every window in each epoch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from paribus.data.batches import BLOCK, Data, TextBatches, apportion, held_out, permutation
from paribus.data.corpus import prepare
from paribus.data.tokenizers import load_tokenizer
from paribus.data.tokens import tokenized
from paribus.nn.settings import read_settings
from tests.unit.data.conftest import Write
from tests.unit.data.test_tokenizers import words


@pytest.fixture
def mixture(write_text: Write) -> Data:
    corpora = {write_text("a.txt", 300, 1): 3.0, write_text("b.txt", 500, 2): 1.0, write_text("c.txt", 200, 3): 0.7}
    return Data(corpora=corpora, sequence_length=32, batch_size=8, seed=5)


def digests(data: Data, cache: Path, steps: range = range(5)) -> list[str]:
    batches = TextBatches(data, cache)
    return [batches.digest(batches.batch(step)) for step in steps]


def test_a_batch_depends_on_its_step_alone(mixture: Data, cache: Path) -> None:
    expected = digests(mixture, cache)
    assert len(set(expected)) == 5
    assert digests(mixture, cache, range(4, -1, -1)) == expected[::-1]
    reordered = replace(mixture, corpora=dict(reversed(mixture.corpora.items())))
    assert digests(reordered, cache) == expected
    assert digests(replace(mixture, seed=6), cache) != expected


def test_another_process_makes_the_same_batches(mixture: Data, cache: Path) -> None:
    code = (
        "from pathlib import Path; from paribus.data.batches import TextBatches, Data\n"
        f"batches = TextBatches(Data(**{asdict(mixture)!r}), Path({str(cache)!r}))\n"
        "print([batches.digest(batches.batch(step)) for step in range(5)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(digests(mixture, cache))


def test_tokens_are_windows_of_the_stream(mixture: Data, cache: Path) -> None:
    batches = TextBatches(mixture, cache)
    batch = batches.batch(3)
    assert batch.tokens.shape == (8, 33) and batch.tokens.dtype.is_signed and batch.segments is None
    for row, number in enumerate(range(24, 32)):
        name, window = batches.window(number)
        ids = batches.streams[name].ids
        np.testing.assert_array_equal(batch.tokens[row], ids[window * 32 : window * 32 + 33])
    assert sum(batch.counts.values()) == 8
    train = b"".join(text + b"\xff" for text in prepare(name, cache).documents("train"))
    assert bytes(ids) == train


def test_every_window_is_visited_once_an_epoch(mixture: Data, cache: Path) -> None:
    name = min(mixture.corpora)
    batches = TextBatches(replace(mixture, corpora={name: 1.0}), cache)
    count = batches.windows[name]
    assert count == (len(batches.streams[name].ids) - 1) // 32
    epochs = [[batches.window(e * count + visit)[1] for visit in range(count)] for e in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


def test_in_a_mixture_too_no_window_is_left_out(mixture: Data, cache: Path) -> None:
    batches = TextBatches(replace(mixture, sequence_length=256), cache)
    visits: dict[str, list[int]] = {name: [] for name in mixture.corpora}
    for number in range(4 * BLOCK):
        name, window = batches.window(number)
        visits[name].append(window)
    for name, seen in visits.items():
        count = batches.windows[name]
        assert len(seen) > count, "the test reads more than an epoch of each"
        assert sorted(seen[:count]) == list(range(count))


def test_the_mixture_is_exact_in_every_block(mixture: Data, cache: Path) -> None:
    batches = TextBatches(mixture, cache)
    expected = apportion(mixture.corpora, BLOCK)
    steps = BLOCK // mixture.batch_size
    for block in (0, 3):
        counts = dict.fromkeys(expected, 0)
        for step in range(block * steps, (block + 1) * steps):
            for name, count in batches.batch(step).counts.items():
                counts[name] += count
        assert counts == expected
    total = sum(mixture.corpora.values())
    assert all(abs(expected[name] - BLOCK * w / total) < 1 for name, w in mixture.corpora.items())
    assert batches._block_order(0).tolist() != batches._block_order(1).tolist()


def test_epochs_count_what_was_read(mixture: Data, cache: Path) -> None:
    batches = TextBatches(mixture, cache)
    read = dict.fromkeys(mixture.corpora, 0)
    for step in range(150):
        assert batches.epochs_at(step) == {name: read[name] / batches.windows[name] for name in read}
        for name, count in batches.batch(step).counts.items():
            read[name] += count


def test_nothing_held_out_is_trained_on(mixture: Data, cache: Path) -> None:
    for name in mixture.corpora:
        corpus = prepare(name, cache)
        train = bytes(tokenized(corpus, "train", load_tokenizer("bytes"), cache / "tokens").ids)
        assert not any(text in train for split in ("validation", "test") for text in corpus.documents(split))


def test_segments_number_the_documents(mixture: Data, cache: Path) -> None:
    batches = TextBatches(replace(mixture, isolate_documents=True, sequence_length=600), cache)
    batch = batches.batch(0)
    assert batch.segments is not None and batch.segments.shape == batch.tokens.shape
    ended = (batch.tokens == 255).long().cumsum(dim=1) - (batch.tokens == 255).long()
    assert (batch.segments == ended + 1).all()
    assert batch.segments.max() > 1


def test_another_tokenizer(tmp_path: Path, cache: Path) -> None:
    lines = [" ".join(f"w{(7 * line + word) % 298 + 2}" for word in range(20)) for line in range(300)]
    (tmp_path / "a.txt").write_text("\n\n".join(lines))
    data = Data({str(tmp_path / "a.txt"): 1.0}, tokenizer=words(tmp_path / "words"), sequence_length=16)
    batches = TextBatches(data, cache)
    stream = batches.streams[str(tmp_path / "a.txt")]
    assert stream.ids.dtype == np.uint16 and batches.vocab_size == 300
    ends = stream.offsets[1:] - 1
    assert (stream.ids[ends] == 0).all() and (np.delete(stream.ids, ends) != 0).all()
    assert batches.batch(0).tokens.max() > 255
    assert batches.consumed_bytes(2).dtype == np.uint8


def test_consumed_bytes_are_the_inputs(mixture: Data, cache: Path) -> None:
    batches = TextBatches(mixture, cache)
    inputs = [batches.batch(step).tokens[:, :-1].numpy().astype(np.uint8).ravel() for step in range(3)]
    np.testing.assert_array_equal(batches.consumed_bytes(3), np.concatenate(inputs))


def test_the_manifests_identify_the_data(mixture: Data, cache: Path, write_text: Write) -> None:
    before = TextBatches(mixture, cache).manifests()
    assert before == TextBatches(mixture, cache).manifests()
    assert set(before["corpora"]) == set(mixture.corpora)
    write_text("a.txt", 300, seed=99)
    assert TextBatches(mixture, cache).manifests() != before


def test_held_out_documents(mixture: Data, cache: Path) -> None:
    found = held_out(mixture, "test", cache, max_documents=20, max_bytes_per_document=101)
    counts = {name: sum(document.corpus == name for document in found) for name in mixture.corpora}
    available = {name: len(prepare(name, cache).documents("test")) for name in mixture.corpora}
    shares = apportion(mixture.corpora, 20)
    assert counts == {name: min(available[name], shares[name]) for name in mixture.corpora}
    for document in found:
        whole = prepare(document.corpus, cache).documents("test")
        assert any(text.startswith(document.content) for text in whole)
        assert 98 <= document.num_bytes <= 101 and document.content.decode()
        assert document.tokens.tolist() == list(document.content)
    again = held_out(mixture, "test", cache, 20, 101)
    assert [a.content for a in again] == [document.content for document in found]
    assert len(held_out(mixture, "test", cache, 1, 101)) == 3


def test_a_corpus_shorter_than_a_sequence(write_text: Write, cache: Path) -> None:
    data = Data({write_text(paragraphs=300): 1.0}, sequence_length=10**6)
    with pytest.raises(ValueError, match=r"text.txt' has \d+ training tokens; one sequence needs 1000001"):
        TextBatches(data, cache)


def test_a_share_too_small_to_be_read(mixture: Data, cache: Path) -> None:
    first, *_ = mixture.corpora
    with pytest.raises(ValueError, match="is below 1 in 1024, too small to be read"):
        TextBatches(replace(mixture, corpora={**mixture.corpora, first: 1e-6}), cache)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corpora": {}}, "corpora is empty"),
        ({"corpora": {"wiki": 0}}, "weight of corpus 'wiki' is 0"),
        ({"corpora": {"wiki": float("nan")}}, "weight of corpus 'wiki' is nan"),
        ({"corpora": {"wiki": "much"}}, "data: corpora: wiki is 'much'; float is needed"),
        ({"corpora": {"wiki": 1}, "batch_size": 0}, "batch_size is 0; at least 1"),
        ({"corpora": {"wiki": 1}, "sequence_length": -1}, "sequence_length is -1; at least 1"),
        ({"corpora": {"wiki": 1}, "batchsize": 4}, "unknown key 'batchsize'; did you mean 'batch_size'"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_settings(Data, settings, "data")


def test_apportion_gives_away_every_place() -> None:
    assert apportion({"b": 1, "a": 1, "c": 1}, 10) == {"a": 4, "b": 3, "c": 3}
    assert apportion({"a": 0.5, "b": 0.3, "c": 0.2}, 1024) == {"a": 512, "b": 307, "c": 205}


def test_permutations_stay_what_they_are() -> None:
    """The numbers are frozen: a change would silently change what every seed means."""
    assert permutation(8, 0, "corpus wiki", 0).tolist() == [1, 4, 7, 2, 3, 5, 6, 0]
    assert sorted(permutation(1000, 1, "x", 2)) == list(range(1000))
