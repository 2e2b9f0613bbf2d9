"""Encyclopedic English: Wikipedia articles from gensim's shortened dump, raw markup, a section a document."""

from __future__ import annotations

import bz2
import re
from collections.abc import Iterator
from xml.etree import ElementTree

from ..source import EmbeddedCorpus

DUMP = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
NAMESPACE = "{http://www.mediawiki.org/xml/export-0.10/}"


class Wiki(EmbeddedCorpus):
    """Encyclopedic English: Wikipedia articles as raw markup, one document per section."""

    licence = "CC-BY-SA-3.0"
    packages = {"gensim": "gensim"}

    def documents(self) -> Iterator[str]:
        (gensim,) = self.folders()
        with bz2.open(gensim / DUMP) as dump:
            for _, element in ElementTree.iterparse(dump):
                if element.tag == f"{NAMESPACE}page":
                    if element.find(f"{NAMESPACE}redirect") is None:
                        yield from sections(element.findtext(f"{NAMESPACE}revision/{NAMESPACE}text") or "")
                    element.clear()


def sections(article: str) -> list[str]:
    """An article cut before each heading of the first level (``== History ==``)."""
    return re.split(r"\n(?===[^=])", article)
