"""What folders mean: classes, splits, shards or nothing, and label files beside them."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.pictures import png, refused

from dsno.data.dataset import Dataset
from dsno.data.load import load_data


def tree(top: Path, *names: str, **texts: str) -> str:
    """Images of 8x8 pixels, the i-th of level 20 + i, and text files (`__` stands for a dot)."""
    for level, name in enumerate(names, 20):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(png(np.full((8, 8, 1), level, np.uint8)))
    for name, text in texts.items():
        (top / name.replace("__", ".")).write_text(text)
    return str(top)


def levels(data: Dataset) -> list[int]:
    """Which images there are, by their level less 20."""
    return ((data.images[:, 0, 0, 0] + 1) * 127.5 - 20).round().int().tolist()


def labels(data: Dataset) -> list[int] | None:
    return None if data.labels is None else data.labels.tolist()


def dataset_json(*pairs: tuple[str, Any]) -> str:
    return json.dumps({"labels": [list(pair) for pair in pairs] or None})


# ---- folders alone -----------------------------------------------------------------------------

SPLITS = ("test/ant/a.png", "train/ant/a.png", "train/bee/b.png", "val/bee/a.png")


def test_folders_called_train_and_test_are_splits(tmp_path: Path) -> None:
    path = tree(tmp_path, *SPLITS)
    train = load_data("folder", path)
    assert (train.class_names, labels(train), levels(train)) == (("ant", "bee"), [0, 1], [1, 2])
    assert "split train (test, val left out)" in train.notes
    assert levels(load_data("folder", path, split="test")) == [0]
    assert levels(load_data("folder", path, split="validation")) == [3]
    sentence = refused("no split 'dev2'", source="folder", path=path, split="dev2")
    assert "'test', 'train', 'val'" in sentence


def test_splits_need_no_classes(tmp_path: Path) -> None:
    data = load_data("folder", tree(tmp_path, "Train/a.png", "Test/a.png"))
    assert (levels(data), labels(data)) == ([0], None)


def test_splits_are_classes_if_these_are_named(tmp_path: Path) -> None:
    data = load_data("folder", tree(tmp_path, *SPLITS), classes=["train", "val", "test"])
    assert (labels(data), levels(data)) == ([2, 0, 0, 1], [0, 1, 2, 3])


def test_splits_that_are_not_clear_are_refused(tmp_path: Path) -> None:
    both = tree(tmp_path / "both", "val/a.png", "valid/a.png")
    refused("the splits val and valid", source="folder", path=both, split="validation")
    refused("no split 'train'", "data.split=val", source="folder", path=both)
    assert levels(load_data("folder", both, split="valid")) == [1]
    mixed = tree(tmp_path / "mixed", "cat/a.png", "test/a.png", "train/a.png")
    refused("test and train", "beside cat", "data.classes", source="folder", path=mixed)
    assert levels(load_data("folder", mixed, labels="none")) == [0, 1, 2]
    none = tree(tmp_path / "none", "cat/a.png", "dog/a.png")
    refused("no folder of the split 'test'", source="folder", path=none, split="test")


def test_a_vehicle_is_a_class(tmp_path: Path) -> None:
    data = load_data("folder", tree(tmp_path, "car/a.png", "plane/a.png", "train/a.png"))
    assert data.class_names == ("car", "plane", "train")


def test_the_only_folder_is_looked_into(tmp_path: Path) -> None:
    path = tree(tmp_path, "pets/train/cat/a.png", "pets/train/dog/a.png", "pets/test/cat/a.png")
    data = load_data("folder", path)
    assert (data.class_names, levels(data)) == (("cat", "dog"), [0, 1])
    assert data.notes[1:] == (
        "labels from the folders of pets/train",
        "in its only folder pets",
        "split train (test left out)",
    )
    literal = load_data("folder", path, labels="folders")
    assert literal.class_names == ("pets",)


def test_folders_of_five_digits_may_be_shards(tmp_path: Path) -> None:
    path = tree(tmp_path, "00000/img00000000.png", "00001/img00001000.png")
    sentence = refused("00000 and so on", source="folder", path=path)
    assert "data.labels=none or data.labels=folders" in sentence
    assert labels(load_data("folder", path, labels="none")) is None
    assert labels(load_data("folder", path, labels="folders")) == [0, 1]


def test_folders_that_are_numbers_in_another_order_are_refused(tmp_path: Path) -> None:
    path = tree(tmp_path, "0/a.png", "10/a.png", "2/a.png")
    refused("data.classes=11", "data.labels=folders", source="folder", path=path)
    numbers = load_data("folder", path, classes=11)
    assert (labels(numbers), numbers.num_classes) == ([0, 10, 2], 11)
    assert labels(load_data("folder", path, labels="folders")) == [0, 1, 2]
    refused("is 10, but there are 10 classes", source="folder", path=path, classes=10)


def test_folders_that_are_numbers_in_their_order_are_classes(tmp_path: Path) -> None:
    data = load_data("folder", tree(tmp_path, "0/a.png", "1/a.png", "2/a.png"))
    assert (labels(data), data.class_names) == ([0, 1, 2], ("0", "1", "2"))


def test_the_order_of_classes_can_be_given(tmp_path: Path) -> None:
    path = tree(tmp_path, "cat/a.png", "dog/a.png")
    data = load_data("folder", path, classes=["dog", "owl", "cat"])
    assert (labels(data), data.num_classes) == ([2, 0], 3)
    refused("The class 'cat'", "data.classes", source="folder", path=path, classes=["dog", "owl"])


def test_labels_can_be_ignored(tmp_path: Path) -> None:
    path = tree(tmp_path, "cat/a.png", "b.png")
    refused("images beside them, such as b.png", "data.labels=none", source="folder", path=path)
    data = load_data("folder", path, labels="none")
    assert (labels(data), levels(data)) == (None, [1, 0])


def test_copies_that_systems_make_are_skipped(tmp_path: Path) -> None:
    path = tree(tmp_path, "a.png", "__MACOSX/a.png", "@eaDir/b.png", "._a.png", ".cache/c.png")
    data = load_data("folder", path)
    assert levels(data) == [0]
    assert data.notes[-1] == "skipped 4 hidden (such as ._a.png)"


def test_links_are_followed_once(tmp_path: Path) -> None:
    tree(tmp_path, "top/cat/a.png", "elsewhere/b.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "top" / "dog")
    os.symlink(tmp_path / "top", tmp_path / "top" / "cat" / "loop")
    data = load_data("folder", str(tmp_path / "top"))
    assert (data.class_names, levels(data)) == (("cat", "dog"), [0, 1])


def test_a_broken_link_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    path = tree(tmp_path, "a.png")
    os.symlink(tmp_path / "gone.png", tmp_path / "b.png")
    refused("b.png cannot be read (it is no regular file)", source="folder", path=path)
    assert levels(load_data("folder", path, unreadable="skip")) == [0]


# ---- label files -------------------------------------------------------------------------------

SHARDS = ("00000/img00000000.png", "00000/img00000001.png", "00001/img00001000.png")
EDM = dataset_json((SHARDS[2], 0), (SHARDS[0], 6), (SHARDS[1], 0))


def test_labels_of_stylegan_and_edm_are_read(tmp_path: Path) -> None:
    data = load_data("folder", tree(tmp_path, *SHARDS, dataset__json=EDM))
    assert (labels(data), data.num_classes, data.class_names) == ([6, 0, 0], 7, None)
    assert data.notes == ("8-bit levels from 20 to 22", "labels from dataset.json")
    assert labels(load_data("folder", str(tmp_path), classes=10)) == [6, 0, 0]
    assert labels(load_data("folder", str(tmp_path), labels="folders")) == [0, 0, 1]
    assert labels(load_data("folder", str(tmp_path), labels="none")) is None


def test_labels_in_windows_paths_and_one_hot_are_read(tmp_path: Path) -> None:
    text = dataset_json(*((name.replace("/", "\\"), [0, 1]) for name in SHARDS))
    assert labels(load_data("folder", tree(tmp_path, *SHARDS, dataset__json=text))) == [1, 1, 1]


def test_no_labels_in_dataset_json_means_none(tmp_path: Path) -> None:
    data = load_data("folder", tree(tmp_path / "a", *SHARDS, dataset__json=dataset_json()))
    assert labels(data) is None
    path = tree(tmp_path / "b", "cat/a.png", "dog/a.png", dataset__json=dataset_json())
    refused("says that there are no labels", "such as cat", source="folder", path=path)
    refused("no labels in a dataset.json", source="folder", path=path, labels="file")
    assert labels(load_data("folder", path, labels="folders")) == [0, 1]


def test_a_label_file_that_the_folders_contradict_is_refused(tmp_path: Path) -> None:
    names = ("cat/a.png", "cat/b.png", "dog/a.png")
    path = tree(tmp_path, *names, dataset__json=dataset_json(*zip(names, (0, 1, 1), strict=True)))
    sentence = refused("cat/a.png and cat/b.png", source="folder", path=path)
    assert "dataset.json and the folders" in sentence
    assert "data.labels=file or data.labels=folders" in sentence
    assert labels(load_data("folder", path, labels="file")) == [0, 1, 1]
    assert labels(load_data("folder", path, labels="folders")) == [0, 0, 1]


def test_one_class_in_two_folders_is_a_contradiction(tmp_path: Path) -> None:
    names = ("cat/a.png", "dog/a.png")
    path = tree(tmp_path, *names, dataset__json=dataset_json(*zip(names, (0, 0), strict=True)))
    refused("disagree on cat/a.png and dog/a.png", source="folder", path=path)


def test_a_label_file_may_number_the_folders(tmp_path: Path) -> None:
    names = ("cat/a.png", "cat/b.png", "dog/a.png")
    path = tree(tmp_path, *names, dataset__json=dataset_json(*zip(names, (4, 4, 2), strict=True)))
    assert labels(load_data("folder", path)) == [4, 4, 2]


def test_images_without_a_label_are_refused(tmp_path: Path) -> None:
    path = tree(tmp_path, *SHARDS, dataset__json=dataset_json((SHARDS[0], 6)))
    sentence = refused("2 of 3 images have no label in dataset.json", source="folder", path=path)
    assert SHARDS[1] in sentence
    assert "data.labels=none or data.labels=folders" in sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read (JSONDecodeError"),
        ("[]", "cannot be read (TypeError"),
        ('{"label": []}', "KeyError: 'labels'"),
        ('{"labels": [["a.png"]]}', "expected pairs of a file name and a label"),
        ('{"labels": {"a.png": 1}}', "expected pairs"),
        ('{"labels": [["a.png", 1], ["a.png", 2]]}', "two labels for a.png"),
        ('{"labels": [["a.png", [0.5, 2.5]]]}', "one whole number or one-hot row"),
        ("[" * 100_000, "RecursionError"),
    ],
)
def test_a_damaged_label_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tree(tmp_path, "a.png", dataset__json=text)
    refused(words, "dataset.json", source="folder", path=path)


def test_a_table_of_hugging_face_is_read(tmp_path: Path) -> None:
    table = "file_name,label,text\na.png,dog,x\nb.png,ant,y\nc.png,dog,z\nd.png,ant,z\n"
    path = tree(tmp_path, "a.png", "b.png", "c.png", "d.png", metadata__csv=table)
    data = load_data("folder", path)
    assert (labels(data), data.class_names) == ([1, 0, 1, 0], ("ant", "dog"))
    assert labels(load_data("folder", path, label_column="text")) == [0, 1, 2, 2]
    refused("Unknown column", "'txt'", source="folder", path=path, label_column="txt")


def test_numbers_in_a_table_are_class_numbers(tmp_path: Path) -> None:
    path = tree(tmp_path, "a.png", "b.png", metadata__csv="file_name,label\nb.png,10\na.png,2\n")
    assert labels(load_data("folder", path)) == [2, 10]
    part = tree(tmp_path / "part", "a.png", "b.png", metadata__csv="file_name,label\na.png,\n")
    refused("2 of 2 images have no label in metadata.csv", source="folder", path=part)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata__jsonl", '{"file_name": null, "label": 1}\n'),
        ("metadata__jsonl", '{"file_name": 3, "label": 1}\n'),
        ("metadata__csv", "label,file_name\n3\n"),
    ],
)
def test_a_row_without_the_name_of_a_file_is_refused(tmp_path: Path, name: str, text: str) -> None:
    path = tree(tmp_path, "a.png", **{name: text})
    refused("expected a file_name in every row", "metadata", source="folder", path=path)


def test_lines_of_json_are_read_in_the_folder_of_the_split(tmp_path: Path) -> None:
    lines = '{"file_name": "x/a.png", "label": 1}\n\n{"file_name": "b.png", "label": 0}\n'
    tree(tmp_path, "train/x/a.png", "train/b.png", "test/c.png")
    (tmp_path / "train" / "metadata.jsonl").write_text(lines)
    data = load_data("folder", str(tmp_path))
    assert (labels(data), levels(data)) == ([0, 1], [1, 0])


def test_a_table_without_labels_leaves_the_folders(tmp_path: Path) -> None:
    table = "file_name,text\ncat/a.png,hello\n"
    path = tree(tmp_path, "cat/a.png", "dog/a.png", metadata__csv=table)
    assert labels(load_data("folder", path)) == [0, 1]
    refused("metadata.csv or metadata.jsonl", source="folder", path=path, labels="file")
    other = tree(tmp_path / "b", "a.png", metadata__csv="name,label\na.png,1\n")
    refused("KeyError: 'file_name'", source="folder", path=other)


def test_two_label_files_are_refused(tmp_path: Path) -> None:
    table, pairs = "file_name,label\na.png,1\n", dataset_json(("a.png", 0))
    path = tree(tmp_path, "a.png", metadata__csv=table, dataset__json=pairs)
    refused("in dataset.json and in metadata.csv", source="folder", path=path)
    several = tree(tmp_path / "b", "a.png", metadata__csv="file_name,label,labels\na.png,1,2\n")
    refused("columns label and labels", "data.label_column=label", source="folder", path=several)


# ---- zip files ---------------------------------------------------------------------------------


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


IMAGES = {name: png(np.full((8, 8, 1), 20 + i, np.uint8)) for i, name in enumerate(SHARDS)}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_file_of_edms_tool_is_read(tmp_path: Path, method: int) -> None:
    files = {**IMAGES, "dataset.json": EDM.encode(), "__MACOSX/._a.png": b"x"}
    data = load_data("folder", zipped(tmp_path / "cifar.zip", files, method))
    assert (data.name, labels(data), levels(data)) == ("cifar", [6, 0, 0], [0, 1, 2])
    assert data.notes[-1] == "skipped 1 hidden (such as __MACOSX/._a.png)"


def test_a_damaged_zip_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK no more")
    refused("cannot be read as a zip file", source="folder", path=str(tmp_path / "a.zip"))
    path = Path(zipped(tmp_path / "b.zip", {"a.png": IMAGES[SHARDS[0]]}))
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT")] ^= 255  # its checksum is wrong then
    path.write_bytes(content)
    refused("b.zip/a.png cannot be read", "CRC", source="folder", path=str(path))


def test_a_zip_file_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsno.data.listing.UNPACKED", 1000)
    path = zipped(tmp_path / "a.zip", {"a.png": bytes(5000)}, zipfile.ZIP_DEFLATED)
    refused("unpacks to 5,000 bytes", source="folder", path=path)


def test_one_folder_of_all_images_contradicts_no_label_file(tmp_path: Path) -> None:
    table = "file_name,label\nimages/a.png,1\nimages/b.png,0\n"
    path = tree(tmp_path, "images/a.png", "images/b.png", metadata__csv=table)
    assert labels(load_data("folder", path)) == [1, 0]
