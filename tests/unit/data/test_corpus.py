"""Prepared corpora: normalised, without repetitions, split by content, cached."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from itertools import chain
from pathlib import Path

import pytest

from paribus.data.corpus import SPLITS, prepare, split_of
from tests.unit.data.conftest import Write


def jsonl(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def test_every_document_is_in_one_split_that_its_content_decides(tmp_path: Path, cache: Path) -> None:
    texts = [f"document {number}" for number in range(1000)]
    corpus = prepare(jsonl(tmp_path / "a.jsonl", texts), cache)
    found = {split: list(corpus.documents(split)) for split in SPLITS}
    assert sorted(chain.from_iterable(found.values())) == sorted(text.encode() for text in texts)
    assert all(split_of(document) == split for split in SPLITS for document in found[split])
    assert not set(found["train"]) & (set(found["validation"]) | set(found["test"]))
    assert {split: len(of) / 10 for split, of in found.items()} == pytest.approx(
        {"train": 90, "validation": 5, "test": 5}, abs=2
    )
    fewer = prepare(jsonl(tmp_path / "b.jsonl", texts[::-2]), cache)
    assert set(fewer.documents("test")) == set(found["test"]) & {text.encode() for text in texts[::-2]}


def test_documents_are_normalised_and_repeated_ones_dropped(tmp_path: Path, cache: Path) -> None:
    texts = [f"document {number}" for number in range(200)]
    noise = [" document 7\n", "docu\0ment 8", "", "  \n", "lone \ud800surrogate", *texts]
    corpus = prepare(jsonl(tmp_path / "a.jsonl", texts + noise), cache)
    documents = [text for split in SPLITS for text in corpus.documents(split)]
    assert len(documents) == 201
    assert b"lone surrogate" in documents


def test_the_manifest_tells_what_is_there(write_text: Write, cache: Path) -> None:
    corpus = prepare(write_text("my text.txt"), cache)
    assert corpus.folder.name.startswith("my_text_txt-")
    for split in SPLITS:
        documents = corpus.documents(split)
        told = corpus.manifest["splits"][split]
        assert told == {"documents": len(documents), "bytes": sum(map(len, documents))}
        content = (corpus.folder / f"{split}.bin").read_bytes()
        assert content == b"".join(documents)
        assert corpus.manifest["files"][f"{split}.bin"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert json.loads((corpus.folder / "manifest.json").read_text()) == corpus.manifest
    with pytest.raises(IndexError):
        corpus.documents("test")[10**6]
    assert corpus.documents("test")[-1] == corpus.documents("test")[:][-1]
    with pytest.raises(ValueError, match="unknown split 'tests'; did you mean 'test'"):
        corpus.documents("tests")


def test_a_changed_file_is_prepared_anew(write_text: Write, cache: Path) -> None:
    name = write_text(seed=0)
    first = prepare(name, cache)
    assert prepare(name, cache).folder == first.folder
    write_text(seed=1)
    os.utime(name, ns=(0, 0))
    second = prepare(name, cache)
    assert second.folder != first.folder and second.manifest_hash != first.manifest_hash


def test_equal_text_at_another_place_has_the_same_manifest_hash(write_text: Write, cache: Path) -> None:
    one, other = prepare(write_text("a.txt"), cache), prepare(write_text("b.txt"), cache)
    assert one.folder != other.folder and one.manifest_hash == other.manifest_hash


def test_a_damaged_copy_is_made_again(write_text: Write, cache: Path) -> None:
    name = write_text()
    corpus = prepare(name, cache)
    whole = (corpus.folder / "train.bin").read_bytes()
    (corpus.folder / "train.bin").write_bytes(whole[:-1])
    assert prepare(name, cache).manifest == corpus.manifest
    assert (corpus.folder / "train.bin").read_bytes() == whole


def test_two_processes_prepare_the_same_corpus(write_text: Write, cache: Path) -> None:
    name = write_text(paragraphs=3000)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=prepare, args=(name, cache)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    folder = prepare(name, cache).folder
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_too_few_documents_say_so(tmp_path: Path, cache: Path) -> None:
    name = jsonl(tmp_path / "a.jsonl", ["one", "two"])
    with pytest.raises(ValueError, match=r"has only 2 documents, none of.*about 100 documents are needed"):
        prepare(name, cache)


def test_an_unknown_name_says_what_is_near(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown corpus 'scriptur' .*; did you mean 'scripture'"):
        prepare("scriptur", cache)
