"""Trajectories of the paper's authors become ours: the right states, at the right times."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dsno.diffusion.analytic import Gaussian
from dsno.diffusion.schedules import CosineSchedule, NoiseSchedule, RectifiedFlowSchedule
from dsno.support.errors import InputError
from dsno.trajectories import lmdb as lmdb_import
from dsno.trajectories.dataset import TrajectoryStore
from dsno.trajectories.lmdb import import_lmdb
from dsno.trajectories.manifest import load_manifest, shard_name
from dsno.trajectories.shards import damaged_shards

COUNT = 10
QUADRATIC = [((16 - j) / 16) ** 2 for j in range(17)]
UNIFORM = [(8 - j) / 8 for j in range(9)]


def noises(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(COUNT, *shape, generator=torch.Generator().manual_seed(1)).double()


def teacher(shape: tuple[int, ...], schedule: NoiseSchedule) -> Gaussian:
    mean = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
    return Gaussian(mean, torch.full(shape, 0.3), schedule)


def flow(shape: tuple[int, ...], schedule: NoiseSchedule, times: list[float]) -> Tensor:
    """The states (COUNT, len(times), *shape) of the Gaussian teacher's exact flow."""
    one = torch.ones((), dtype=torch.float64)
    start = schedule.sigma(one) * noises(shape)
    made = teacher(shape, schedule)
    return torch.stack([made.flow(start, one, torch.tensor(t).double()) for t in times], 1)


