"""The pages that are made of docstrings: a hook of mkdocs that reads the sources.

One page for each kind of component lists every file of its folder: the module docstring, the settings and
their defaults, the presets. What is put together at run time is a table of what `paribus list` prints. One page for
each layer of the library hands its modules to mkdocstrings.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "paribus"
KINDS = {
    "mixers": (PACKAGE / "nn" / "mixers", "Move information between tokens: `[B, T, D] -> [B, T, D]`."),
    "channels": (PACKAGE / "nn" / "channels", "Move information within a token: the other half of a block."),
    "hybrids": (PACKAGE / "nn" / "hybrids.py", "Which mixer stands in which layer; the name is a model's `layout`."),
    "residuals": (PACKAGE / "nn" / "residuals", "How a block puts its branches, norms and stream together."),
    "tasks": (PACKAGE / "nn" / "tasks", "What a model is for; the name and its settings are a model's `task`."),
    "corpora": (PACKAGE / "data" / "corpora", "Embedded text; a path of yours is a corpus too."),
    "images": (PACKAGE / "data" / "images" / "sets", "Embedded sets of images; a folder of yours is a set too."),
    "decays": (PACKAGE / "nn" / "decay.py", "How fast a recurrent state forgets; mixers share them."),
    "features": (PACKAGE / "nn" / "features.py", "What linear attention makes of queries and keys."),
    "norms": (PACKAGE / "nn" / "norm.py", "What stands before each mixer."),
    "initializations": (PACKAGE / "nn" / "initialization.py", "Where weights begin."),
    "schedules": (PACKAGE / "optim" / "schedule.py", "The learning rate along a run."),
}
"""A folder has one component in each file; a file has a dictionary of them by the kind's name in capitals."""
TABLES = {
    "positions": "How a model knows where a token stands.",
    "optimizers": "The name is a run's `optimizer.name`; further settings are those of the class.",
    "settings": "Everything that a run file may set and a study may vary, by its dotted path, with [default].",
}
"""Kinds whose page is what `paribus list` prints."""
Documented = ast.Module | ast.ClassDef | ast.FunctionDef
LAYERS = ("nn", "data", "optim", "evaluation", "training", "publish", "studies", "benchmarks", "catalogue", "cli")


def on_config(config: MkDocsConfig) -> None:
    """Add the generated pages to the navigation."""
    assert config.nav is not None, "mkdocs.yml has a navigation"
    for title, folder in (("Components", "components"), ("Reference", "reference")):
        config.nav.append({title: [path for path in pages() if path.startswith(folder)]})


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site; nothing is written into the sources."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """The Markdown of every generated page by its path inside the documentation."""
    kinds = {kind: kind_page(kind, *place) for kind, place in KINDS.items() if place[0].exists()}
    layers = {layer: layer_page(layer) for layer in LAYERS if any(layer_modules(layer))}
    tables = {kind: table_page(kind, introduction) for kind, introduction in TABLES.items()}
    return {
        **{f"components/{kind}.md": text for kind, text in sorted({**kinds, **tables}.items())},
        **{f"reference/{layer}.md": text for layer, text in layers.items()},
    }


def kind_page(kind: str, place: Path, introduction: str) -> str:
    """All components of one kind, after a table of their first lines."""
    found = dict(files_of(place) if place.is_dir() else entries_of(place, kind.upper()))
    first = {name: (ast.get_docstring(node) or name).splitlines()[0] for name, (node, _) in found.items()}
    rows = [f"| [`{name}`](#{name}) | {prose(line)} |" for name, line in first.items()]
    parts = [
        f"# {kind.capitalize()}",
        introduction,
        "\n".join(["| name | what it is |", "| --- | --- |", *rows]),
    ]
    return "\n\n".join([*parts, *(component(name, *where) for name, where in found.items())])


def table_page(kind: str, introduction: str) -> str:
    """A table of what `paribus list` prints of one kind."""
    from paribus.catalogue import list_components

    rows = [f"| `{name}` | {prose(line)} |" for name, line in list_components(kind)]
    return "\n\n".join(
        [f"# {kind.capitalize()}", introduction, "\n".join(["| name | what it is |", "| --- | --- |", *rows])]
    )


def files_of(folder: Path) -> Iterator[tuple[str, tuple[Documented, Path]]]:
    """The components of a folder: the file's name is the component's."""
    for path in sorted(folder.glob("*.py")):
        if not path.stem.startswith("_"):
            yield path.stem, (ast.parse(path.read_text(encoding="utf-8")), path)


def entries_of(path: Path, registry: str) -> Iterator[tuple[str, tuple[Documented, Path]]]:
    """The components of a file: the classes and functions that the dictionary `registry` names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    for name, value in dictionary(tree, registry).items():
        if isinstance(value, ast.Name) and value.id in defined:
            yield name, (defined[value.id], path)


