"""Links lead somewhere, and nothing that is written names a machine."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.structure.sources import ROOT, files, place

DOCUMENTS = [*ROOT.glob("*.md"), *files("docs", "studies", "benchmarks", endings=(".md",))]
WRITTEN = (
    ".py",
    ".md",
    ".toml",
    ".yml",
    ".yaml",
    ".cff",
    ".txt",
    ".json",
    ".html",
    ".css",
    ".csv",
    "Makefile",
    "run",
)
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
PRIVATE = re.compile(
    r"(?:https?|file|git|ssh)://(?:[\w.-]*@)?(?:localhost|127\.|10\.|192\.168\.|[\w-]+[:/]|[\w.-]+\.(?:internal|local|lan|corp)\b)"
    r"|file:///\w"
    r"|--(?:extra-)?index-url|--find-links|--trusted-host"
    r"|(?<![\w.])/(?:home|root|Users|work|mnt)/\w"
)


def dead_links(document: Path, text: str, made: set[Path]) -> list[str]:
    """The relative links of a document that lead to no file; `made` are pages that the build writes."""
    links = (link.split("#")[0] for link in LINK.findall(CODE.sub("", text)))
    relative = (link for link in links if link and not re.match(r"[a-z]+:", link))
    targets = ((link, (document.parent / link).resolve()) for link in relative)
    return [link for link, target in targets if not target.exists() and target not in made]


def private_names(text: str) -> list[str]:
    """Hosts, package indexes and folders of one particular machine."""
    return [found.group() for found in PRIVATE.finditer(text)]


def generated_pages() -> set[Path]:
    """The pages that the documentation's hook adds."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None, "the hook is a Python file"
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    return {ROOT / "docs" / path for path in hook.pages()}


def test_links_lead_somewhere() -> None:
    made = generated_pages()
    found = [
        f"{place(document)}: {link}"
        for document in DOCUMENTS
        for link in dead_links(document, document.read_text(encoding="utf-8"), made)
    ]
    assert not found, "\n".join(found)


def test_the_read_me_is_there() -> None:
    assert (ROOT / "README.md") in DOCUMENTS


def test_nothing_names_a_machine() -> None:
    own = Path(__file__).resolve()
    folders = ("src", "tests", "benchmarks", "studies", "docs", ".ci")
    texts = [*(path for path in ROOT.iterdir() if path.is_file()), *files(*folders, endings=WRITTEN)]
    found = [
        f"{place(path)}: {name}"
        for path in texts
        if path != own and path.name.endswith(WRITTEN)
        for name in private_names(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


def test_the_link_check_can_fail(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    (tmp_path / "b.md").touch()
    text = "[a](b.md) [b](b.md#x) ![c](c.png) [d](https://example.org) `[e](e.md)` [f](#f)\n[g](made.md)"
    assert dead_links(document, text, {tmp_path / "made.md"}) == ["c.png"]
    assert dead_links(document, text, set()) == ["c.png", "made.md"]


@pytest.mark.parametrize(
    "text",
    [
        "see http://localhost:8000/x",
        "http://mirror/simple",
        "https://git.corp.internal/x",
        "ssh://git@10.0.0.1/x",
        "pip install --extra-index-url=x",
        "in /home/someone/paribus",
    ],
)
def test_the_machine_check_can_fail(text: str) -> None:
    assert private_names(text)


@pytest.mark.parametrize("text", ["https://arxiv.org/abs/1", "path/to/work/x", "/proc/cpuinfo", "docs/home/x"])
def test_the_machine_check_lets_public_names_pass(text: str) -> None:
    assert not private_names(text)