def write(path: Path, entries: Mapping[str, bytes], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        lmdb.open(str(path), map_size=2**25, **options) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in entries.items():
            transaction.put(key.encode(), value)
    return path


def records(states: Tensor) -> dict[str, bytes]:
    """The authors' records: the channels first, then the states."""
    arrays = states.float().transpose(1, 2).numpy()
    entries = {str(i): np.ascontiguousarray(a).tobytes() for i, a in enumerate(arrays)}
    return {**entries, "length": str(len(arrays)).encode()}


def cifar(shape: tuple[int, int, int] = (3, 4, 4)) -> dict[str, bytes]:
    return records(flow(shape, CosineSchedule(), QUADRATIC))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten trajectories of 17 states."""
    return write(tmp_path / "quad" / "lmdb", cifar())


def expect(folder: Path, states: Tensor, schedule: NoiseSchedule, tolerance: float) -> None:
    """The folder holds these states (COUNT, slices, *shape), stored scaled, and their noise."""
    noise, scaled, _ = TrajectoryStore(folder).rows(torch.arange(COUNT))
    times = torch.tensor(load_manifest(folder).times, dtype=torch.float64)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    scale = torch.where(times == 0, 1.0, (alpha**2 + sigma**2).sqrt()).reshape(1, -1, 1, 1, 1)
    torch.testing.assert_close(scaled * scale, states, atol=tolerance, rtol=0, check_dtype=False)
    wanted = noises(tuple(noise.shape[1:]))
    torch.testing.assert_close(noise, wanted, atol=tolerance, rtol=0, check_dtype=False)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("float32", 1e-6)])
def test_the_papers_cifar_times_are_kept(
    tmp_path: Path, source: Path, dtype: str, tolerance: float
) -> None:
    manifest = import_lmdb(source, tmp_path / "out", dtype=dtype)
    assert manifest.times == (0.5625, 0.25, 0.0625, 0.0)
    assert manifest.sample_shape == (3, 4, 4)
    assert (manifest.count, manifest.num_classes) == (COUNT, None)
    exact = flow((3, 4, 4), CosineSchedule(), [0.5625, 0.25, 0.0625, 0.0])
    expect(tmp_path / "out", exact, CosineSchedule(), tolerance)
    stored = load_file(tmp_path / "out" / shard_name(0))
    assert {t.dtype for t in stored.values()} == {getattr(torch, dtype)}


def test_the_papers_imagenet_times_and_labels_are_kept(tmp_path: Path) -> None:
    shape, labels = (3, 8, 8), np.array([0, 4, 2, 1, 1, 0, 3, 3, 2, 0])
    path = write(tmp_path / "data" / "lmdb", records(flow(shape, CosineSchedule(), UNIFORM)))
    np.save(tmp_path / "data" / "labels.npy", labels)
    manifest = import_lmdb(path, tmp_path / "out", dtype="float32", shard_size=4)
    assert manifest.times == (0.75, 0.5, 0.25, 0.0)
    assert manifest.num_classes == 5
    exact = flow(shape, CosineSchedule(), [0.75, 0.5, 0.25, 0.0])
    expect(tmp_path / "out", exact, CosineSchedule(), 1e-6)
    store = TrajectoryStore(tmp_path / "out")
    condition = store.rows(torch.arange(COUNT))[2]
    assert condition is not None
    assert condition["class_labels"].tolist() == labels.tolist()


@pytest.mark.parametrize("slices", [1, 2, 8, 16])
def test_other_numbers_of_slices_are_states_of_the_same_grid(
    tmp_path: Path, source: Path, slices: int
) -> None:
    manifest = import_lmdb(source, tmp_path / "out", slices=slices, dtype="float32")
    times = [(m / slices) ** 2 for m in range(slices - 1, -1, -1)]
    assert list(manifest.times) == times
    expect(tmp_path / "out", flow((3, 4, 4), CosineSchedule(), times), CosineSchedule(), 1e-6)


def test_another_grid_and_schedule_may_be_given(tmp_path: Path) -> None:
    """17 uniform states of a flow teacher, whose states are stored scaled."""
    schedule, grid = RectifiedFlowSchedule(), [(16 - j) / 16 for j in range(17)]
    path = write(tmp_path / "lmdb", records(flow((1, 6, 6), schedule, grid)))
    import_lmdb(path, tmp_path / "out", spacing="uniform", schedule=schedule, dtype="float32")
    exact = flow((1, 6, 6), schedule, [0.75, 0.5, 0.25, 0.0])
    expect(tmp_path / "out", exact, schedule, 1e-6)
    assert load_manifest(tmp_path / "out").scales[1] == pytest.approx(0.5**0.5)


def test_the_noise_is_of_unit_size_whatever_the_schedule(tmp_path: Path) -> None:
    """A schedule with sigma(1) = 0.924: state 0 is that much smaller than the noise."""
    schedule = CosineSchedule(log_snr_min=-math.log(5.828427))
    entries = records(flow((1, 2, 2), schedule, QUADRATIC))
    path = write(tmp_path / "lmdb", entries)
    import_lmdb(path, tmp_path / "out", schedule=schedule, dtype="float32")
    noise = TrajectoryStore(tmp_path / "out").rows(torch.arange(COUNT))[0]
    torch.testing.assert_close(noise.double(), noises((1, 2, 2)), atol=1e-6, rtol=0)
    state = torch.frombuffer(bytearray(entries["3"]), dtype=torch.float32).reshape(1, 17, 2, 2)
    assert float(state[:, 0].norm() / noise[3].norm()) == pytest.approx(0.92388, abs=1e-4)


@pytest.mark.parametrize(("states", "steps"), [(17, 512), (9, 16)])
def test_the_manifest_says_how_the_authors_solved(tmp_path: Path, states: int, steps: int) -> None:
    path = write(tmp_path / "lmdb", records(torch.zeros(2, states, 1, 2, 2)))
    solver = dict(import_lmdb(path, tmp_path / "out", tag="mine").solver)
    assert solver.pop("imported")
    assert solver == {"method": "ddim", "steps": steps, "spacing": "uniform", "nfe": steps}
    assert TrajectoryStore(tmp_path / "out", tag="mine")


def test_a_data_file_alone_is_an_lmdb_too(tmp_path: Path) -> None:
    path = write(tmp_path / "one.mdb", cifar(), subdir=False)
    assert import_lmdb(path, tmp_path / "out").count == COUNT
    inside = write(tmp_path / "lmdb", cifar()) / "data.mdb"
    assert import_lmdb(inside, tmp_path / "other").count == COUNT


# ---- resuming ------------------------------------------------------------------------------------


def test_a_killed_import_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    import_lmdb(source, whole, shard_size=4)
    write_shard = lmdb_import.write_shard

    def killed(folder: Path, manifest: Any, index: int, tensors: Any) -> Any:
        if index == 2:
            raise KeyboardInterrupt
        return write_shard(folder, manifest, index, tensors)

    monkeypatch.setattr(lmdb_import, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        import_lmdb(source, cut, shard_size=4)
    assert load_manifest(cut).missing == [2]
    made: list[int] = []

    def watched(folder: Path, manifest: Any, index: int, tensors: Any) -> Any:
        made.append(index)
        return write_shard(folder, manifest, index, tensors)

    monkeypatch.setattr(lmdb_import, "write_shard", watched)
    (cut / shard_name(0)).write_bytes(b"damaged")
    manifest = import_lmdb(source, cut, shard_size=4)
    assert made == [0, 2]
    assert not damaged_shards(cut, manifest)
    for name in ("manifest.json", *(shard_name(i) for i in range(3))):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    import_lmdb(source, cut, shard_size=4)
    assert made == [0, 2]


def test_a_folder_of_other_trajectories_is_not_touched(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    import_lmdb(source, out)
    before = (out / "manifest.json").read_bytes()
    other = write(tmp_path / "other", records(torch.zeros(COUNT, 17, 3, 4, 4)))
    cases = [
        (other, {}, r"checksum of the source [0-9a-f]{16} -> [0-9a-f]{16}"),
        (source, {"slices": 2}, "collect.slices 4 -> 2"),
        (source, {"dtype": "float32"}, "collect.dtype float16 -> float32"),
        (source, {"tag": "b"}, "the teacher, or a key that is not stored with them"),
    ]
    for path, options, differs in cases:
        text = refusal(path, out, **options)
        head = f"{re.escape(str(out))} holds trajectories of another recipe"
        assert re.fullmatch(rf"{head} \({differs}\); give another folder or delete it\.", text)
    assert (out / "manifest.json").read_bytes() == before


# ---- errors --------------------------------------------------------------------------------------


def refusal(source: Path, folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        import_lmdb(source, folder, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith((".", "?"))
    return text


ENTRIES: dict[str, tuple[dict[str, bytes | None], str]] = {
    "no length": ({"length": None}, "has no entry `length`; give a file of trajectories."),
    "odd length": ({"length": b"-3"}, "is '-3', not a number of trajectories."),
    "no trajectories": ({"length": b"0"}, "is '0', not a number of trajectories."),
    "binary length": ({"length": b"\xff" * 99}, "not a number of trajectories."),
    "missing first": ({"0": None}, "has no trajectory 0; it is incomplete: fetch it again."),
    "missing later": ({"7": None}, "has no trajectory 7; it is incomplete: fetch it again."),
    "one shorter": ({"3": b"1234"}, "has 4 bytes, not 3,264 like the first."),
    "no image": (
        {"0": b"12345678"},
        "A trajectory of 8 bytes is not 17 or 9 float32 states of square images with 1 or 3 "
        "channels.",
    ),
    "empty": ({"0": b""}, "A trajectory of 0 bytes is not 17 or 9 float32 states"),
    "not a number": (
        {"5": np.full(816, np.nan, np.float32).tobytes()},
        "Trajectory 5 in ",
    ),
    "too large": (
        {"5": np.full(816, 1e6, np.float32).tobytes()},
        "holds values that are not finite in float16.",
    ),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_what_is_wrong_with_the_records_is_said(tmp_path: Path, name: str) -> None:
    changes, complaint = ENTRIES[name]
    entries = {k: v for k, v in {**cifar(), **changes}.items() if v is not None}
    assert complaint in refusal(write(tmp_path / "lmdb", entries), tmp_path / "out")


def test_what_is_no_lmdb_is_said(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    complaint = "There is no LMDB at {}; give the folder that holds data.mdb."
    for path in (tmp_path, tmp_path / "nowhere"):
        assert refusal(path, out) == complaint.format(path)
    text = tmp_path / "text.mdb"
    text.write_text("not a database" * 1000)
    assert refusal(text, out).startswith(f"{text} cannot be opened as an LMDB (")
    data = source / "data.mdb"
    content = data.read_bytes()
    data.write_bytes(content[:-4096])
    assert f"is truncated ({len(content) - 4096:,} of {len(content):,} bytes)" in refusal(
        source, out
    )
    assert not out.exists()


@pytest.mark.parametrize("slices", [0, -4, 3, 32])
def test_slices_that_are_no_states_are_refused(tmp_path: Path, source: Path, slices: int) -> None:
    assert refusal(source, tmp_path / "out", slices=slices) == (
        "The trajectories have 17 states, so the number of slices must divide 16; "
        f"{slices} does not."
    )


def test_other_arguments_are_checked(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    assert "Unknown storage precision 'float8'" in refusal(source, out, dtype="float8")
    assert "Unknown spacing 'log'" in refusal(source, out, spacing="log")
    assert "A shard needs at least 1 trajectory, not 0." in refusal(source, out, shard_size=0)
    assert not out.exists()


LABELS: dict[str, tuple[Any, str]] = {
    "fewer": (np.arange(9), "has 10 trajectories, but there are 9 labels."),
    "floats": (np.ones(10), "are not a list of whole numbers."),
    "table": (np.ones((10, 2), int), "are not a list of whole numbers."),
    "negative": (np.arange(10) - 1, "are empty or negative."),
    "none": (np.arange(0), "are empty or negative."),
    "objects": (np.array([{}] * 10), "cannot be read ("),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, source: Path, name: str) -> None:
    values, complaint = LABELS[name]
    path = tmp_path / "given.npy"
    np.save(path, values, allow_pickle=True)
    assert complaint in refusal(source, tmp_path / "out", labels=path)


def test_damaged_and_missing_labels_are_refused(tmp_path: Path, source: Path) -> None:
    path = tmp_path / "given.npy"
    whole = BytesIO()
    np.save(whole, np.arange(10))
    lying = whole.getvalue().replace(b"(10,)", b"(99999999999,)")
    for content in (None, b"", b"text", b"PK\x03\x04", whole.getvalue()[:-1], lying):
        if content is not None:
            path.write_bytes(content)
        text = refusal(source, tmp_path / "out", labels=path)
        assert text.startswith(f"The labels {path} cannot be read (")


def test_without_a_length_the_labels_count(tmp_path: Path) -> None:
    """The authors' reader of ImageNet knows the number from the labels alone."""
    entries = {k: v for k, v in cifar().items() if k != "length"}
    path = write(tmp_path / "data" / "lmdb", entries)
    np.save(tmp_path / "data" / "labels.npy", np.arange(COUNT))
    assert import_lmdb(path, tmp_path / "out").count == COUNT
