"""Shards and their manifest: the right rows, and no damage unnoticed."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsno.support.errors import DsnoError, InputError
from dsno.support.storage import StorageDir
from dsno.trajectories import dataset
from dsno.trajectories.dataset import TrajectoryStore, _Cache
from dsno.trajectories.describe import describe
from dsno.trajectories.manifest import (
    MANIFEST,
    Manifest,
    compact,
    forget,
    load_manifest,
    record_name,
    save_manifest,
    shard_name,
)
from dsno.trajectories.prompts import EMBEDDED, Prompts, read_prompts, write_prompts
from dsno.trajectories.shards import damaged_shards, write_shard

TIMES = (0.5, 0.25, 0.0)


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "tag": "a",
        "count": 10,
        "shard_size": 4,
        "sample_shape": (2, 3),
        "times": TIMES,
        "scales": (1.0, 1.0, 1.0),
        "dtype": "float16",
        "seed": 0,
        "num_classes": 5,
        "solver": {"method": "ddim", "steps": 4, "spacing": "uniform", "nfe": 4},
    }
    return Manifest(**{**values, **changes})


def tensors(items: range) -> dict[str, Tensor]:
    """Every entry says whose it is: item + slot / 8 + pixel / 64 for states, -item for noise."""
    i = torch.tensor(list(items), dtype=torch.float16)
    slots = torch.arange(3).reshape(1, 3, 1, 1) / 8 + torch.arange(6).reshape(1, 1, 2, 3) / 64
    return {
        "noise": -i.reshape(-1, 1, 1).expand(-1, 2, 3),
        "states": (i.reshape(-1, 1, 1, 1) + slots).half(),
        "class_labels": torch.tensor(list(items)) % 5,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten trajectories in shards of four, made in another order than they lie."""
    return filled(tmp_path)


def filled(folder: Any) -> Any:
    made = manifest()
    save_manifest(folder, made)
    for index in (2, 0, 1):
        write_shard(folder, made, index, tensors(made.items(index)))
    compact(folder)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads((folder / MANIFEST).read_text())
    change(value)
    (folder / MANIFEST).write_text(json.dumps(value))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        TrajectoryStore(folder, **options)
    text = str(caught.value)
    assert str(folder) in text
    assert "\n" not in text
    return text


# ------------------------------------------------------------------------------- manifests


