"""Python code: the interpreter's standard library, one document per source file, without tests."""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ..source import EmbeddedCorpus, read, spread

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


class Python(EmbeddedCorpus):
    """Python code of the standard library."""

    licence = "PSF-2.0"

    @property
    def version(self) -> str:
        return f"Python {platform.python_version()}"

    def folders(self) -> list[Path]:
        return [Path(sysconfig.get_paths()["stdlib"])]

    def documents(self) -> Iterator[str]:
        paths = spread(self.folders(), "*.py", without=LEFT_OUT)
        # _sysconfigdata_*.py holds the paths and compiler flags of the machine that built the interpreter.
        return (read(path) for path in paths if not path.name.startswith("_sysconfigdata"))
