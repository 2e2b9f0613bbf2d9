"""The source files that one model needs, as the one flat folder in which transformers looks for code.

``mixers/gla.py`` becomes ``mixers_gla.py`` and ``from ..kernels.recurrence import x`` becomes
``from .kernels_recurrence import x``; nothing else of a file changes: the published code is the tested code.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..nn.component import CHANNELS, MIXERS, RESIDUALS
from ..nn.config import BlockConfig
from ..nn.registry import Registry
from ..nn.settings import read_settings
from ..nn.task import TASKS, TaskModel

ENTRY = "modeling_paribus"
"""The file that every ``auto_map`` value points at."""
_NN = MIXERS.folder
_PARTS = {"mixer": MIXERS, "channel": CHANNELS, "residual": RESIDUALS}
_PACKAGES = sys.stdlib_module_names | {"torch", "transformers"}
_READ_AS_IMPORT = re.compile(r"^\s*(?:from\s+\.(?P<f>\S+)\s+import|import\s+\.(?P<i>\S+)\s*$)", re.MULTILINE)
_ENTRY = '''"""What transformers loads. Made by paribus.

Every file of this folder is named here, because transformers copies only files that it finds named. The
models are defined here, because saving a model again copies the file that defines it and those it names.
"""

{imports}


class ParibusModel(_ParibusModel):
    """Token ids, pixels or embeddings -> hidden states."""


class {model}(_{model}):
    """{summary}"""
'''


def flatten(task: str, blocks: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """All code of a model for `task` made of `blocks`.

    Returns:
        The text of each file by its name without ``.py``, the entry file included; and the blocks, in which a
        user's own ``path/to/mine.py`` is now named ``mine``.

    Raises:
        ValueError: an import that a published checkpoint cannot carry, or a user's file whose name is taken.
    """
    renamed = {name: asdict(read_settings(BlockConfig, block, f"block '{name}'")) for name, block in blocks.items()}
    model_class = TASKS.component(task, TaskModel)
    paths = {f"tasks.{task}": _NN / "tasks" / f"{task}.py"}
    for block in renamed.values():
        for part, registry in _PARTS.items():
            if block[part] is None:
                continue
            module, path = _component(registry, block[part]["name"])
            if paths.setdefault(module, path).resolve() != path.resolve():
                raise ValueError(f"'{path}' and '{paths[module]}' cannot both be '{_flat(module)}.py'")
            block[part] = {**block[part], "name": path.stem}
    texts: dict[str, str] = {}
    waiting = list(paths)
    while waiting:
        module = waiting.pop()
        if _flat(module) not in texts:
            path = paths.get(module, _NN.joinpath(*module.split(".")).with_suffix(".py"))
            texts[_flat(module)], needed = rewrite(path.read_text(encoding="utf-8"), module, str(path))
            waiting += sorted(needed)
    texts[ENTRY] = _entry(texts, task, model_class)
    return texts, renamed


def rewrite(text: str, module: str, where: str) -> tuple[str, set[str]]:
    """The file `module` (dotted, below ``paribus.nn``) for a flat folder, and the modules that it imports.

    Args:
        where: the file's name in error messages.

    Raises:
        ValueError: an import of anything but the standard library, torch, transformers and files of
            ``paribus.nn``; one that cannot be rewritten; or a string that would be read as an import.
    """
    tree = ast.parse(text, filename=where)
    source = text.encode()
    starts = [0, *(found.end() for found in re.finditer(rb"\n", source))]
    needed = set()
    ours = list(_imports(tree, module, where))
    ours.sort(key=lambda found: (found[0].lineno, found[0].col_offset))
    for node, place, name in reversed(ours):  # from the end, so that earlier positions stay true
        target = _target(name, place)
        start = starts[node.lineno - 1] + node.col_offset
        found = re.compile(rb"from[ \t]+[.\w]+[ \t]+import\b").match(source, start)
        if found is None:
            raise ValueError(f"{place}: write the import as 'from x import y'; this form cannot be published")
        source = source[:start] + f"from .{_flat(target)} import".encode() + source[found.end() :]
        needed.add(target)
    flat = source.decode()
    names = set(map(_flat, needed))
    for line in _READ_AS_IMPORT.finditer(flat):
        if (line["f"] or line["i"]) not in names:
            seen = line[0].strip()
            raise ValueError(f"{where}: transformers reads the text '{seen}' as an import; reword it")
    return flat, needed


def _imports(tree: ast.Module, module: str, where: str) -> Iterator[tuple[ast.ImportFrom, str, str]]:
    """Each import from paribus: the statement, its place for messages, the absolute name of its source."""
    package = ["paribus", "nn", *module.split(".")[:-1]]
    guarded = {id(node) for outer in ast.walk(tree) if isinstance(outer, ast.Try) for node in ast.walk(outer)}
    for node in ast.walk(tree):
        place = f"{where}, line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            names = [".".join([*above, *([node.module] if node.module else [])])]
        else:
            continue
        for name in names:
            root = name.partition(".")[0]
            if root == "paribus" and isinstance(node, ast.ImportFrom):
                yield node, place, name
            elif root == "paribus":
                raise ValueError(f"{place}: 'import {name}' cannot be published; write 'from {name} import'")
            elif root not in _PACKAGES and id(node) not in guarded:
                raise ValueError(
                    f"{place}: imports '{root}'; a published model may import only the standard library, "
                    "torch, transformers and files of paribus.nn"
                )


def _target(name: str, place: str) -> str:
    """``kernels.attention`` for ``paribus.nn.kernels.attention``."""
    inner = name.removeprefix("paribus.nn.")
    if inner == name or not _NN.joinpath(*inner.split(".")).with_suffix(".py").is_file():
        raise ValueError(f"{place}: imports from '{name}'; only files of paribus.nn can be published")
    return inner


def _component(registry: Registry, name: str) -> tuple[str, Path]:
    """The module in which the component `name` is published, and its file."""
    if not name.endswith(".py"):
        return f"{registry.kind}.{name}", registry.folder / registry.kind / f"{name}.py"
    path = Path(name)
    if path.stem in registry.names():
        raise ValueError(f"'{name}' has the name of the library's own '{path.stem}'; rename it to publish it")
    if not path.stem.isidentifier():
        raise ValueError(f"'{name}' cannot be imported by that name; use letters, digits and _ to publish it")
    return f"{registry.kind}.{path.stem}", path


def _flat(module: str) -> str:
    return module.replace(".", "_")


def _entry(texts: Mapping[str, str], task: str, model_class: type[TaskModel]) -> str:
    """The entry file: one real name from every other file."""
    model = model_class.__name__
    names = {name: _any_name(text, name) for name, text in sorted(texts.items())}
    names |= {
        "backbone": "ParibusModel as _ParibusModel",
        "config": "ParibusConfig",
        f"tasks_{task}": f"{model} as _{model}",
    }
    imports = "\n".join(f"from .{module} import {name}" for module, name in names.items())
    summary = (model_class.__doc__ or "").partition("\n")[0]
    return _ENTRY.format(imports=imports, model=model, summary=summary)


def _any_name(text: str, module: str) -> str:
    """A name that the file defines, a class or function if it can be, and what the entry file calls it."""
    definitions, others = [], []
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            definitions.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            others += [target.id] if isinstance(target, ast.Name) else []
    public = [name for name in definitions if not name.startswith("_")]
    names = public + definitions + others
    if not names:
        raise ValueError(f"'{module}.py' defines nothing; there is no need to import it")
    return f"{names[0]} as _{module}"
