"""An export is whole or not there, goes on where it stopped, and refuses what it cannot say."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checksums import contents
from tests.trajectories.exchange.stores import TEXTS, exported, stored

from dsno.support.errors import InputError, WorkError
from dsno.support.files import sha256
from dsno.trajectories.exchange import table
from dsno.trajectories.exchange.layout import Part
from dsno.trajectories.exchange.webdataset import WebDataset
from dsno.trajectories.manifest import forget, load_manifest, save_manifest, shard_name
from dsno.trajectories.prompts import Prompts, write_prompts


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(tmp_path_factory.mktemp("store"), "classes")


class Watched(WebDataset):
    """Counts the files that are written, and may fail or write another thing."""

    def __init__(self, change: Callable[[Path], None] = lambda path: None) -> None:
        self.written = 0
        self.change = change

    def write(self, path: Path, about: Any, parts: Iterable[Part], prompts: Any) -> None:
        super().write(path, about, parts, prompts)
        self.written += 1
        self.change(path)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    layout = Watched()
    monkeypatch.setitem(table.LAYOUTS, "webdataset", layout)
    return layout


def test_an_interrupted_export_goes_on_where_it_was(
    store: Path, tmp_path: Path, watched: Watched
) -> None:
    def stop(path: Path) -> None:
        if watched.written == 2:
            raise KeyboardInterrupt

    watched.change = stop
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        exported(store, out, "webdataset")
    assert [path.name for path in out.iterdir()] == ["00000.tar"]
    watched.written, watched.change = 0, lambda path: None
    exported(store, out, "webdataset")
    assert watched.written == 2
    exported(store, tmp_path / "at-once", "webdataset")
    assert contents(out) == contents(tmp_path / "at-once")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1500]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"latent", b"patent")),
        lambda path: shutil.copy(path.with_name("00000.tar"), path),
    ],
)
def test_what_is_wrong_of_an_earlier_export_is_written_again(
    store: Path, tmp_path: Path, watched: Watched, damage: Callable[[Path], object]
) -> None:
    exported(store, tmp_path, "webdataset")
    whole = contents(tmp_path)
    damage(tmp_path / "00001.tar")
    listed: list[bool] = []
    watched.change = lambda path: listed.append((path.parent / "index.json").exists())
    exported(store, tmp_path, "webdataset")
    assert (listed, contents(tmp_path)) == ([False], whole)


def test_a_file_that_reads_back_differently_is_not_kept(
    store: Path, tmp_path: Path, watched: Watched
) -> None:
    def flip(path: Path) -> None:
        """One bit of the last array."""
        data = bytearray(path.read_bytes())
        data[data.rfind(b"NUMPY") - 1024 + 600] ^= 1
        path.write_bytes(data)

    watched.change = flip
    with pytest.raises(
        WorkError, match=r"00000\.tar was not written as it should be \(.+\); check"
    ):
        exported(store, tmp_path / "out", "webdataset")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_noticed_before_anything_is_written(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(WorkError, match="up to 0.1 MB, and there are 0.0 MB free at .+out; "):
        exported(store, tmp_path / "out", "webdataset")
    assert not (tmp_path / "out").exists()


def refusal(store: Path, out: Path, layout: str = "npz", **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        exported(store, out, layout, **options)
    assert not out.exists()
    return str(caught.value)


def test_what_cannot_be_expressed_is_refused_in_one_sentence(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert refusal(store, out, "zarr").startswith("Unknown layout 'zarr': known are 'huggingface'")
    assert refusal(store, out, "lmdb") == (
        "The layout 'lmdb' cannot hold trajectories without text, as its readers take a prompt for "
        "each; choose another (--to)."
    )
    assert "have 4 states, so the number of slices must divide 4; 3 does not." in refusal(
        store, out, slices=3
    )
    assert refusal(store, out, dtype="bfloat16").startswith(
        "Unknown type of the states 'bfloat16': did you mean 'float16'"
    )
    text = stored(tmp_path / "text", "text")
    assert refusal(text, out, "lmdb", dtype="float32") == (
        "Readers of the layout 'lmdb' take float16, not float32; give another --dtype or none."
    )
    deep = stored(tmp_path / "deep", sample_shape=(1, 1, 1, 1, 2))
    assert "'huggingface' cannot hold arrays of 6 dimensions" in refusal(deep, out, "huggingface")


def test_unfinished_and_damaged_trajectories_are_refused(store: Path, tmp_path: Path) -> None:
    copy, out = Path(shutil.copytree(store, tmp_path / "copy")), tmp_path / "out"
    path = copy / shard_name(1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\x11")
    with pytest.raises(InputError, match="does not match its checksum; `dsno trajectories verify"):
        exported(copy, out, "npz")
    path.write_bytes(whole)
    forget(copy, [1])
    assert "1 of 3 shards in" in refusal(copy, tmp_path / "new")
    text = stored(tmp_path / "text", "text")
    broken = Prompts(TEXTS, torch.full((3, 2, 4), torch.nan).half())
    checksum = write_prompts(text, broken)
    save_manifest(text, dataclasses.replace(load_manifest(text), prompts_sha256=checksum))
    assert "embeddings of the prompts" in refusal(text, tmp_path / "new")
    early = stored(tmp_path / "early", times=(0.5, 0.25), scales=(1.0, 1.0))
    assert "have no state at t = 0" in refusal(early, tmp_path / "new")


def test_a_folder_with_anything_else_is_left_alone(store: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds 'notes.txt', which is not of this export"):
        exported(store, tmp_path, "npz")
    with pytest.raises(InputError, match="notes.txt is a file; give a folder to --out."):
        exported(store, tmp_path / "notes.txt", "npz")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    exported(store, tmp_path / "pairs", "npz", slices=1)
    before = sha256(tmp_path / "pairs" / "index.json")
    with pytest.raises(InputError, match="holds another export; give another folder"):
        exported(store, tmp_path / "pairs", "npz")
    assert sha256(tmp_path / "pairs" / "index.json") == before
