"""Hugging Face data sets: rows in order, columns found, a sentence for what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pictures import as_floats, png, random_levels, refused

from dsno.data import decode
from dsno.data.dataset import Dataset
from dsno.data.decode import Encoded
from dsno.data.load import load_data


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The `datasets` library, with its copies in a folder of the test."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    library.disable_progress_bars()
    return library


LEVELS = random_levels(6, 8, 10, 3)
LABELS = [2, 0, 1, 1, 0, 2]


def table(
    hub: Any, *, image: str = "img", label: str = "label", rows: slice = slice(None), **more: Any
) -> Any:
    """Rows with an image and a class."""
    levels, labels = LEVELS[rows], LABELS[rows]
    features = {
        image: hub.Image(),
        label: hub.ClassLabel(names=["ant", "bee", "cat"]),
        **{name: kind for name, (kind, _) in more.items()},
    }
    columns = {
        image: [{"bytes": png(x), "path": None} for x in levels],
        label: labels,
        **{name: values for name, (_, values) in more.items()},
    }
    return hub.Dataset.from_dict(columns, hub.Features(features))


def assert_all_rows(loaded: Dataset) -> None:
    assert loaded.images.equal(as_floats(LEVELS))
    assert loaded.labels is not None
    assert loaded.labels.tolist() == LABELS
    assert loaded.num_classes == 3


def test_parquet_shards_are_read_in_order(tmp_path: Path, hub: Any) -> None:
    folder = tmp_path / "insects"
    folder.mkdir()
    (folder / "README.md").write_text("Some insects.\n")
    table(hub, rows=slice(0, 4)).to_parquet(folder / "train-00000-of-00002.parquet")
    table(hub, rows=slice(4, 6)).to_parquet(folder / "train-00001-of-00002.parquet")
    table(hub, rows=slice(2, 3)).to_parquet(folder / "test-00000-of-00001.parquet")
    loaded = load_data("huggingface", str(folder))
    assert_all_rows(loaded)
    assert (loaded.name, loaded.class_names) == ("insects", ("ant", "bee", "cat"))
    test = load_data("huggingface", str(folder), split="test")
    assert test.images.equal(as_floats(LEVELS[2:3]))
    assert test.num_classes == 3  # the names say so, whatever is there
    refused("split 'val'", "Unknown split", source="huggingface", path=str(folder), split="val")


def test_one_parquet_file_is_read(tmp_path: Path, hub: Any) -> None:
    path = tmp_path / "insects.parquet"
    table(hub).to_parquet(path)
    loaded = load_data("huggingface", str(path))
    assert_all_rows(loaded)
    assert loaded.name == "insects"
    assert len(load_data("huggingface", str(path), split="train[1:3]")) == 2
    missing = str(tmp_path / "none.parquet")
    refused("nothing at", "none.parquet", source="huggingface", path=missing)


def test_parquet_that_another_program_wrote_is_read(tmp_path: Path, hub: Any) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = [png(x) for x in LEVELS]
    for name, cells in (("a", files), ("b", [{"bytes": file, "path": "x.png"} for file in files])):
        path = tmp_path / f"{name}.parquet"
        parquet.write_table(pyarrow.table({"image": cells, "labels": LABELS}), path)
        assert_all_rows(load_data("huggingface", str(path)))


@pytest.mark.parametrize("splits", [False, True])
def test_what_save_to_disk_wrote_is_read(tmp_path: Path, hub: Any, splits: bool) -> None:
    rows = table(hub)
    whole = hub.DatasetDict({"train": rows, "test": rows.select([5])}) if splits else rows
    whole.save_to_disk(tmp_path / "insects")
    path = str(tmp_path / "insects")
    assert_all_rows(load_data("huggingface", path))
    if splits:
        assert len(load_data("huggingface", path, split="test")) == 1
    refused("Unknown split", "'tests'", source="huggingface", path=path, split="tests")


def test_a_large_data_set_is_decoded_as_its_rows_are_asked_for(
    tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(hub).to_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr(decode, "IN_MEMORY", 10)
    loaded = load_data("huggingface", str(tmp_path / "a.parquet"))
    assert isinstance(loaded.pixels, Encoded)
    assert loaded.rows(torch.tensor([4, 4, 0])).equal(as_floats(LEVELS)[[4, 4, 0]])
    assert_all_rows(loaded)


def test_usual_names_decide_among_columns_of_one_type(tmp_path: Path, hub: Any) -> None:
    coarse = (hub.ClassLabel(names=["x", "y"]), [0] * 6)
    mask = (hub.Image(), [{"bytes": png(LEVELS[0]), "path": None}] * 6)
    path = str(tmp_path / "a.parquet")
    table(hub, label="fine_label", coarse_label=coarse, mask=mask).to_parquet(path)
    assert_all_rows(load_data("huggingface", path))
    given = load_data("huggingface", path, image_column="mask", label_column="coarse_label")
    assert given.images.equal(as_floats(LEVELS[[0] * 6]))
    assert given.class_names == ("x", "y")


def test_columns_that_are_not_clear_are_refused(tmp_path: Path, hub: Any) -> None:
    path = str(tmp_path / "a.parquet")
    kind = (hub.ClassLabel(names=["x"]), [0] * 6)
    other = (hub.Image(), [{"bytes": png(LEVELS[0]), "path": None}] * 6)
    table(hub, image="left", right=other, label="kind", order=kind).to_parquet(path)
    options = {"source": "huggingface", "path": path}
    refused("2 columns of images", "left", "name it in data.image_column", **options)
    refused("2 columns of labels, kind, order", image_column="left", **options)
    refused("did you mean 'left'?", image_column="lfet", **options)
    refused("'kind'", "holds no images", image_column="kind", **options)
    plain = str(tmp_path / "b.parquet")
    hub.Dataset.from_dict({"text": ["a"]}).to_parquet(plain)
    refused("no columns of images among text", source="huggingface", path=plain)


def test_a_data_set_without_labels_is_read(tmp_path: Path, hub: Any) -> None:
    table(hub).remove_columns("label").to_parquet(tmp_path / "a.parquet")
    loaded = load_data("huggingface", str(tmp_path / "a.parquet"))
    assert loaded.labels is None
    assert loaded.images.equal(as_floats(LEVELS))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0.5] * 6, ["column 'label' of", "float64", "one whole number", "data.labels=none"]),
        ([0, 1, None, 0, 1, 0], ["1 of 6 images have no label in column 'label'"]),
        ([0, 1, -1, 0, 1, 0], ["is -1", "images without a class", "data.labels=none"]),
        ([[0, 1], [1], [0], [2], [0], [1]], ["are int, list, such as [0, 1]", "data.labels=none"]),
        (["a cat", "a dog", "ants", "bees", "a cat", "a cow"], ["5 of 6 labels", "hardly classes"]),
        (["0", "10", "2", "0", "10", "2"], ["'0' and '2'", "data.classes=11"]),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(
    tmp_path: Path, hub: Any, labels: list[Any], words: list[str]
) -> None:
    rows = table(hub).remove_columns("label").add_column("label", labels)
    rows.to_parquet(tmp_path / "a.parquet")
    refused(*words, source="huggingface", path=str(tmp_path / "a.parquet"))


def test_labels_beyond_the_named_classes_are_refused(tmp_path: Path, hub: Any) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = str(tmp_path / "a.parquet")
    table(hub).to_parquet(path)
    stored = parquet.read_table(path)
    column = pyarrow.array([0, 1, 2, 3, 0, 0])
    parquet.write_table(stored.set_column(1, stored.schema.field("label"), column), path)
    refused("is 3, but there are 3 classes", source="huggingface", path=path)


def test_a_damaged_or_empty_row_is_named(tmp_path: Path, hub: Any) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = [png(x) for x in LEVELS[:3]]
    for name, bad, words in (
        ("a", {"bytes": files[1][:100], "path": None}, "cannot be read"),
        ("b", {"bytes": None, "path": None}, "is empty"),
        ("c", None, "is empty"),
    ):
        cells = [{"bytes": files[0], "path": None}, bad, {"bytes": files[2], "path": None}]
        path = str(tmp_path / f"{name}.parquet")
        parquet.write_table(pyarrow.table({"image": cells}), path)
        refused(f"image 1 of {path} {words}", source="huggingface", path=path)


def test_damaged_parquet_and_an_empty_folder_are_refused(tmp_path: Path, hub: Any) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    path = str(tmp_path / "a.parquet")
    refused("cannot be loaded", "a.parquet", source="huggingface", path=path)
    (tmp_path / "nothing").mkdir()
    refused("cannot be loaded", source="huggingface", path=str(tmp_path / "nothing"))


def test_a_split_without_rows_is_refused(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "load_dataset", lambda *_, **__: table(hub).select([]))
    refused("'train' of someone/empty is empty", source="huggingface", path="someone/empty")


def test_a_hub_name_is_asked_for_by_name_and_split(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        return table(hub)

    monkeypatch.setattr(hub, "load_dataset", load)
    loaded = load_data("huggingface", "someone/insects-v1.5", split="dev")
    assert asked == [(("someone/insects-v1.5",), {"split": "dev"})]
    assert loaded.name == "insects-v1.5"
    assert_all_rows(loaded)


def test_a_hub_that_cannot_be_reached_is_one_sentence(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach it\nafter many attempts")

    monkeypatch.setattr(hub, "load_dataset", unreachable)
    options = {"source": "huggingface", "path": "someone/unreachable"}
    refused("'someone/unreachable' cannot be reached on the Hub", "local path", **options)


def test_offline_a_name_that_was_never_loaded_is_refused(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.config, "HF_HUB_OFFLINE", True)
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("cannot be reached on the Hub", source="huggingface", path="someone/offline")


def test_what_the_library_refuses_is_passed_on_in_one_sentence(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scripted(*_: Any, **__: Any) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found x.py\nmore")

    monkeypatch.setattr(hub, "load_dataset", scripted)
    words = "cannot be loaded (Dataset scripts are no longer supported, but found x.py);"
    refused(words, source="huggingface", path="someone/scripted")


@pytest.mark.parametrize("path", ["./none", "../none", "a/b/c", "a b", "none.parquet"])
def test_a_path_that_is_neither_here_nor_a_name_is_refused(hub: Any, path: str) -> None:
    refused("nothing at", path, "name on the Hub", source="huggingface", path=path)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    words = "pip install 'dsno[data]'"
    refused(words, source="huggingface", path="someone/not-installed")


def plain_table(hub: Any, path: Path, labels: list[Any]) -> str:
    """A parquet file of the images with a column `label` of any type."""
    table(hub).remove_columns("label").add_column("label", labels).to_parquet(path)
    return str(path)


@pytest.mark.parametrize(
    ("labels", "expected", "names"),
    [
        (["cat", "ant", "bee", "bee", "ant", "cat"], LABELS, ("ant", "bee", "cat")),
        ([True, False, True, True, False, True], [1, 0, 1, 1, 0, 1], ("false", "true")),
        ([[2], [0], [1], [1], [0], [2]], LABELS, None),
        ([[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]], LABELS, None),
        ([2.0, 0.0, 1.0, 1.0, 0.0, 2.0], LABELS, None),
        ([None] * 6, None, None),
    ],
)
def test_labels_of_other_types_are_read(
    tmp_path: Path, hub: Any, labels: list[Any], expected: Any, names: Any
) -> None:
    loaded = load_data("huggingface", plain_table(hub, tmp_path / "a.parquet", labels))
    found = None if loaded.labels is None else loaded.labels.tolist()
    assert (found, loaded.class_names) == (expected, names)


def test_labels_can_be_ignored(tmp_path: Path, hub: Any) -> None:
    path = plain_table(hub, tmp_path / "a.parquet", [None, 0.5, 1, 2, 3, 4])
    assert load_data("huggingface", path, labels="none").labels is None


def test_damaged_rows_are_skipped_if_asked(tmp_path: Path, hub: Any) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = [png(x) for x in LEVELS]
    files[1], files[4] = b"hello", None
    path = str(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"image": files, "label": LABELS}), path)
    loaded = load_data("huggingface", path, unreadable="skip")
    assert loaded.images.equal(as_floats(LEVELS)[[0, 2, 3, 5]])
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [2, 1, 1, 2]
    assert f"skipped 2 that cannot be read (such as 1 of {path})" in loaded.notes
