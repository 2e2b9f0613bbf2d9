"""Ninety-nine languages: the translated user-interface texts of Django, one document per translation file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from ..source import EmbeddedCorpus, read, spread

TRANSLATION = re.compile(r'^msgstr(?:\[\d+\])? (".*"(?:\n".*")*)', re.MULTILINE)


class UiMultilang(EmbeddedCorpus):
    """Ninety-nine languages: translated user-interface texts of Django."""

    licence = "BSD-3-Clause"
    packages = {"django": "django"}

    def documents(self) -> Iterator[str]:
        return (translations(read(path)) for path in spread(self.folders(), "*.po"))


def translations(catalogue: str) -> str:
    """The translated texts of a gettext catalogue, one a line, without its header."""
    _, *entries = TRANSLATION.findall(catalogue)
    # The quoting of these files is C's, which Python's literals read.
    texts = ("".join(map(ast.literal_eval, quoted.split("\n"))) for quoted in entries)
    return "\n".join(text for text in texts if text)
