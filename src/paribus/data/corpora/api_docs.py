"""Technical prose: documentation above 200 characters in botocore's service models, a document each."""

from __future__ import annotations

import gzip
import html
import json
import re
from collections.abc import Iterator
from typing import Any

from ..source import EmbeddedCorpus, spread

MIN_CHARACTERS = 200
LINE_TAGS = re.compile(r"\s*</?(p|li|ul|ol|dl|dt|dd|h\d|br|div|note|important|pre|table|tr)\b[^>]*>\s*")


class ApiDocs(EmbeddedCorpus):
    """Technical prose: documentation of the Amazon Web Services API."""

    licence = "Apache-2.0"
    packages = {"botocore": "botocore"}

    def documents(self) -> Iterator[str]:
        (botocore,) = self.folders()
        models = spread([botocore / "data"], "service-2.json.gz")
        # Older models of a service repeat most of its newest; folders are named service/YYYY-MM-DD.
        newest = {path.parents[1]: max(path.parents[1].iterdir()) for path in models}
        for path in models:
            if path.parent == newest[path.parents[1]]:
                texts = map(plain_text, documentation(json.loads(gzip.decompress(path.read_bytes()))))
                yield from (text for text in texts if len(text) > MIN_CHARACTERS)


def documentation(value: Any) -> Iterator[str]:
    """Every text under a key ``documentation``, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "documentation" and isinstance(inner, str):
                yield inner
            else:
                yield from documentation(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from documentation(inner)


def plain_text(marked: str) -> str:
    """HTML without its tags: a line for each paragraph, heading and list item."""
    lines = LINE_TAGS.sub("\n", marked)
    text = html.unescape(re.sub(r"</?[a-zA-Z][^>]*>", "", lines))
    return re.sub(r"\n+", "\n", text).strip()
