"""Registries without lists: the name of a component is the name of its file.

A registry looks for its files in a folder of the library (``nn/mixers/gla.py``) or, in a published checkpoint where
everything lies in one flat folder, under a prefix (``mixers_gla.py``). Listing names imports nothing; getting one
imports that one file. A path to a user's own file is a name too.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from .settings import nearest


class Registry:
    """The components of one kind, one file each; each file defines exactly one public subclass of `base`.

    Args:
        kind: the folder's name, in the plural ("mixers").
        package: the Python package that holds the folder (or the flat files).
        folder: the directory of that package.
    """

    def __init__(self, kind: str, package: str, folder: Path) -> None:
        self.kind = kind
        self.package = package
        self.folder = folder

    @property
    def flat(self) -> bool:
        """Whether this is a published checkpoint, where ``mixers/gla.py`` has become ``mixers_gla.py``."""
        return not (self.folder / self.kind).is_dir()

    def names(self) -> list[str]:
        """All names, sorted, found by listing files; nothing is imported."""
        if self.flat:
            prefix = f"{self.kind}_"
            return sorted(path.stem.removeprefix(prefix) for path in self.folder.glob(f"{prefix}*.py"))
        return sorted(p.stem for p in (self.folder / self.kind).glob("*.py") if not p.stem.startswith("_"))

    def module(self, name: str) -> ModuleType:
        """The module of the component `name`, or of the user's file at the path `name`.

        Raises:
            ValueError: no such component; the message names the nearest one.
        """
        if name.endswith(".py"):
            return _import_file(Path(name), self.kind)
        if name not in self.names():
            raise ValueError(f"unknown {self.kind.removesuffix('s')} '{name}'; {nearest(name, self.names())}")
        return importlib.import_module(f".{self.kind}_{name}" if self.flat else f".{self.kind}.{name}", self.package)

    def component(self, name: str, base: type) -> type[Any]:
        """The one subclass of `base` that the file of `name` defines.

        Raises:
            ValueError: unknown name, or a file that defines none or several.
        """
        module = self.module(name)
        found = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
        ]
        if len(found) != 1:
            names = ", ".join(cls.__name__ for cls in found) or "none"
            raise ValueError(f"{module.__file__} must define exactly one {base.__name__}; it defines {names}")
        return found[0]


def _import_file(path: Path, kind: str) -> ModuleType:
    """Import a user's own component file under a module name of its own, once for each content."""
    if not path.is_file():
        raise ValueError(f"{kind.removesuffix('s')} file '{path}' does not exist")
    source = path.read_bytes()
    name = f"paribus_user_{kind}_{path.stem}_{hashlib.sha256(source).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, f"a .py file has a loader: {path}"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        del sys.modules[name]
        raise ValueError(f"{kind.removesuffix('s')} file '{path}' cannot be imported: {problem}") from problem
    return module
