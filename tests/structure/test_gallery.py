"""Every study of the gallery is whole: what was asked, what was expected, what came out."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from paribus.studies.result import from_json, to_json
from tests.structure.sources import MADE_BY_TOOLS, ROOT
from tests.unit.studies.example_study import example_study

GALLERY = [path for path in sorted((ROOT / "studies").iterdir()) if path.is_dir() and path.name not in MADE_BY_TOOLS]
HEADINGS = ("Question", "Prediction", "Answer")
PLACEHOLDER = "<!-- answer -->"


def flaws(folder: Path) -> list[str]:
    """What keeps a folder from being a study of the gallery."""
    found = [] if re.fullmatch(r"\d{4}_[a-z0-9]+(_[a-z0-9]+)*", folder.name) else ["the name is not NNNN_snake_case"]
    missing = [name for name in ("study.py", "README.md", "results.json") if not (folder / name).is_file()]
    found += [f"{name} is missing" for name in missing]
    if "README.md" not in missing:
        text = (folder / "README.md").read_text(encoding="utf-8")
        headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
        found += [f"README.md lacks '## {heading}'" for heading in HEADINGS if heading not in headings]
        found += [f"README.md still has {PLACEHOLDER}"] * (PLACEHOLDER in text)
    if "results.json" not in missing:
        try:
            result = from_json((folder / "results.json").read_text(encoding="utf-8"))
        except ValueError as problem:
            return [*found, f"results.json: {problem}"]
        found += [f"results.json is of '{result.name}'"] * (result.name != folder.name)
    return found


def test_there_is_a_gallery() -> None:
    assert GALLERY


@pytest.mark.parametrize("folder", GALLERY, ids=lambda folder: folder.name)
def test_a_study_is_whole(folder: Path) -> None:
    assert not flaws(folder), "\n".join(flaws(folder))


def test_a_whole_study_passes(tmp_path: Path) -> None:
    folder = tmp_path / "0042_an_example"
    folder.mkdir()
    (folder / "study.py").touch()
    (folder / "README.md").write_text("\n\n".join(f"## {heading}" for heading in HEADINGS))
    result = dataclasses.replace(example_study(), name=folder.name)
    (folder / "results.json").write_text(to_json(result), encoding="utf-8")
    assert not flaws(folder)
    assert flaws(folder.rename(tmp_path / "0043_another")) == ["results.json is of '0042_an_example'"]


def test_the_check_can_fail(tmp_path: Path) -> None:
    folder = tmp_path / "my-study"
    folder.mkdir()
    (folder / "README.md").write_text(f"## Question\n\n## Answer\n\n{PLACEHOLDER}\n")
    (folder / "results.json").write_text('{"name": "x"')
    assert [flaw.split(": ")[0] for flaw in flaws(folder)] == [
        "the name is not NNNN_snake_case",
        "study.py is missing",
        "README.md lacks '## Prediction'",
        f"README.md still has {PLACEHOLDER}",
        "results.json",
    ]
