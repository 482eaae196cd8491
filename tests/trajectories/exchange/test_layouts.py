"""Every layout, read by the library or the rules of those it is for."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.checksums import contents
from tests.trajectories.exchange.stores import (
    COUNT,
    EDM,
    TEXTS,
    exported,
    manifest,
    stored,
    tensors,
)

from dsno.diffusion.schedules import CosineSchedule
from dsno.support.storage import StorageDir
from dsno.trajectories.exchange.about import read_index
from dsno.trajectories.exchange.export import export_trajectories
from dsno.trajectories.exchange.restore import restore
from dsno.trajectories.exchange.table import LAYOUTS
from dsno.trajectories.manifest import load_manifest
from dsno.trajectories.prompts import read_prompts

Sample = dict[str, Any]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of every kind of condition, of an EDM teacher, whose states are stored scaled."""
    folder = tmp_path_factory.mktemp("stores")
    return {name: stored(folder / name, name) for name in ("none", "classes", "text")}


def expected(conditions: str) -> Iterator[Sample]:
    """x_t of every trajectory: 80 times the noise, and sqrt(1 + sigma(t)^2) times the states."""
    made = manifest(conditions, EDM)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    sigma = [(low + t * (high - low)) ** 7 for t in made.times[:-1]]
    scales = np.array([80.0, *(np.sqrt(1 + s * s) for s in sigma)]).reshape(-1, 1, 1, 1)
    for item in range(COUNT):
        first = item // 2 * 2
        shard = tensors(made, range(first, min(first + 2, COUNT)))
        row = {name: tensor[item - first].numpy() for name, tensor in shard.items()}
        path = np.concatenate([row["noise"][None], row["states"][:-1]]).astype(float) * scales
        yield {**row, "path": path, "latent": row["states"][-1]}


def assert_is(found: Sample, wanted: Sample, *, tolerance: float = 1e-6) -> None:
    """The right trajectory, in the right order and scale."""
    assert (found["path"].shape, found["latent"].shape) == ((4, 3, 2, 2), (3, 2, 2))
    np.testing.assert_allclose(found["path"], wanted["path"], rtol=tolerance)
    np.testing.assert_array_equal(found["latent"], wanted["latent"])