def test_a_manifest_comes_back_as_it_was(tmp_path: Path, folder: Path) -> None:
    found = load_manifest(folder)
    assert [(s.file, s.first, s.count) for s in found.shards] == [
        ("shard-00000.safetensors", 0, 4),
        ("shard-00001.safetensors", 4, 4),
        ("shard-00002.safetensors", 8, 2),
    ]
    assert found.missing == []
    save_manifest(tmp_path / "copy", found)
    assert load_manifest(tmp_path / "copy") == found
    assert (tmp_path / "copy" / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes()


def test_a_manifest_counts_its_shards() -> None:
    assert manifest().shard_count == 3
    assert manifest(count=8).shard_count == 2
    assert manifest(count=1).items(0) == range(1)
    assert [list(manifest().items(i)) for i in (0, 2)] == [[0, 1, 2, 3], [8, 9]]


def test_a_shard_is_on_disk_before_it_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = manifest()
    save_manifest(tmp_path, made)

    def crash(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("dsno.trajectories.shards.write_json", crash)
    with pytest.raises(ZeroDivisionError):
        write_shard(tmp_path, made, 0, tensors(made.items(0)))
    assert (tmp_path / shard_name(0)).is_file()
    assert load_manifest(tmp_path).missing == [0, 1, 2]
    monkeypatch.setattr("dsno.trajectories.shards.save_file", crash)
    with pytest.raises(ZeroDivisionError):
        write_shard(tmp_path, made, 1, tensors(made.items(1)))
    assert sorted(p.name for p in tmp_path.iterdir()) == [MANIFEST, shard_name(0)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v.update(extra=1), "unknown entry 'extra'"),
        (lambda v: v.update(format=99), "format 99"),
        (lambda v: v.pop("format"), "format None"),
        (lambda v: v.pop("times"), "times"),
        (lambda v: v.pop("shards"), None),
        (lambda v: v.update(times="abc"), "times"),
        (lambda v: v.update(times=[0.5, "x"]), "times.1"),
        (lambda v: v.update(count="many"), "count"),
        (lambda v: v.update(count=0), "no trajectories"),
        (lambda v: v.update(shard_size=0), "no trajectories"),
        (lambda v: v.update(sample_shape=3), "sample_shape"),
        (lambda v: v.update(dtype="float8"), "'float8'"),
        (lambda v: v.update(solver=None), "solver"),
        (lambda v: v.update(shards=[3]), "shards.0"),
        (lambda v: v["shards"][0].pop("sha256"), "sha256"),
        (lambda v: v["shards"][0].update(sha256="../" * 22), "no checksum"),
        (lambda v: v["shards"][0].update(bytes=-1), "no checksum"),
        (lambda v: v["shards"][1].update(file="../x"), "foreign shard '../x'"),
        (lambda v: v["shards"][1].update(file="/etc/passwd"), "foreign shard '/etc/passwd'"),
        (lambda v: v["shards"][1].update(file=shard_name(0)), "foreign shard"),
    ],
)
def test_an_edited_manifest_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], says: str | None
) -> None:
    edit(folder, change)
    text = refusal(folder)
    assert MANIFEST in text or says is None
    assert (says or "3 of 3 shards") in text
    assert "run `dsno collect`" in text


def guided(folder: Path) -> None:
    """Ten trajectories at one guidance scale, as the format before this one had them."""
    filled(folder)
    edit(folder, lambda v: v.update(format=2, guidance_scale=3.0))


def test_unguided_trajectories_of_the_format_before_are_read(folder: Path) -> None:
    expected = load_manifest(folder)
    edit(folder, lambda v: v.update(format=2))
    assert load_manifest(folder) == expected
    assert len(TrajectoryStore(folder)) == 10


def test_guided_trajectories_of_the_format_before_may_have_been_clipped_first(
    tmp_path: Path,
) -> None:
    guided(tmp_path)
    assert "it clipped before guidance, not after; run `dsno collect` again" in refusal(tmp_path)
    assert "clipped first" in describe(StorageDir(tmp_path))["guidance"]
    assert len(TrajectoryStore(tmp_path, tag="a")) == 10  # whoever knows the recipe knows better
    edit(tmp_path, lambda v: v.update(format=3))
    assert len(TrajectoryStore(tmp_path)) == 10
    assert describe(StorageDir(tmp_path))["guidance"] == "3.0"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_manifest_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    assert "delete it and run `dsno collect`" in refusal(folder)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    text = refusal(tmp_path)
    assert "There is no manifest" in text
    assert text.endswith("; run `dsno collect` to make the trajectories.")