def component(name: str, node: Documented, path: Path) -> str:
    """One component: its docstring, its settings, its presets."""
    parts = [f"## {name} {{ #{name} }}", docstring(ast.get_docstring(node) or "")]
    rows = list(settings(node))
    if rows:
        table = ["| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
        parts.append("\n".join([*table, *(f"| {' | '.join(row)} |" for row in rows)]))
    presets = dictionary(node, "PRESETS")
    if presets:
        parts.append("Presets:\n\n" + "\n".join(f"* `{key}`: {cell(value)}" for key, value in presets.items()))
    source = path.relative_to(PACKAGE.parents[1]).as_posix()
    return "\n\n".join([*parts, f"Defined in `{source}`."])


def dictionary(node: Documented, name: str) -> dict[str, ast.expr]:
    """The entries of a dictionary that is written out at the top level of a file."""
    for statement in node.body:
        target = statement.target if isinstance(statement, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == name and isinstance(statement.value, ast.Dict):
            return dict(zip(map(ast.literal_eval, statement.value.keys), statement.value.values, strict=True))
    return {}


def docstring(text: str) -> str:
    """A docstring as Markdown: indented paragraphs are equations, ``Field: text`` paragraphs become lists."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.splitlines()
        if all(line.startswith("    ") for line in lines):
            parts.append("```text\n" + "\n".join(line[4:] for line in lines) + "\n```")
        elif re.match(r"[A-Z]\w+:\s", paragraph):
            fields = re.split(r"\n(?=[A-Z]\w+:\s)", paragraph)
            pairs = (re.sub(r"\s+", " ", field).split(": ", 1) for field in fields)
            parts.append("\n".join(f"* **{name}**: {prose(meaning)}" for name, meaning in pairs))
        else:
            parts.append(prose(re.sub(r"\s+", " ", paragraph)))
    return "\n\n".join(parts)


def prose(text: str) -> str:
    """Plain text with its Markdown signs escaped, code in backticks kept, and papers linked."""
    pieces = re.split(r"(`+[^`]+`+)", text)
    pieces[::2] = [re.sub(r"([\\*_\[\]|#])", r"\\\1", piece).replace("<", "&lt;") for piece in pieces[::2]]
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", "".join(pieces))


def settings(node: Documented) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each field of the component's ``Config``, or of the class itself."""
    configs = [inner for inner in ast.walk(node) if isinstance(inner, ast.ClassDef) and inner.name == "Config"]
    for config in configs or ([node] if isinstance(node, ast.ClassDef) else []):
        for field, after in zip(config.body, [*config.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation):
                told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                meaning = prose(re.sub(r"\s+", " ", str(after.value.value))) if told else ""
                yield cell(field.target), cell(field.annotation), cell(field.value), meaning


def cell(node: ast.expr | None) -> str:
    """An expression as code inside a table."""
    return "" if node is None else "`" + ast.unparse(node).replace("|", "\\|") + "`"


def layer_modules(layer: str) -> Iterator[str]:
    """The public modules of one layer, the components' own files left out."""
    folders = {place for place, _ in KINDS.values()}
    single = PACKAGE / f"{layer}.py"
    for path in [single] if single.exists() else sorted((PACKAGE / layer).rglob("*.py")):
        if not path.stem.startswith("_") and path.parent not in folders:
            yield ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def layer_page(layer: str) -> str:
    """The modules of one layer, for mkdocstrings to fill in."""
    return "\n\n".join([f"# paribus.{layer}", *(f"::: {module}" for module in layer_modules(layer))])
