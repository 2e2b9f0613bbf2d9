"""The user's own text: a file, a folder, a table with a text column, or a Hugging Face data set."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .source import Source

PIECE_CHARACTERS = 4_096
WHOLE_FILE_BYTES = 65_536
INSTALL = 'run: pip install "paribus[hub]"'
TABLES = (".jsonl", ".parquet")
TEXT_TYPES = ("string", "large_string", "string_view")
STREAM = "stream:"
HUB_NAME = re.compile(r"hf:(?P<name>[^@:#]+)(@(?P<revision>[^:#]+))?(:(?P<config>[^#]+))?(#(?P<field>.+))?")


class LocalCorpus(Source):
    """A text file, a ``.jsonl`` or ``.parquet`` table, or a folder of such files.

    A single text file is cut into documents of roughly 4 kB at blank lines (less for a small file, so that
    some 200 result). In a folder each file is one document; those above 64 kB are cut likewise.

    Args:
        name: the path; ``#field`` behind it names the column of a table that holds the text.

    Raises:
        ValueError: there is no such file or folder.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        place, _, field = name.rpartition("#") if "#" in name and not Path(name).exists() else (name, "", "")
        self.path = Path(place).expanduser()
        self.field = field or "text"
        if not self.path.exists():
            raise ValueError(f"corpus '{name}': there is no file or folder {self.path}")

    @property
    def version(self) -> str:
        return "as on disk"

    def identity(self) -> dict[str, Any]:
        states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self._paths()]
        return {"path": str(self.path.resolve()), "field": self.field, "files": states}

    def documents(self) -> Iterator[str]:
        whole_bytes = 0 if self.path.is_file() else WHOLE_FILE_BYTES
        for path in self._paths():
            if path.suffix in TABLES:
                yield from (_jsonl if path.suffix == ".jsonl" else _parquet)(path, self.field)
            else:
                text = _read(path)
                size_bytes = path.stat().st_size
                yield from [text] if size_bytes <= whole_bytes else pieces(text, piece_characters(size_bytes))

    def _paths(self) -> list[Path]:
        """The files, sorted; hidden ones and Python's own caches are left out of a folder."""
        if self.path.is_file():
            return [self.path]
        found = []
        for folder, inner, names in os.walk(self.path):
            inner[:] = [name for name in inner if name[0] != "." and name != "__pycache__"]
            found += [Path(folder, name) for name in names if name[0] != "."]
        return sorted(found)


class HubCorpus(Source):
    """The train split of a Hugging Face data set: ``hf:NAME[@REVISION][:CONFIGURATION][#FIELD]``.

    Raises:
        ValueError: the name has another form.
    """

    licence = "see the data set's page"

    def __init__(self, name: str) -> None:
        self.name = name
        match = HUB_NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"corpus '{name}'; the form is hf:NAME[@REVISION][:CONFIGURATION][#FIELD]")
        self.parts: dict[str, str | None] = match.groupdict()
        self.field = match["field"] or "text"

    @property
    def version(self) -> str:
        return self.parts["revision"] or "newest when prepared"

    def identity(self) -> dict[str, Any]:
        return dict(self.parts)

    def load(self, streaming: bool) -> Any:
        """The train split, downloaded first or streamed.

        Raises:
            ValueError: datasets is not installed, or cannot load it.
        """
        try:
            import datasets
        except ImportError as problem:
            raise ValueError(f"corpus '{self.name}' needs datasets; {INSTALL}") from problem
        name, configuration, revision = (self.parts[key] for key in ("name", "config", "revision"))
        try:
            return datasets.load_dataset(name, configuration, split="train", revision=revision, streaming=streaming)
        except Exception as problem:  # the library raises a dozen kinds for a wrong name and for no network
            reason = (str(problem) or type(problem).__name__).splitlines()[0]
            raise ValueError(f"corpus '{self.name}' cannot be loaded: {reason}") from problem

    def documents(self) -> Iterator[str]:
        rows = self.load(streaming=False)
        if getattr(rows.features.get(self.field), "dtype", None) not in TEXT_TYPES:
            raise ValueError(_no_text(self.name, self.field, rows.features))
        yield from (text for text in rows[self.field] if text is not None)


class Shard(HubCorpus):
    """One file of a data set, read as it comes and without the others: ``stream:NAME@REVISION:CONFIGURATION#FIELD``.

    NAME may also be a folder of this machine.

    Raises:
        ValueError: the name has another form, or names no revision.
    """

    def __init__(self, name: str, number: int) -> None:
        super().__init__("hf:" + name.removeprefix(STREAM))
        self.name, self.number = name, number
        if self.parts["revision"] is None and not Path(str(self.parts["name"])).is_dir():
            raise ValueError(f"corpus '{name}' has no @REVISION; files read one by one have to be of one edition")

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "shard": self.number}

    def rows(self) -> Any:
        """The whole data set, not yet downloaded; `num_shards` says of how many files it is."""
        return self.load(streaming=True)

    def documents(self) -> Iterator[str]:
        rows = self.rows()
        for row in rows.shard(num_shards=rows.num_shards, index=self.number):
            text = row.get(self.field)
            if self.field not in row or not isinstance(text, str | None):
                raise ValueError(_no_text(self.name, self.field, row))
            if text is not None:
                yield text


def pieces(text: str, characters: int) -> Iterator[str]:
    """Cut `text` after at least so many characters at the next blank line, or else line end, or else space.

    Nothing is lost: the pieces joined are the text. None has more than four times `characters`.
    """
    start = 0
    while start < len(text):
        end = start + characters
        for mark in ("\n\n", "\n", " "):
            found = text.find(mark, end, end + 3 * characters)
            if found >= 0:
                end = found + len(mark)
                break
        yield text[start:end]
        start = end


def piece_characters(size_bytes: int) -> int:
    """How long the pieces of a file of this size are: a two-hundredth of it, between 256 and 4,096."""
    return min(PIECE_CHARACTERS, max(256, size_bytes // 200))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path} is not UTF-8 text: {problem.reason} at byte {problem.start}") from problem


def _jsonl(path: Path, field: str) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as problem:  # not JSON, or not UTF-8
                raise ValueError(f"{path}, line {number}: {problem}") from problem
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                fields = list(row) if isinstance(row, dict) else []
                raise ValueError(_no_text(f"{path}, line {number}", field, fields))
            yield row[field]


def _parquet(path: Path, field: str) -> Iterator[str]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as problem:
        raise ValueError(f"reading {path} needs pyarrow; {INSTALL}") from problem
    try:
        table = ParquetFile(path)
    except (ArrowException, OSError) as problem:
        raise ValueError(f"{path} is not a parquet file: {problem}") from problem
    types = dict(zip(table.schema_arrow.names, map(str, table.schema_arrow.types), strict=True))
    if types.get(field) not in TEXT_TYPES:
        raise ValueError(_no_text(str(path), field, types))
    for batch in table.iter_batches(columns=[field]):
        yield from (text for text in batch.column(0).to_pylist() if text is not None)


def _no_text(where: str, field: str, known: Iterable[str]) -> str:
    return f"{where}: no text under '{field}'; known: {', '.join(known) or 'none'}; choose one by PATH#FIELD"