# ---------------------------------------------------------------------------------- damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "is missing"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-10]), "bytes, not"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "bytes, not"),
    "edited": (flip, "does not match its checksum"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named(folder: Path, damage: str) -> None:
    act, says = DAMAGES[damage]
    act(folder / shard_name(1))
    bad = damaged_shards(folder, load_manifest(folder))
    assert list(bad) == [1]
    assert says in bad[1]
    text = refusal(folder)
    assert shard_name(1) in text
    assert says in text
    assert "run `dsno collect` again" in text


def test_shards_that_are_not_made_yet_are_counted(folder: Path) -> None:
    edit(folder, lambda v: v["shards"].pop())
    assert "1 of 3 shards" in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "states": t["states"][:, :2]},
        lambda t: {**t, "noise": t["noise"][:3]},
        lambda t: {k: v for k, v in t.items() if k != "class_labels"},
        lambda t: {**t, "extra": t["noise"] + 1},
    ],
)
def test_a_shard_with_other_tensors_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    made = manifest(count=4)
    save_manifest(tmp_path, made)
    write_shard(tmp_path, made, 0, change(tensors(made.items(0))))
    assert "holds" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "tensor", "complaint"),
    [
        ("class_labels", torch.tensor([0, 1, 2, 5]), "has other labels than the 5 there are"),
        ("class_labels", torch.tensor([0, -1, 2, 3]), "has other labels than the 5 there are"),
        ("class_labels", torch.ones(4), "has class_labels of type float32"),
        ("noise", torch.ones(4, 2, 3), "has noise of type float32"),
        ("noise", torch.tensor(1.0).half(), "holds {"),
    ],
)
def test_a_shard_with_values_that_cannot_be_is_refused(
    tmp_path: Path, name: str, tensor: Tensor, complaint: str
) -> None:
    made = manifest(count=4)
    save_manifest(tmp_path, made)
    write_shard(tmp_path, made, 0, {**tensors(made.items(0)), name: tensor})
    assert complaint in refusal(tmp_path)


def test_trajectories_of_another_recipe_are_refused(folder: Path) -> None:
    assert "of another recipe" in refusal(folder, tag="b")
    assert len(TrajectoryStore(folder, tag="a")) == 10


# ------------------------------------------------------------------------------------ rows


def test_rows_come_from_the_right_shard_and_place(folder: Path) -> None:
    store = TrajectoryStore(folder)
    items = torch.tensor([9, 0, 5, 3, 4, 8, 0, 7])
    noise, states, condition = store.rows(items)
    expected = {
        k: torch.cat([tensors(range(i, i + 1))[k] for i in items.tolist()])
        for k in tensors(range(1))
    }
    assert noise.dtype == states.dtype == torch.float32
    assert torch.equal(noise, expected["noise"].float())
    assert torch.equal(states, expected["states"].float())
    assert condition["class_labels"].tolist() == [i % 5 for i in items.tolist()]
    assert list(condition) == ["class_labels"]


def test_a_subset_of_the_times_may_be_asked_for(folder: Path) -> None:
    whole = TrajectoryStore(folder).rows(torch.arange(10))[1]
    part = TrajectoryStore(folder, times=[0.5, 0.0]).rows(torch.arange(10))[1]
    assert torch.equal(part, whole[:, [0, 2]])
    turned = TrajectoryStore(folder, times=[0.0, 0.25]).rows(torch.arange(10))[1]
    assert torch.equal(turned, whole[:, [2, 1]])


def test_a_time_that_is_not_stored_is_named_with_those_that_are(folder: Path) -> None:
    text = refusal(folder, times=[0.5, 0.3])
    assert "no state at t = 0.3, only at 0.5, 0.25, 0" in text


def test_a_time_near_a_stored_one_is_another_unless_it_is_rounding(folder: Path) -> None:
    assert "no state at t = 0.250001" in refusal(folder, times=[0.5, 0.250001])
    assert TrajectoryStore(folder, times=[0.5, 0.25 + 1e-12]).slots == [0, 1]


def test_a_shard_is_an_ordinary_safetensors_file(folder: Path, tmp_path: Path) -> None:
    content = load_file(folder / shard_name(2))
    assert {k: tuple(v.shape) for k, v in content.items()} == {
        "noise": (2, 2, 3),
        "states": (2, 3, 2, 3),
        "class_labels": (2,),
    }
    save_file(content, tmp_path / "copy.safetensors")
    assert (tmp_path / "copy.safetensors").read_bytes() == (folder / shard_name(2)).read_bytes()


# ------------------------------------------------------------------------ records of shards


