"""The user's own text, and what can be wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from paribus.data.corpus import find_source, prepare
from paribus.data.local import HubCorpus, LocalCorpus, pieces
from tests.unit.data.conftest import Write


def read(name: object) -> list[str]:
    return list(LocalCorpus(str(name)).documents())


@pytest.mark.parametrize("mark", ["\n\n", "\n", " ", ""])
def test_pieces_join_to_the_text(mark: str) -> None:
    text = mark.join(f"word{number}é" for number in range(500))
    cut = list(pieces(text, 100))
    assert "".join(cut) == text
    assert all(100 <= len(piece) <= 400 + len(mark) for piece in cut[:-1])
    assert all(piece.endswith(mark) for piece in cut[:-1])


def test_a_single_file_becomes_some_200_documents(write_text: Write) -> None:
    name = write_text(paragraphs=2000)
    documents = read(name)
    assert 150 <= len(documents) <= 250
    assert "".join(documents) == Path(name).read_text(encoding="utf-8")


def test_a_single_large_file_becomes_pieces_of_4_kb(write_text: Write) -> None:
    sizes = [len(text) for text in read(write_text(paragraphs=6000))]
    assert 4096 <= sum(sizes) / len(sizes) <= 4600


def test_a_folder_is_read_in_order_without_what_is_hidden(tmp_path: Path) -> None:
    for name, text in {"b/two.md": "two", "a.txt": "one", "c.py": "three", ".git/x": "no", "d/.x": "no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.pyc").write_bytes(b"\xff")
    assert read(tmp_path) == ["one", "two", "three"]


def test_a_large_file_in_a_folder_is_cut(tmp_path: Path, write_text: Write) -> None:
    (tmp_path / "folder").mkdir()
    write_text("folder/large.txt", paragraphs=1000)
    write_text("folder/small.txt", paragraphs=100)
    documents = read(tmp_path / "folder")
    assert len(documents) > 100
    assert documents[-1] == (tmp_path / "folder" / "small.txt").read_text(encoding="utf-8")


def test_tables(tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "body": f"body {number}", "size": number} for number in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*rows, {"text": None}]), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert read(tmp_path / name) == ["text 0", "text 1", "text 2"]
        assert read(f"{tmp_path / name}#body") == ["body 0", "body 1", "body 2"]
        for field in ("missing", "size"):
            with pytest.raises(ValueError, match=rf"{name}.*no text under '{field}'; known: text, body, size"):
                read(f"{tmp_path / name}#{field}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt' has no text in it"),
        ("a.txt", b" \n\n \0", "a.txt' has no text in it"),
        ("a.txt", b"good\xff", r"a.txt is not UTF-8 text: invalid start byte at byte 4"),
        ("a.jsonl", b"", "a.jsonl' has no text in it"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', "a.jsonl, line 2: Expecting ':'"),
        ("a.jsonl", b'{"text": "\xff"}', "a.jsonl, line 1: 'utf-8' codec"),
        ("a.jsonl", b"[1]", "a.jsonl, line 1: no text under 'text'; known: none"),
        ("a.parquet", b"PAR", "a.parquet is not a parquet file"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, cache: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        prepare(str(tmp_path / name), cache)
    assert str(tmp_path / name) in str(caught.value)
    assert not any(path.is_dir() for path in (cache / "corpora").iterdir())


def test_an_empty_folder_and_a_missing_path_are_named(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder' has no text in it"):
        prepare(str(tmp_path / "folder"), cache)
    with pytest.raises(ValueError, match=r"there is no file or folder .*missing\.txt"):
        prepare(str(tmp_path / "missing.txt"), cache)


def test_hub_names() -> None:
    corpus = find_source("hf:someone/texts@v1:english#body")
    assert isinstance(corpus, HubCorpus)
    assert corpus.identity() == {"name": "someone/texts", "revision": "v1", "config": "english", "field": "body"}
    assert find_source("hf:texts").identity()["name"] == "texts"
    with pytest.raises(ValueError, match="the form is hf:NAME"):
        find_source("hf:")


def test_a_data_set_is_read_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))
    (tmp_path / "set").mkdir()
    rows = [{"text": f"text {number}", "size": number} for number in range(3)]
    (tmp_path / "set" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert list(HubCorpus(f"hf:{tmp_path}/set").documents()) == ["text 0", "text 1", "text 2"]
    with pytest.raises(ValueError, match="no text under 'size'; known: text, size"):
        list(HubCorpus(f"hf:{tmp_path}/set#size").documents())
    with pytest.raises(ValueError, match=r"corpus 'hf:.*/missing' cannot be loaded: "):
        list(HubCorpus(f"hf:{tmp_path}/missing").documents())


def test_without_datasets_the_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r'needs datasets; run: pip install "paribus\[hub\]"'):
        list(HubCorpus("hf:texts").documents())