@pytest.mark.parametrize("conditions", ["none", "classes", "text"])
def test_the_library_webdataset_reads_what_fastgens_loader_maps(
    stores: dict[str, Path], tmp_path: Path, conditions: str
) -> None:
    """The keys of a sample are the values of FastGen's `key_map`; it decodes .npy by numpy.load."""
    import webdataset

    page = Path(__file__).parents[3] / "docs" / "sharing-trajectories.md"
    (key_map,) = re.findall(r"key_map=(\{.+\})", page.read_text())
    keys = set(json.loads(key_map).values())
    if conditions == "text":
        keys = keys - {"condition.npy"} | {"txt_emb.npy"}
    exported(stores[conditions], tmp_path / "out", "webdataset")
    counts = json.loads((tmp_path / "out" / "shard_count.json").read_text())
    assert counts == {"00000.tar": 2, "00001.tar": 2, "00002.tar": 1}
    files = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    samples = list(webdataset.WebDataset(files, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{i:08d}" for i in range(COUNT)]
    for sample, wanted in zip(samples, expected(conditions), strict=True):
        arrays = {
            key: np.load(io.BytesIO(value), allow_pickle=False)
            for key, value in sample.items()
            if key.endswith(".npy")
        }
        assert arrays.keys() == keys
        found = {"path": arrays["path.npy"], "latent": arrays["latent.npy"]}
        assert_is(found, wanted)
        values = json.loads(sample["json"])
        assert values.pop("index") == int(sample["__key__"])
        assert values.pop("seed") == 7
        if conditions == "text":
            index = int(wanted["prompt_index"])
            assert sample["txt"].decode() == TEXTS[index]
            embedding = torch.linspace(-1, 1, 24).half().reshape(3, 2, 4)[index].numpy()
            np.testing.assert_array_equal(arrays["txt_emb.npy"], embedding)
            assert values == {
                "prompt_index": index, "guidance_scale": float(wanted["guidance_scale"]),
            }  # fmt: skip
            continue
        label = wanted.get("class_labels")
        one_hot = [] if label is None else np.eye(6)[label]
        np.testing.assert_array_equal(arrays["condition.npy"], one_hot)
        assert arrays["condition.npy"].dtype == np.float32
        assert values == ({} if label is None else {"class_label": int(label)})


def test_numpy_reads_the_npz_files(stores: dict[str, Path], tmp_path: Path) -> None:
    exported(stores["classes"], tmp_path / "out", "npz")
    files = [np.load(tmp_path / "out" / f"0000{i}.npz", allow_pickle=False) for i in range(3)]
    rows = [
        {name: array[row] for name, array in f.items()}
        for f in files
        for row in range(2)[: len(f["latent"])]
    ]
    for found, wanted in zip(rows, expected("classes"), strict=True):
        assert_is(found, wanted)
        assert found["class_labels"] == wanted["class_labels"]


def test_the_library_datasets_reads_the_parquet_files(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    exported(stores["text"], tmp_path / "out", "huggingface")
    rows = datasets.load_dataset(
        str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows.features["path"] == datasets.Array4D((4, 3, 2, 2), "float32")
    assert rows.column_names == [
        "index", "latent", "path", "guidance_scale", "prompt_index", "prompt",
    ]  # fmt: skip
    for found, wanted in zip(rows.with_format("numpy"), expected("text"), strict=True):
        assert_is(found, wanted)
        assert found["prompt"] == TEXTS[wanted["prompt_index"]]
        assert found["guidance_scale"] == wanted["guidance_scale"]


def test_the_lmdb_is_that_of_self_forcing(tmp_path: Path) -> None:
    """Names, types and order of its `ODERegressionLMDBDataset`: noise first, one frame."""
    schedule = CosineSchedule()  # scales of 1: nothing is rounded
    store = stored(tmp_path / "store", "text", schedule)
    done = exported(store, tmp_path / "out", "lmdb", schedule=schedule)
    assert (done.dtype, done.is_exact) == ("float16", True)
    wanted = list(expected("text"))
    with (
        lmdb.open(str(tmp_path / "out"), readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        shape = tuple(map(int, transaction.get(b"latents_shape").decode().split()))
        assert shape == (COUNT, 5, 1, 3, 2, 2)
        assert transaction.get(b"prompts_shape") == b"5"
        for i, row in enumerate(wanted):
            data = transaction.get(f"latents_{i}_data".encode())
            found = np.frombuffer(data, np.float16).reshape(shape[1:])
            np.testing.assert_array_equal(found[0, 0], row["noise"])
            np.testing.assert_array_equal(found[1:, 0], row["states"])
            text = transaction.get(f"prompts_{i}_data".encode()).decode()
            assert text == TEXTS[row["prompt_index"]]
    restore(StorageDir(tmp_path / "out"), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(store)


def test_an_lmdb_of_scaled_states_is_rounded_and_says_so(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    done = exported(stores["text"], tmp_path / "out", "lmdb")
    assert (done.dtype, done.is_exact) == ("float16", False)
    back = restore(StorageDir(tmp_path / "out"), tmp_path / "back")
    assert back.tag == ""  # no longer what the recipe makes
    found, wanted = (
        load_file(folder / "shard-00001.safetensors")
        for folder in (tmp_path / "back", stores["text"])
    )
    for name in found:
        np.testing.assert_allclose(found[name], wanted[name], rtol=2**-10, atol=1e-7)


@pytest.mark.parametrize(
    ("layout", "conditions"),
    [
        *(("webdataset", name) for name in ("none", "classes", "text")),
        *(("npz", name) for name in ("classes", "text")),
        *(("huggingface", name) for name in ("none", "text")),
    ],
)
def test_an_import_gives_the_folder_back_bit_for_bit(
    stores: dict[str, Path], tmp_path: Path, layout: str, conditions: str
) -> None:
    done = exported(stores[conditions], tmp_path / "out", layout)
    assert (done.dtype, done.is_exact) == ("float32", True)
    restore(StorageDir(tmp_path / "out"), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(stores[conditions])


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_files_are_no_larger_than_was_said_before(
    stores: dict[str, Path], tmp_path: Path, layout: str
) -> None:
    done = exported(stores["text"], tmp_path / "out", layout)
    storage = StorageDir(tmp_path / "out")
    about, index = read_index(storage)
    prompts = read_prompts(stores["text"], load_manifest(stores["text"]))
    sizes = [LAYOUTS[layout].size(about, shard.count, prompts) for shard in index.shards]
    assert all(s.bytes <= size for s, size in zip(index.shards, sizes, strict=True))
    assert sum(shard.bytes for shard in index.shards) == done.bytes


def test_an_export_may_lie_behind_a_url(stores: dict[str, Path], tmp_path: Path) -> None:
    url = StorageDir("memory://exported")
    for _ in range(2):  # the second finds what the first wrote
        export_trajectories(StorageDir(stores["text"]), url, "npz", schedule=EDM)
    assert len(url.names()) == 6  # shards, prompts, index
    restore(url, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(stores["text"])


def test_pairs_are_noise_and_latent(stores: dict[str, Path], tmp_path: Path) -> None:
    exported(stores["none"], tmp_path / "out", "npz", slices=1)
    found = np.load(tmp_path / "out" / "00001.npz")
    assert sorted(found) == ["latent", "noise"]
    wanted = list(expected("none"))[2:4]
    np.testing.assert_allclose(found["noise"], [row["path"][0] for row in wanted], rtol=1e-6)
    np.testing.assert_array_equal(found["latent"], [row["latent"] for row in wanted])


def test_fewer_slices_are_those_of_the_same_grid(stores: dict[str, Path], tmp_path: Path) -> None:
    """Of t = (m / 4)^2, those of t = (m / 2)^2: 0.25 and 0."""
    exported(stores["none"], tmp_path / "out", "npz", slices=2)
    found = np.load(tmp_path / "out" / "00000.npz")["path"]
    wanted = [row["path"][[0, 2]] for row in list(expected("none"))[:2]]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    back = restore(StorageDir(tmp_path / "out"), tmp_path / "back")
    assert (back.times, back.tag) == ((0.25, 0.0), "")
