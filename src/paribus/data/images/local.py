"""The user's own images: a folder with a sub-folder for each class, or a Hugging Face data set."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

from ..local import HubCorpus
from .pixels import decoded
from .source import ImageSource, Picture

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
NUM_SHOWN = 10


class LocalImages(ImageSource):
    """A folder ``DIR/CLASS/PICTURE.png``: the sub-folders' names, sorted, are the classes.

    What is hidden (its name begins with a dot) and what is no picture by its suffix is left out. Pictures count only
    where they lie directly in the folder of their class.

    Raises:
        ValueError: no such folder, no classes in it, or a class without pictures.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path(name).expanduser()
        if not self.path.is_dir():
            raise ValueError(f"images '{name}': there is no folder {self.path}")
        folders = sorted(path for path in self.path.iterdir() if path.is_dir() and path.name[0] != ".")
        if not folders:
            raise ValueError(f"images '{name}' have no classes: a sub-folder for each, with its pictures, is needed")
        self.files = {folder.name: _pictures_in(folder) for folder in folders}
        for class_name, files in self.files.items():
            if not files:
                raise ValueError(
                    f"images '{name}': no picture lies in the folder of class '{class_name}'; "
                    f"files that end in {' '.join(SUFFIXES)} are pictures"
                )

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.files)

    @property
    def version(self) -> str:
        return "as on disk"

    def identity(self) -> dict[str, Any]:
        states = [
            (path.relative_to(self.path).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
            for files in self.files.values()
            for path in files
        ]
        return {"path": str(self.path.resolve()), "files": states}

    def pictures(self) -> Iterator[Picture]:
        for class_index, files in enumerate(self.files.values()):
            yield from (Picture(decoded(path, str(path)), class_index) for path in files)


class HubImages(ImageSource):
    """The train split of a Hugging Face data set: ``hf:NAME[@REVISION][:CONFIGURATION][#FIELD]``.

    Its one column of the type Image is read; FIELD names the column of the type ClassLabel, where there are several.

    Raises:
        ValueError: the name has another form.
    """

    licence = "see the data set's page"

    def __init__(self, name: str) -> None:
        self.name = name
        self.hub = HubCorpus(name)

    @property
    def version(self) -> str:
        return self.hub.version

    def identity(self) -> dict[str, Any]:
        return self.hub.identity()

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self._rows.features[self._class_field].names)

    def pictures(self) -> Iterator[Picture]:
        import datasets

        images, classes = self._column("Image", None), self._class_field
        # Decoded here, so that a picture that cannot be read has a name.
        rows = self._rows.cast_column(images, datasets.Image(decode=False)).select_columns([images, classes])
        for number, row in enumerate(rows):
            where = f"image {number} of '{self.name}'"
            class_index, stored = row[classes], row[images]
            if class_index is None or class_index < 0:
                raise ValueError(f"{where} has no class under '{classes}'")
            if stored is None:
                raise ValueError(f"{where} is missing under '{images}'")
            file = Path(stored["path"]) if stored["bytes"] is None else BytesIO(stored["bytes"])
            yield Picture(decoded(file, where), class_index)

    @cached_property
    def _rows(self) -> Any:
        return self.hub.load(streaming=False)

    @property
    def _class_field(self) -> str:
        return self._column("ClassLabel", self.hub.parts["field"])

    def _column(self, kind: str, wanted: str | None) -> str:
        """The column of a type: the one of this name, or else the only one."""
        types = {name: type(feature).__name__ for name, feature in self._rows.features.items()}
        found = [name for name, of in types.items() if of == kind and wanted in (None, name)]
        if len(found) == 1:
            return found[0]
        told = ", ".join(f"{name} ({of})" for name, of in list(types.items())[:NUM_SHOWN])
        what = f"no column '{wanted}' of the type {kind}" if wanted else f"{len(found)} columns of the type {kind}"
        raise ValueError(
            f"images '{self.name}' have {what}; one is needed, and of several ClassLabel columns #FIELD chooses one; "
            f"known: {told}"
        )


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()
    )