def test_a_shard_is_listed_by_its_own_record_until_all_are_made(tmp_path: Path) -> None:
    made = manifest()
    save_manifest(tmp_path, made)
    before = (tmp_path / MANIFEST).read_bytes()
    for index in (2, 0):
        write_shard(tmp_path, made, index, tensors(made.items(index)))
    assert compact(tmp_path).missing == [1]
    assert (tmp_path / MANIFEST).read_bytes() == before  # many processes may add shards
    assert (tmp_path / record_name(2)).is_file()
    write_shard(tmp_path, made, 1, tensors(made.items(1)))
    found = compact(tmp_path)
    assert found == load_manifest(tmp_path)
    assert found.missing == []
    assert not (tmp_path / record_name(2)).exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(tag="b"),
        lambda v: v.update(file="../shard-00001.safetensors"),
        lambda v: v.update(first=0),
        lambda v: v.update(count=3),
        lambda v: v.pop("sha256"),
        lambda v: v.clear(),
    ],
)
def test_a_record_that_is_not_the_shards_is_passed_over(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    made = manifest()
    save_manifest(tmp_path, made)
    write_shard(tmp_path, made, 1, tensors(made.items(1)))
    assert load_manifest(tmp_path).missing == [0, 2]
    value = json.loads((tmp_path / record_name(1)).read_text())
    change(value)
    (tmp_path / record_name(1)).write_text(json.dumps(value))
    assert load_manifest(tmp_path).missing == [0, 1, 2]


def test_a_record_that_is_no_file_is_said(folder: Path) -> None:
    (folder / record_name(1)).symlink_to(folder / "nowhere")
    assert "delete it" in refusal(folder)


def test_a_reader_sees_every_shard_while_another_process_compacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = manifest()
    save_manifest(tmp_path, made)
    for index in range(3):
        write_shard(tmp_path, made, index, tensors(made.items(index)))
    names, calls = StorageDir.names, 0

    def then_compact(self: StorageDir) -> list[str]:
        nonlocal calls
        found, calls = names(self), calls + 1
        if calls == 1:
            compact(tmp_path)
        return found

    monkeypatch.setattr(StorageDir, "names", then_compact)
    assert load_manifest(tmp_path).missing == []


def test_a_forgotten_shard_is_made_again_and_the_others_stay(folder: Path) -> None:
    before = load_manifest(folder)
    assert forget(folder, [1]).missing == [1]
    assert load_manifest(folder).missing == [1]
    write_shard(folder, before, 1, tensors(before.items(1)))
    assert compact(folder) == before


# --------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("change", ["none", "edited", "others", "gone"])
def test_prompts_are_read_if_they_are_those_of_the_manifest(tmp_path: Path, change: str) -> None:
    prompts = Prompts(("a cat", "a dog"), torch.ones(2, 3, 4))
    checksum = write_prompts(tmp_path, prompts)
    made = manifest(prompts=2, prompts_sha256=checksum)
    if change == "none":
        found = read_prompts(tmp_path, made)
        assert found is not None
        assert found.texts == prompts.texts
        assert torch.equal(found.embeddings, prompts.embeddings)
        return
    file = tmp_path / EMBEDDED
    if change == "edited":
        file.write_bytes(file.read_bytes()[:-1] + b"\x11")
    elif change == "others":
        assert write_prompts(tmp_path, Prompts(prompts.texts, torch.zeros(2, 3, 4))) != checksum
    else:
        file.unlink()
    with pytest.raises(InputError, match="does not match its checksum; run `dsno collect` again"):
        read_prompts(tmp_path, made)


# ---------------------------------------------------------------------------- behind a URL


@pytest.fixture
def far(request: pytest.FixtureRequest) -> StorageDir:
    """The same ten trajectories behind a URL."""
    place: StorageDir = filled(StorageDir(f"memory://test_trajectories/{request.node.name}"))
    return place


def test_rows_behind_a_url_are_those_of_a_folder(
    folder: Path, far: StorageDir, tmp_path: Path
) -> None:
    items = torch.tensor([9, 0, 5, 5, 2])
    near = TrajectoryStore(folder).rows(items)
    store = TrajectoryStore(far, cache=tmp_path / "cache")
    for a, b in zip(near[:2], store.rows(items)[:2], strict=True):
        assert torch.equal(a, b)


def test_a_shard_is_copied_once_and_when_it_is_needed(
    far: StorageDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []
    copy = StorageDir.copy_to

    def counting(self: StorageDir, name: str, target: Path) -> None:
        copied.append(name)
        copy(self, name, target)

    monkeypatch.setattr(StorageDir, "copy_to", counting)
    cache = tmp_path / "cache"
    store = TrajectoryStore(far, cache=cache)
    store.rows(torch.tensor([0, 9, 3]))
    TrajectoryStore(far, cache=cache).rows(torch.tensor([8]))  # another process of this machine
    shards = [name for name in copied if name.startswith("shard-")]
    assert shards == [shard_name(0), shard_name(2)]


def test_the_cache_keeps_to_its_limit(folder: Path, far: StorageDir, tmp_path: Path) -> None:
    cache, size = tmp_path / "cache", (folder / shard_name(0)).stat().st_size
    store = TrajectoryStore(far, cache=cache, cache_bytes=2 * size)
    whole = TrajectoryStore(folder).rows(torch.arange(10))[1]
    for item in (0, 4, 8, 1, 5, 9):
        assert torch.equal(store.rows(torch.tensor([item]))[1][0], whole[item])
        assert sum(p.stat().st_size for p in cache.glob("*.safetensors")) <= 2 * size


def test_the_copy_used_last_stays_in_the_cache(
    folder: Path, far: StorageDir, tmp_path: Path
) -> None:
    cache, size = tmp_path / "cache", (folder / shard_name(0)).stat().st_size
    shards = load_manifest(folder).shards
    names = [f"{shard.sha256[:32]}.safetensors" for shard in shards]
    copies = _Cache(far, cache, 2 * size)
    for index in (0, 1):
        os.utime(copies.path(shards[index]), (index, index))
    copies.path(shards[0])
    copies.path(shards[2])
    assert {p.name for p in cache.glob("*.safetensors")} == {names[0], names[2]}


def test_the_shard_used_last_stays_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsno.trajectories.dataset.MAX_OPEN", 2)
    store = TrajectoryStore(folder)
    for item in (0, 4, 0, 8):
        store.rows(torch.tensor([item]))
    assert list(store._open) == [0, 2]


def test_threads_that_read_at_once_open_one_shard_at_a_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, opening = TrajectoryStore(folder), threading.Lock()
    whole = store.rows(torch.arange(10))[1]
    store._open.clear()
    monkeypatch.setattr("dsno.trajectories.dataset.MAX_OPEN", 1)
    load = dataset.load_file

    def slow(path: Path) -> dict[str, Tensor]:
        assert opening.acquire(blocking=False)
        time.sleep(0.005)
        opening.release()
        return load(path)

    monkeypatch.setattr(dataset, "load_file", slow)
    items = [torch.tensor(rows) for rows in ([0, 4], [8, 1], [5, 9], [4, 0]) * 2]
    with ThreadPoolExecutor(4) as pool:
        for rows, (_, states, _) in zip(items, pool.map(store.rows, items), strict=True):
            assert torch.equal(states, whole[rows])


@pytest.mark.parametrize("damage", [lambda b: b[:-1] + b"\x11", lambda b: b[:-7], None])
def test_a_damaged_copy_is_never_used(
    folder: Path, far: StorageDir, tmp_path: Path, damage: Callable[[bytes], bytes] | None
) -> None:
    if damage is None:
        far.delete(shard_name(1))
    else:
        with far.writing(shard_name(1)) as temporary:
            temporary.write_bytes(damage((folder / shard_name(1)).read_bytes()))
    store = TrajectoryStore(far, cache=tmp_path / "cache")
    with pytest.raises(DsnoError, match=r"shard-00001\.safetensors (does not match|is missing)"):
        store.rows(torch.tensor([5]))
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1  # the first shard's
