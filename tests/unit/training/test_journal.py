"""The journal: whole lines are kept, anything after a torn one is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from paribus.training.journal import Journal, read_journal


def write(path: Path, steps: range, kept: int = 0) -> None:
    journal = Journal(path, kept)
    for step in steps:
        journal.write("train", step, loss=1.0 / step)
    journal.close()


def steps(path: Path) -> list[int]:
    return [event["step"] for event in read_journal(path)]


def test_events_are_read_as_they_were_written(tmp_path: Path) -> None:
    write(tmp_path / "journal", range(1, 4))
    assert read_journal(tmp_path / "journal")[2] == {"event": "train", "step": 3, "loss": 1 / 3}
    assert read_journal(tmp_path / "absent") == []


def test_resuming_keeps_as_many_as_the_checkpoint_knew(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, range(1, 6))
    write(path, range(3, 5), kept=2)
    assert steps(path) == [1, 2, 3, 4]
    journal = Journal(path, 4)
    journal.write("evaluate", 4)
    assert journal.num_events == 5
    journal.close()
    assert [found.name for found in tmp_path.iterdir()] == ["journal"]


def test_an_event_is_there_before_the_file_is_closed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", 0)
    journal.write("train", 1)
    assert steps(tmp_path / "journal") == [1]
    journal.close()


@pytest.mark.parametrize("length", range(1, 30))
def test_a_torn_line_is_dropped(tmp_path: Path, length: int) -> None:
    path = tmp_path / "journal"
    write(path, range(1, 4))
    content = path.read_bytes()
    path.write_bytes(content[:-length])
    assert steps(path) == [1, 2]


@pytest.mark.parametrize("line", [b"\0\0\0\n", b"[1]\n", b"{}\n", b'{"step": 3}\n', b"\xff\n"])
def test_nothing_after_a_damaged_line_is_trusted(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal"
    write(path, range(1, 4))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], line, *lines[1:]]))
    assert steps(path) == [1]


def test_numbers_that_are_not_json_are_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", 0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.write("train", 1, loss=float("nan"))
    journal.close()
