"""Data sets larger than the disk: ``stream:NAME@REVISION:CONFIGURATION#FIELD``, prepared and read one shard at a time.

A shard is one file of a Hugging Face data set's train split. It is a small corpus: de-duplicated within itself, divided
by the hash of each document, so that held-out text is never trained on whichever shard it is in, and tokenized. In each
epoch the shards come in an order drawn from (seed, corpus, epoch), and the windows of a shard in one drawn from (seed,
corpus, shard, epoch). So a window still follows from its number; but to know where a shard begins, all before it have
to have been prepared once. How many tokens each has is remembered for ever, its text and tokens only while it is among
the last `KEPT_SHARDS`; the first shard, from which the held-out documents come, stays.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from functools import cache as remember
from functools import lru_cache
from pathlib import Path
from typing import Any

from .cache import stable_hash
from .corpus import Corpus, prepare, prepare_source
from .local import STREAM, Shard
from .order import permutation
from .tokenizers import fingerprint
from .tokens import TokenStream, tokenized

KEPT_SHARDS = 3


@remember
def count_shards(name: str) -> int:
    """How many files the train split of the data set called `name` has.

    Raises:
        ValueError: it cannot be opened.
    """
    return int(Shard(name, 0).rows().num_shards)


class Shards:
    """The training windows of a data set, epoch after epoch, shard after shard.

    Args:
        window_tokens: how far apart windows start; each has one token more.

    Raises:
        ValueError: the data set cannot be opened.
    """

    def __init__(self, name: str, tokenizer: Any, window_tokens: int, seed: int, cache: Path) -> None:
        self.name, self.seed, self.cache = name, seed, cache
        self.tokenizer, self.window_tokens = tokenizer, window_tokens
        self.num_shards = count_shards(name)
        stem = re.sub(r"\W+", "_", name.removeprefix(STREAM).partition("#")[0])[-40:]
        self._folder = cache / "shards" / f"{stem}-{stable_hash([name, Shard(name, 0).identity()])[:12]}"
        self._open: dict[int, TokenStream] = {}
        self._counts = remember(self._count_windows)
        self._order = lru_cache(maxsize=4)(permutation)
        self._found = (0, 0)  # the place in the order of shards that was asked for last, and the first window there

    def place(self, index: int) -> tuple[TokenStream, int]:
        """The stream that holds the window visited as number `index`, and where in it the window begins."""
        position, visit = self._find(index)
        epoch, number = self._shard(position)
        order = self._order(self._counts(number), self.seed, f"corpus {self.name} shard {number}", epoch)
        return self._stream(number), int(order[visit]) * self.window_tokens

    def epochs(self, index: int) -> float:
        """How often the data set has been read before window `index`, each shard counted alike."""
        position, visit = self._find(index)
        return (position + visit / self._counts(self._shard(position)[1])) / self.num_shards

    def _find(self, index: int) -> tuple[int, int]:
        """Which shard of all that are ever visited, and which visit in it."""
        position, begin = self._found if self._found[1] <= index else (0, 0)
        while index >= begin + self._counts(self._shard(position)[1]):
            begin += self._counts(self._shard(position)[1])
            position += 1
        self._found = (position, begin)
        return position, index - begin

    def _shard(self, position: int) -> tuple[int, int]:
        """The epoch, and the number of the shard, at a place in the order of all that are ever visited."""
        epoch, place = divmod(position, self.num_shards)
        return epoch, int(self._order(self.num_shards, self.seed, f"shards of {self.name}", epoch)[place])

    def _count_windows(self, number: int) -> int:
        key = stable_hash([fingerprint(self.tokenizer), number])[:12]
        path = self._folder / f"{key}.json"
        known = json.loads(path.read_bytes()) if path.exists() else None
        if known is None:
            known = {"shard": number, "tokens": len(self._stream(number).ids)}
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(known))
            os.replace(temporary, path)
        windows = (known["tokens"] - 1) // self.window_tokens
        if windows < 1:
            needed = f"one sequence needs {self.window_tokens + 1} (sequence_length + 1)"
            raise ValueError(f"corpus '{self.name}', shard {number} has {known['tokens']} training tokens; {needed}")
        return windows

    def _stream(self, number: int) -> TokenStream:
        if number not in self._open:
            corpus = self._corpus(number)
            self._open[number] = tokenized(corpus, "train", self.tokenizer, corpus.folder)
            for old in [*self._open][:-KEPT_SHARDS]:
                del self._open[old]
                if old > 0:  # a process that still reads it keeps what it has mapped
                    shutil.rmtree(self._folder / f"{old:05d}", ignore_errors=True)
        return self._open[number]

    def _corpus(self, number: int) -> Corpus:
        if number == 0:
            return prepare(self.name, self.cache)
        return prepare_source(Shard(self.name, number), self._folder / f"{number:05d}")
