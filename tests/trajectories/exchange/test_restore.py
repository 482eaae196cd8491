"""An export from elsewhere is what its index says, or is refused in one sentence."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.checksums import contents
from tests.trajectories.exchange.stores import exported, stored

from dsno.support.errors import InputError
from dsno.support.files import sha256
from dsno.support.storage import StorageDir
from dsno.trajectories.exchange import restore as module
from dsno.trajectories.exchange.restore import restore
from dsno.trajectories.manifest import load_manifest

SPRUNG = Path(tempfile.mkdtemp()) / "sprung"


class Trap:
    """What a pickle does when it is loaded."""

    def __reduce__(self) -> Any:
        return os.mkdir, (str(SPRUNG),)


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


PICKLED = npy(np.array([Trap()], dtype=object))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An export in every layout."""
    folder = tmp_path_factory.mktemp("exports")
    classes, text = (stored(folder / f"store {name}", name) for name in ("classes", "text"))
    for layout in ("webdataset", "npz", "huggingface"):
        exported(classes, folder / layout, layout)
    exported(text, folder / "lmdb", "lmdb")
    exported(text, folder / "text", "webdataset")
    return {path.name: path for path in folder.iterdir()}


def sign(folder: Path) -> None:
    """Put the sizes and checksums of the files that are there into the index."""
    index = json.loads((folder / "index.json").read_text())
    for entry in (*index["shards"], *index["files"]):
        path = folder / entry["file"]
        entry |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (folder / "index.json").write_text(json.dumps(index))


def refusal(folder: Path) -> str:
    """What the import of an export says; nothing was run."""
    with pytest.raises(InputError) as caught:
        restore(StorageDir(folder), folder.with_name("back"))
    assert not SPRUNG.exists()
    assert not list(folder.with_name("back").glob("shard-*"))
    text = str(caught.value)
    assert text.endswith("; export it again, or fetch it again.")
    assert str(folder) in text
    return text.removesuffix("; export it again, or fetch it again.")


Members = list[tuple[tarfile.TarInfo, bytes]]


def edited(folder: Path, edit: Callable[[Members], object]) -> str:
    """What is said of an export whose first tar is rewritten, with the right checksum."""
    path = folder / "00000.tar"
    with tarfile.open(path) as tar:
        members = [(m, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    edit(members)
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    sign(folder)
    return refusal(folder).removeprefix(f"{path}: ")


def put(number: int, data: bytes) -> Callable[[Members], object]:
    """Another content of a member: latent, path, condition, json are 0 to 3 of a trajectory."""

    def edit(members: Members) -> None:
        members[number] = (members[number][0], data)

    return edit


def rename(name: str, kind: bytes = tarfile.REGTYPE) -> Callable[[Members], object]:
    """The first member under another name, or of another kind."""

    def edit(members: Members) -> None:
        members[0][0].name, members[0][0].type = name, kind
        members[0][0].linkname = "/etc/passwd"

    return edit


LATENT = np.zeros((3, 2, 2), np.float32)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            rename("../../evil.npy"),
            "Member '../../evil.npy' is not expected there, but 00000000.latent.npy",
        ),
        (rename("/etc/x"), "Member '/etc/x' is not expected there, but 00000000.latent.npy"),
        (rename("a", tarfile.SYMTYPE), "Member 'a' is not a regular file"),
        (rename("a", tarfile.CHRTYPE), "Member 'a' is not a regular file"),
        (
            put(0, npy(LATENT[:2])),
            "00000000.latent.npy is float32 of shape (2, 2, 2), expected float32 of shape "
            "(3, 2, 2)",
        ),
        (
            put(0, npy(LATENT.astype(float))),
            "00000000.latent.npy is float64 of shape (3, 2, 2), expected float32 of shape "
            "(3, 2, 2)",
        ),
        (
            put(0, PICKLED),
            "00000000.latent.npy holds pickled Python objects, which are never loaded",
        ),
        (put(0, npy(LATENT)[:-4]), "00000000.latent.npy is shorter than the 48 bytes of its array"),
        (put(0, pickle.dumps(Trap())), "00000000.latent.npy is not an .npy array"),
        (put(0, npy(LATENT + np.nan)), "Trajectory 0 holds values that are not finite"),
        (put(4, npy(LATENT + np.inf)), "Trajectory 1 holds values that are not finite"),
        (put(0, npy(LATENT + 1e30)), "It holds values beyond float16"),
        (put(3, b"{"), "Member 00000000.json is not JSON"),
        (put(3, b"[]"), "Member 00000000.json is not a JSON object"),
        (put(3, b"{}"), "Member 00000000.json gives class_label as None"),
        (put(3, b'{"class_label": true}'), "Member 00000000.json gives class_label as True"),
        (put(3, b'{"class_label": -1}'), "Member 00000000.json gives class_label as -1"),
        (put(3, b'{"class_label": 6}'), "Member 00000000.json has class_label 6 of 6"),
        (
            put(3, b'{"class_label": 1}'),
            "Member 00000000.condition.npy is not what 00000000.json says",
        ),
        (list.pop, "Member 00000001.json is missing"),
        (lambda made: made.append(made[0]), "Member '00000000.latent.npy' is one too many"),
    ],
)
def test_a_tar_with_anything_else_is_refused(
    whole: dict[str, Path], tmp_path: Path, edit: Callable[[Members], object], says: str
) -> None:
    copy = Path(shutil.copytree(whole["webdataset"], tmp_path / "copy"))
    assert edited(copy, edit).startswith(says)


