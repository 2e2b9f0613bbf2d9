"""C++ and CUDA code: the headers that torch ships, one document per file, without the generated ATen/ops."""

from __future__ import annotations

from collections.abc import Iterator

from ..source import EmbeddedCorpus, read, spread


class Cpp(EmbeddedCorpus):
    """C++ and CUDA headers of torch."""

    licence = "BSD-3-Clause and the licences of the bundled libraries"
    packages = {"torch": "torch"}

    def documents(self) -> Iterator[str]:
        (torch,) = self.folders()
        paths = spread([torch / "include"], "*.h", "*.hpp", "*.cuh")
        return (read(path) for path in paths if path.parts[-3:-1] != ("ATen", "ops"))
