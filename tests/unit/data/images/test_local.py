"""The user's own images, and what can be wrong with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from paribus.data.images.batches import ImageBatches, held_out_images
from paribus.data.images.image_set import find_source, prepare
from paribus.data.images.local import HubImages, LocalImages
from paribus.data.images.spec import Images
from tests.unit.data.images.conftest import noise

WriteImages = Callable[..., Path]


@pytest.fixture
def write_images(tmp_path: Path) -> WriteImages:
    """Writes pictures of noise into a sub-folder for each class; gives the folder."""

    def write(name: str = "own", classes: tuple[str, ...] = ("cat", "dog"), number: int = 60, size: int = 6) -> Path:
        for seed, class_name in enumerate(classes):
            folder = tmp_path / name / class_name
            folder.mkdir(parents=True)
            for index, pixels in enumerate(noise(number, size, seed)):
                Image.fromarray(pixels).save(folder / f"{index:03}.png")
        return tmp_path / name

    return write


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a data set as a Parquet file, as the Hub has it; gives its name."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))

    def write(name: str = "set", number: int = 60, **columns: Any) -> str:
        pixels = [Image.fromarray(image) for image in noise(number)]
        labels = datasets.ClassLabel(names=["cat", "dog"])
        values = {"img": (pixels, datasets.Image()), "label": ([i % 2 for i in range(number)], labels), **columns}
        values = {key: value for key, value in values.items() if value is not None}
        table = datasets.Dataset.from_dict(
            {key: value for key, (value, _) in values.items()},
            datasets.Features({key: feature for key, (_, feature) in values.items()}),
        )
        (tmp_path / name).mkdir()
        table.to_parquet(tmp_path / name / "train.parquet")
        return f"hf:{tmp_path / name}"

    return write


def test_a_folder_of_classes(write_images: WriteImages, cache: Path) -> None:
    folder = write_images()
    source = find_source(str(folder))
    assert isinstance(source, LocalImages)
    assert source.class_names == ("cat", "dog")
    pictures = list(source.pictures())
    assert [picture.class_index for picture in pictures] == [0] * 60 + [1] * 60
    assert np.array_equal([picture.pixels for picture in pictures[:60]], noise(60, 6, 0))
    batches = ImageBatches(Images(str(folder), batch_size=8), 6, 3, cache)
    told = batches.manifests()["corpora"][str(folder)]
    assert told["classes"] == ["cat", "dog"] and told["licence"] == "the user's own"
    assert sum(split["images"] for split in told["splits"].values()) == 120


def test_the_same_images_elsewhere_are_the_same_data(write_images: WriteImages, cache: Path, tmp_path: Path) -> None:
    folder = write_images()
    for index, path in enumerate(sorted((folder / "cat").iterdir(), reverse=True)):
        (tmp_path / "moved" / "cat").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "moved" / "cat" / f"{index:03}.png")
    shutil.copytree(folder / "dog", tmp_path / "moved" / "dog")
    here, there = (prepare(str(tmp_path / name), 6, cache) for name in ("own", "moved"))
    assert here.folder != there.folder
    assert here.manifest_hash == there.manifest_hash


def test_classes_are_part_of_what_is_held_out(write_images: WriteImages, cache: Path) -> None:
    folder = write_images()
    before = held_out_images(Images(str(folder)), "test", 6, 3, cache, None)
    (folder / "cat").rename(folder / "elk")
    renamed = held_out_images(Images(str(folder)), "test", 6, 3, cache, None)
    (folder / "dog").rename(folder / "cat")
    (folder / "elk").rename(folder / "dog")
    swapped = held_out_images(Images(str(folder)), "test", 6, 3, cache, None)
    assert torch.equal(before.pixels, renamed.pixels) and torch.equal(before.pixels, swapped.pixels)
    assert renamed.class_names == ("dog", "elk") and swapped.class_names == before.class_names
    assert len({before.sha256, renamed.sha256, swapped.sha256}) == 3


def test_a_changed_folder_is_prepared_anew(write_images: WriteImages, cache: Path) -> None:
    folder = write_images()
    before = prepare(str(folder), 6, cache)
    assert prepare(str(folder), 6, cache).folder == before.folder
    Image.fromarray(noise(1, 6, 9)[0]).save(folder / "cat" / "new.png")
    after = prepare(str(folder), 6, cache)
    assert after.folder != before.folder and after.manifest_hash != before.manifest_hash


def test_what_is_hidden_or_no_picture_is_left_out(write_images: WriteImages) -> None:
    folder = write_images(number=3)
    (folder / ".git").mkdir()
    (folder / "notes.txt").write_text("about cats")
    (folder / "cat" / "notes.txt").write_text("about cats")
    (folder / "cat" / ".hidden.png").write_bytes(b"")
    (folder / "cat" / "more").mkdir()
    Image.fromarray(noise(1)[0]).save(folder / "cat" / "more" / "deeper.png")
    (folder / "dog" / "000.png").rename(folder / "dog" / "000.PNG")
    source = LocalImages(str(folder))
    assert source.class_names == ("cat", "dog")
    assert len(list(source.pictures())) == 6


def test_pictures_of_any_shape_become_squares(write_images: WriteImages, cache: Path) -> None:
    folder = write_images()
    Image.new("RGB", (40, 20), "white").save(folder / "cat" / "wide.jpg")
    Image.new("RGB", (3, 5), "blue").save(folder / "dog" / "small.bmp")
    prepared = prepare(str(folder), 12, cache)
    pixels = np.concatenate([prepared.pixels(split) for split in ("train", "validation", "test")])
    assert pixels.shape == (122, 12, 12, 3)
    for colour in ([255, 255, 255], [0, 0, 255]):
        assert sum((image == colour).all() for image in pixels) == 1


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no folder"),
        (lambda folder: [shutil.rmtree(path) for path in folder.iterdir()], "have no classes: a sub-folder for each"),
        (lambda folder: (folder / "bird").mkdir(), "no picture lies in the folder of class 'bird'; files that end in"),
        (lambda folder: shutil.rmtree(folder / "dog"), "one class only, 'cat'; two are needed"),
        (lambda folder: spoil(folder / "dog" / "007.png"), r"dog/007.png cannot be read as a picture: \S+"),
        (lambda folder: (folder / "cat" / "a.jpg").write_bytes(b"no"), "cat/a.jpg cannot be read as a picture: "),
        (
            lambda folder: [path.unlink() for path in folder.glob("*/*") if path.stem not in ("000", "001")],
            "are only 4|none is in train",
        ),
    ],
)
def test_folders_that_are_refused(
    write_images: WriteImages, cache: Path, change: Callable[[Path], Any], message: str
) -> None:
    folder = write_images(number=20)
    change(folder)
    with pytest.raises(ValueError, match=message) as refused:
        prepare(str(folder), 6, cache)
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "cats.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"there is no folder .*cats\.zip"):
        find_source(str(tmp_path / "cats.zip"))


def test_a_data_set_of_the_hub(hub: Callable[..., str], cache: Path) -> None:
    name = hub()
    source = find_source(name)
    assert isinstance(source, HubImages)
    assert source.class_names == ("cat", "dog")
    pictures = list(source.pictures())
    assert np.array_equal([picture.pixels for picture in pictures], noise(60))
    assert [picture.class_index for picture in pictures] == [0, 1] * 30
    assert sum(split["images"] for split in prepare(name, 4, cache).manifest["splits"].values()) == 60


def test_a_prepared_data_set_needs_the_hub_no_more(
    hub: Callable[..., str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = hub()
    before = prepare(name, 4, cache)
    monkeypatch.delattr(datasets, "load_dataset")
    assert prepare(name, 4, cache).manifest == before.manifest


def test_an_image_folder_is_a_data_set_too(write_images: WriteImages, hub: Callable[..., str], cache: Path) -> None:
    folder = write_images()
    assert prepare(f"hf:{folder}", 6, cache).manifest_hash == prepare(str(folder), 6, cache).manifest_hash


def test_the_column_of_the_class_is_chosen(hub: Callable[..., str]) -> None:
    coarse = ([0] * 60, datasets.ClassLabel(names=["mammal", "bird"]))
    name = hub(coarse=coarse)
    assert find_source(f"{name}#coarse").class_names == ("mammal", "bird")
    assert {picture.class_index for picture in find_source(f"{name}#coarse").pictures()} == {0}
    assert find_source(f"{name}#label").class_names == ("cat", "dog")
    with pytest.raises(
        ValueError, match=r"2 columns of the type ClassLabel; .* #FIELD chooses one; known: img \(Image"
    ):
        list(find_source(name).pictures())
    with pytest.raises(ValueError, match="no column 'fine' of the type ClassLabel"):
        list(find_source(f"{name}#fine").pictures())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"img": None}, r"0 columns of the type Image; one is needed.*known: label \(ClassLabel\)"),
        ({"label": None}, "0 columns of the type ClassLabel; one is needed"),
        ({"label": ([0] * 59 + [-1], datasets.ClassLabel(names=["a", "b"]))}, "image 59 of .* no class under 'label'"),
        ({"label": ([None] + [0] * 59, datasets.ClassLabel(names=["a", "b"]))}, "image 0 of .* no class under 'label'"),
        ({"img": ([None] * 60, datasets.Image())}, "image 0 of .* is missing under 'img'"),
        ({"img": ([{"bytes": b"no", "path": None}] * 60, datasets.Image())}, "image 0 of .* cannot be read as a pict"),
    ],
)
def test_data_sets_that_are_refused(hub: Callable[..., str], columns: dict[str, Any], message: str) -> None:
    name = hub(**columns)
    with pytest.raises(ValueError, match=message):
        list(find_source(name).pictures())


def test_hub_names() -> None:
    assert find_source("hf:someone/pictures@v1:small#fine").identity() == {
        "name": "someone/pictures",
        "revision": "v1",
        "config": "small",
        "field": "fine",
    }
    with pytest.raises(ValueError, match="the form is hf:NAME"):
        find_source("hf:")