Damage = Callable[[Path], object]


def arrays(**changes: Any) -> Damage:
    """Write an .npz again with other arrays."""

    def write(path: Path) -> None:
        found = {**np.load(path), **changes}
        with path.open("wb") as file:
            np.savez(file, **found)

    return write


def rows(change: Callable[[Any], Any]) -> Damage:
    """Write a Parquet file again, changed."""

    def write(path: Path) -> None:
        import pyarrow.parquet as parquet

        parquet.write_table(change(parquet.read_table(path)), path, compression="none")

    return write


def cut(count: int) -> Damage:
    """Take bytes off its end."""
    return lambda path: os.truncate(path, path.stat().st_size - count)


def zeroed(start: int) -> Damage:
    """Make all bytes from there on 0, as a disk may that lost power."""

    def write(path: Path) -> None:
        whole = path.read_bytes()
        path.write_bytes(whole[:start].ljust(len(whole), b"\0"))

    return write


TAR, NPZ, LMDB = ("webdataset", "00000.tar"), ("npz", "00000.npz"), ("lmdb", "data.mdb")
PARQUET = ("huggingface", "train-00000-of-00003.parquet")
IS_PICKLE = "latent.npy holds pickled Python objects, which are never loaded"


@pytest.mark.parametrize(
    ("where", "damage", "says"),
    [
        (TAR, cut(300), "It is not a whole tar file, of records of 10,240 bytes"),
        (TAR, zeroed(2600), "Member 00000000.json is missing"),
        (NPZ, cut(40), "It is not a whole .npz file"),
        (NPZ, arrays(latent=np.array([Trap()] * 999)), IS_PICKLE),
        (NPZ, arrays(more=np.zeros(3)), "It holds ["),
        (NPZ, arrays(class_labels=np.array([1, 6])), "It has other labels than the 6 there are"),
        (NPZ, lambda path: path.write_bytes(b""), "It has 0 bytes, too few for states of"),
        (PARQUET, cut(4), "It is not a whole Parquet file"),
        (PARQUET, rows(lambda t: t.drop_columns("class_labels")), "It has columns"),
        (PARQUET, rows(lambda t: t.append_column("more", t["index"])), "It has columns"),
        (PARQUET, rows(lambda t: t.take([0, 0])), "Column 'index' does not count the traject"),
        (PARQUET, rows(lambda t: t.take([0, 1, 1])), "It has 3 rows, expected 2"),
        (LMDB, cut(8192), "It is truncated"),
        (LMDB, lambda path: path.write_bytes(bytes(20000)), "It is not an LMDB"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_every_layout(
    whole: dict[str, Path], tmp_path: Path, where: tuple[str, str], damage: Damage, says: str
) -> None:
    copy, file = Path(shutil.copytree(whole[where[0]], tmp_path / "copy")), where[1]
    damage(copy / file)
    assert re.search(f"{file} (does not match its checksum|has .+ bytes, expected)", refusal(copy))
    sign(copy)
    shutil.rmtree(tmp_path / "back")
    assert refusal(copy).startswith(f"{copy / file}: {says}")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v["shards"][0].update(file="../00000.tar"), "lists '../00000.tar' with"),
        (lambda v: v["shards"].reverse(), "lists '00002.tar' with trajectories 4 to 4"),
        (lambda v: v["shards"].pop(), "lists 4 trajectories, not 5"),
        (lambda v: v["shards"][0].update(count=-2), "lists"),
        (lambda v: v["shards"][0].update(sha256="a"), "gives '00000.tar' no checksum"),
        (lambda v: v.update(layout="zarr"), "Unknown layout of the index 'zarr'"),
        (lambda v: v.update(dtype="object"), "is damaged (dtype"),
        (lambda v: v.update(noise_scale=0), "has a noise scale of 0"),
        (lambda v: v.update(format=2), "has format 2, and this version reads 1"),
        (lambda v: v.update(embedding=[2, 4]), "has prompts without the shape"),
        (lambda v: v["trajectories"].update(count=0), "has no trajectories"),
        (lambda v: v["trajectories"].update(mode="x"), "has an unknown entry 'mode'"),
        (lambda v: v["trajectories"].update(sample_shape=[3, 2, 2, 900]), "too few for states of"),
    ],
)
def test_an_index_that_no_export_writes_is_refused(
    whole: dict[str, Path], tmp_path: Path, change: Callable[[Any], object], says: str
) -> None:
    copy = Path(shutil.copytree(whole["webdataset"], tmp_path / "copy"))
    index = json.loads((copy / "index.json").read_text())
    change(index)
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError) as caught:
        restore(StorageDir(copy), tmp_path / "back")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("prompts.json", b'{"prompts": ["a"]}', "does not list 3 prompts"),
        ("prompts.json", b'{"prompts": ["a", "b", "\\ud800"]}', "does not list 3 prompts"),
        ("prompts.npy", PICKLED, "holds pickled Python objects, which are never loaded"),
        ("prompts.npy", npy(np.zeros((3, 2, 5), np.float16)), "expected float16 of shape"),
        ("prompts.npy", npy(np.full((3, 2, 4), np.nan, np.float16)), "are not finite"),
    ],
)
def test_other_prompts_are_refused(
    whole: dict[str, Path], tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    copy = Path(shutil.copytree(whole["text"], tmp_path / "copy"))
    (copy / name).write_bytes(content)
    sign(copy)
    assert says in refusal(copy)


def test_an_interrupted_import_goes_on_where_it_was(
    whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, write, calls = StorageDir(whole["text"]), module.write_shard, []

    def stopping(*arguments: Any) -> object:
        calls.append(arguments[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(module, "write_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        restore(source, tmp_path / "back")
    assert load_manifest(tmp_path / "back").missing == [1, 2]
    restore(source, tmp_path / "back")
    assert calls == [0, 1, 1, 2]
    assert contents(tmp_path / "back") == contents(whole["store text"])


def test_other_trajectories_are_not_mixed_with_those_there(
    whole: dict[str, Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(whole["store text"], tmp_path / "copy"))
    with pytest.raises(InputError, match="holds trajectories of another recipe"):
        restore(StorageDir(whole["webdataset"]), copy)
    assert contents(copy) == contents(whole["store text"])
    assert dataclasses.asdict(load_manifest(copy))["tag"] == "a recipe"
