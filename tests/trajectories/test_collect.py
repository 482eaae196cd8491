"""Collection: what is stored, and the same bytes however often it was stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.devices import DEVICE, Crossings
from torch import Tensor, nn

from dsno.diffusion.analytic import GaussianMixture
from dsno.diffusion.conditions import Conditions
from dsno.diffusion.denoisers import Denoiser, DenoiserProtocol
from dsno.diffusion.guidance import GuidedDenoiser
from dsno.diffusion.schedules import CosineSchedule, EDMSchedule, NoiseSchedule
from dsno.diffusion.solvers import solve
from dsno.diffusion.time_grids import Spacing, grid_times
from dsno.support import seeds
from dsno.support.errors import InputError, WorkError
from dsno.support.files import sha256
from dsno.support.signals import interruption_delayed
from dsno.support.storage import StorageDir
from dsno.support.threads import Workers
from dsno.trajectories import manifest as trajectories
from dsno.trajectories.collect import collect, scales_at
from dsno.trajectories.dataset import TrajectoryStore
from dsno.trajectories.describe import describe
from dsno.trajectories.manifest import MANIFEST, Manifest, load_manifest, save_manifest, shard_name
from dsno.trajectories.shards import damaged_shards, write_shard

FREQUENCIES = [0.5, 0.2, 0.3]


def teacher(schedule: NoiseSchedule) -> GaussianMixture:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 1, 2, 2, generator=generator)
    return GaussianMixture(means, 0.2 + torch.rand(3, 1, 1, 1, generator=generator), schedule)


def plan(denoiser: DenoiserProtocol, **changes: Any) -> Manifest:
    times = grid_times(Spacing("quadratic", denoiser.schedule), 3)
    values: dict[str, Any] = {
        "tag": "a",
        "count": 22,
        "shard_size": 8,
        "sample_shape": denoiser.sample_shape,
        "times": tuple(times.tolist()),
        "scales": scales_at(denoiser, times),
        "dtype": "float16",
        "seed": 7,
        "num_classes": None,
        "solver": {"method": "dpm++2m", "steps": 6, "spacing": "uniform", "nfe": 6},
    }
    return Manifest(**{**values, **changes})


class Labelled(nn.Module):
    """Predicts x_0 from the label alone."""

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor) -> Tensor:
        return torch.ones_like(x) * class_labels.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_what_an_earlier_version_guided_is_kept_unless_the_teacher_clips(
    clip: float | None, tmp_path: Path
) -> None:
    inner = Denoiser(
        Labelled(),
        CosineSchedule(),
        prediction_type="sample",
        sample_shape=(1, 2, 2),
        clip_sample=clip,
    )
    denoiser = GuidedDenoiser(inner, 3.0, {"class_labels": torch.tensor(2)})
    conditions = Conditions(label_frequencies=FREQUENCIES)
    wanted = plan(inner, num_classes=3, guidance_scale=3.0)
    made = collect(denoiser, tmp_path, wanted, batch_size=8, conditions=conditions)
    before = {p.name: p.read_bytes() for p in tmp_path.glob("*.safetensors")}
    save_manifest(tmp_path, dataclasses.replace(made, format=2))
    if clip is None:
        assert collect(denoiser, tmp_path, wanted, batch_size=8, conditions=conditions) == made
        assert load_manifest(tmp_path).format == 3
    else:
        with pytest.raises(InputError, match="before guidance combined them"):
            collect(denoiser, tmp_path, wanted, batch_size=8, conditions=conditions)
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.safetensors")} == before


class Stop(BaseException):
    """Like Ctrl-C."""


class Stopping:
    """Another teacher that is stopped after so many evaluations."""

    def __init__(self, inner: GaussianMixture, at: int) -> None:
        self.inner, self.left = inner, at
        self.schedule, self.sample_shape = inner.schedule, inner.sample_shape
        self.sigma_data = inner.sigma_data

    def __call__(self, x: Tensor, t: Tensor, condition: Any = None, /) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise Stop
        return self.inner(x, t, condition)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted collection."""
    folder = tmp_path_factory.mktemp("whole")
    denoiser = teacher(CosineSchedule())
    collect(denoiser, folder, plan(denoiser), batch_size=5)
    return folder


# -------------------------------------------------------------------------- what is stored


def test_the_noise_of_an_item_is_its_own_rounded_to_storage_precision(whole: Path) -> None:
    noise, _, _ = TrajectoryStore(whole).rows(torch.arange(22))
    assert torch.equal(noise, seeds.item_noise(7, range(22), (1, 2, 2)).half().float())


@pytest.mark.parametrize("schedule", [CosineSchedule(), EDMSchedule()])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2**-11), ("float32", 2e-6)])
def test_states_are_the_solution_of_the_stored_noise(
    tmp_path: Path, schedule: NoiseSchedule, dtype: str, tolerance: float
) -> None:
    denoiser = teacher(schedule)
    made = plan(denoiser, dtype=dtype)
    collect(denoiser, tmp_path, made, batch_size=5)
    noise, stored, _ = TrajectoryStore(tmp_path).rows(torch.arange(22))
    solution = solve(denoiser, noise.double(), torch.tensor(made.times), method="dpm++2m", steps=6)
    scales = torch.tensor(made.scales).reshape(1, -1, 1, 1, 1)
    assert solution.nfe == made.solver["nfe"]
    error = (stored * scales - solution.states).abs()
    assert bool((error <= tolerance * (solution.states.abs() + scales)).all())


class Watching(Stopping):
    """Another teacher that notes what it is given, and how it is to compute."""

    def __init__(self, inner: GaussianMixture) -> None:
        super().__init__(inner, 0)
        self.given: list[Tensor] = []
        self.arithmetic: set[tuple[Any, ...]] = set()

    def __call__(self, x: Tensor, t: Tensor, condition: Any = None, /) -> Tensor:
        if t == 1:
            self.given.append(x)
        flags = torch.backends.cudnn
        self.arithmetic.add(
            (
                torch.get_float32_matmul_precision(),
                flags.deterministic,
                flags.benchmark,
                flags.allow_tf32,
            )
        )
        return self.inner(x, t, condition)


def test_what_is_solved_is_the_stored_noise_to_the_last_bit(tmp_path: Path) -> None:
    denoiser = Watching(teacher(EDMSchedule()))
    collect(denoiser, tmp_path, plan(denoiser.inner), batch_size=5)
    noise, _, _ = TrajectoryStore(tmp_path).rows(torch.arange(22))
    sigma = float(denoiser.schedule.sigma(torch.ones((), dtype=torch.float64)))
    assert torch.equal(torch.cat(denoiser.given), noise * sigma)


def test_the_teacher_computes_exactly_unless_asked_and_the_setting_before_comes_back(
    tmp_path: Path,
) -> None:
    denoiser = Watching(teacher(CosineSchedule()))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.backends.cudnn.flags(benchmark=True, deterministic=False, allow_tf32=True):
            collect(denoiser, tmp_path, plan(denoiser.inner, count=2), batch_size=2)
            assert torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert denoiser.arithmetic == {("highest", True, False, False)}
    quick = Watching(denoiser.inner)
    collect(quick, tmp_path / "tf32", plan(quick, count=2, **in_precision("tf32")), batch_size=2)
    assert quick.arithmetic == {("high", False, True, True)}


def in_precision(name: str) -> dict[str, Any]:
    """A plan's solver with a network of another precision."""
    solver = {"method": "dpm++2m", "steps": 6, "spacing": "uniform", "nfe": 6}
    return {"solver": {**solver, "precision": name}}


class Rounding(nn.Module):
    """Predicts v = x / 3; notes the type of what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.layer.weight, 1 / 3)
        self.types: set[torch.dtype] = set()

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        product: Tensor = self.layer(x)
        self.types.add(product.dtype)
        return product


def test_the_network_computes_in_the_precision_of_the_manifest(tmp_path: Path) -> None:
    network = Rounding()
    denoiser = Denoiser(
        network, CosineSchedule(), prediction_type="v_prediction", sample_shape=(1, 2, 2)
    )
    states = {}
    for name in ("exact", "bf16"):
        network.types.clear()
        changes = in_precision(name) if name != "exact" else {}
        collect(denoiser, tmp_path / name, plan(denoiser, **changes), batch_size=5)
        assert network.types == {torch.float32 if name == "exact" else torch.bfloat16}
        states[name] = TrajectoryStore(tmp_path / name).rows(torch.arange(22))[1]
    error = (states["bf16"] - states["exact"]).abs().max()
    assert 1e-3 < error < 2**-6  # more than storage rounds (2^-11), about what bfloat16 does (2^-8)
    assert describe(StorageDir(tmp_path / "bf16"))["solver"].endswith("nfe=6 precision=bf16")
    assert "precision" not in (tmp_path / "exact" / MANIFEST).read_text()  # as by older versions


def test_a_collection_in_another_precision_is_left_alone(whole: Path) -> None:
    before, denoiser = contents(whole), teacher(CosineSchedule())
    says = r"another recipe \(collect\.precision exact -> tf32\); give another folder"
    with pytest.raises(InputError, match=says):
        collect(denoiser, whole, plan(denoiser, **in_precision("tf32")), batch_size=5)
    assert contents(whole) == before


def test_the_manifest_says_whether_a_compiled_network_made_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    denoiser = Denoiser(
        Rounding(), CosineSchedule(), prediction_type="v_prediction", sample_shape=(1, 2, 2)
    )
    wanted = plan(denoiser)
    collect(denoiser, tmp_path, wanted, batch_size=5, shards=range(1))
    assert "compiled" not in load_manifest(tmp_path).solver
    made = collect(denoiser, tmp_path, wanted, batch_size=5, compiled=True)
    assert made == load_manifest(tmp_path)
    assert made.solver["compiled"] == "yes"
    assert made.missing == []
    # what is finished is not made again, compiled or not
    assert collect(denoiser, tmp_path, wanted, batch_size=5) == made


def test_stored_states_are_divided_by_the_scale_of_their_time() -> None:
    # EDM: sqrt(sigma_data^2 + sigma^2) with sigma_data = 1 here, and 1 at t = 0.
    denoiser = teacher(EDMSchedule())
    times = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    sigma = ((0.002 ** (1 / 7) + 80 ** (1 / 7)) / 2) ** 7
    expected = [(1 + 80**2) ** 0.5, (1 + sigma**2) ** 0.5, 1.0]
    assert scales_at(denoiser, times) == pytest.approx(expected)
    assert scales_at(teacher(CosineSchedule()), times) == pytest.approx([1.0, 1.0, 1.0])


def test_scaling_keeps_half_precision_accurate_where_the_noise_is_large(tmp_path: Path) -> None:
    denoiser = teacher(EDMSchedule())
    collect(denoiser, tmp_path, plan(denoiser), batch_size=22)
    _, states, _ = TrajectoryStore(tmp_path).rows(torch.arange(22))
    assert float(states.std((0, 2, 3, 4)).max()) < 2  # raw states have a deviation of 23


def test_a_conditional_teacher_is_told_the_stored_labels(tmp_path: Path) -> None:
    denoiser = teacher(CosineSchedule())
    made = plan(denoiser, num_classes=3, count=60)
    collect(denoiser, tmp_path, made, batch_size=9, conditions=Conditions(FREQUENCIES))
    noise, states, condition = TrajectoryStore(tmp_path).rows(torch.arange(60))
    labels = condition["class_labels"]
    assert torch.equal(labels, seeds.item_labels(7, range(60), FREQUENCIES))
    assert set(labels.tolist()) == {0, 1, 2}
    times = torch.tensor(made.times)
    told = solve(denoiser, noise, times, steps=6, condition={"class_labels": labels}).states
    other = solve(denoiser, noise, times, steps=6, condition={"class_labels": labels * 0}).states
    assert torch.allclose(states, told, atol=2e-3)
    assert not torch.allclose(states, other, atol=0.1)


def test_an_item_is_the_same_in_any_collection(whole: Path, tmp_path: Path) -> None:
    denoiser = teacher(CosineSchedule())
    collect(denoiser, tmp_path, plan(denoiser, count=10, shard_size=10), batch_size=3)
    for ours, theirs in zip(
        TrajectoryStore(tmp_path).rows(torch.arange(10))[:2],
        TrajectoryStore(whole).rows(torch.arange(10))[:2],
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=2e-3)


# -------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("at", [0, 1, 6, 13, 24, 35])
def test_a_stopped_collection_ends_with_the_same_bytes(
    whole: Path, tmp_path: Path, at: int
) -> None:
    denoiser = teacher(CosineSchedule())
    with pytest.raises(Stop):
        collect(Stopping(denoiser, at), tmp_path, plan(denoiser), batch_size=5)
    done = load_manifest(tmp_path)
    assert len(done.shards) == at // 12  # two batches of six evaluations a shard
    assert damaged_shards(tmp_path, done) == {}
    made = collect(Stopping(denoiser, 36 - at // 12 * 12), tmp_path, plan(denoiser), batch_size=5)
    assert made == load_manifest(tmp_path) == load_manifest(whole)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("nth", range(1, 6))
def test_a_crash_at_any_write_loses_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    # the manifest, three records, and the manifest again
    denoiser = teacher(CosineSchedule())
    write, calls = trajectories.write_json, 0

    def crashing(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise ZeroDivisionError
        write(*arguments)
        assert damaged_shards(tmp_path, load_manifest(tmp_path)) == {}  # never ahead of the data

    with monkeypatch.context() as patch:
        for module in ("manifest", "shards"):
            patch.setattr(f"dsno.trajectories.{module}.write_json", crashing)
        with pytest.raises(ZeroDivisionError):
            collect(denoiser, tmp_path, plan(denoiser), batch_size=5)
    collect(denoiser, tmp_path, plan(denoiser), batch_size=5)
    assert contents(tmp_path) == contents(whole)


def test_a_finished_collection_solves_nothing(whole: Path) -> None:
    for path in whole.iterdir():
        os.utime(path, (1, 1))
    denoiser = teacher(CosineSchedule())
    collect(Stopping(denoiser, 0), whole, plan(denoiser), batch_size=5)
    assert {path.stat().st_mtime for path in whole.iterdir()} == {1}


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-7]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x11"),
    ],
)
def test_only_a_damaged_shard_is_made_again(
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
) -> None:
    denoiser = teacher(CosineSchedule())
    collect(denoiser, tmp_path, plan(denoiser), batch_size=5)
    damage(tmp_path / shard_name(1))
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    collect(Stopping(denoiser, 12), tmp_path, plan(denoiser), batch_size=5)
    changed = {path.name for path in tmp_path.iterdir() if path.stat().st_mtime != 1}
    assert changed == {shard_name(1), MANIFEST}
    assert contents(tmp_path) == contents(whole)
    err = capsys.readouterr().err
    assert shard_name(1) in err
    assert "making it again" in err


def test_trajectories_of_another_recipe_are_left_alone(whole: Path) -> None:
    before = contents(whole)
    denoiser = teacher(CosineSchedule())
    solver = {**plan(denoiser).solver, "steps": 9}
    other = dataclasses.replace(plan(denoiser), tag="b", solver=solver, dtype="float32")
    differs = "collect.dtype float16 -> float32; collect.steps 6 -> 9"
    says = re.escape(f"trajectories of another recipe ({differs}); give another folder")
    with pytest.raises(InputError, match=says):
        collect(denoiser, whole, other, batch_size=5)
    assert contents(whole) == before


def test_trajectories_of_other_embeddings_of_the_prompts_are_left_alone(tmp_path: Path) -> None:
    denoiser = teacher(CosineSchedule())
    made = plan(denoiser, prompts_sha256="0" * 64)
    trajectories.save_manifest(tmp_path, made)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="other embeddings of the prompts; give another folder"):
        collect(
            denoiser, tmp_path, dataclasses.replace(made, prompts_sha256="1" * 64), batch_size=5
        )
    assert contents(tmp_path) == before


# -------------------------------------------------------------------------- interruption


class Signalled(Stopping):
    """Another teacher that gets a signal during its nth evaluation."""

    def __call__(self, x: Tensor, t: Tensor, condition: Any = None, /) -> Tensor:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.inner(x, t, condition)


@pytest.mark.parametrize(
    ("nth", "kept"),
    [(1, {"partial-00000.safetensors"}), (8, set()), (13, {"partial-00001.safetensors"})],
)
def test_a_signal_keeps_every_batch_that_was_solved(
    whole: Path, tmp_path: Path, nth: int, kept: set[str]
) -> None:
    denoiser = teacher(CosineSchedule())
    with pytest.raises(KeyboardInterrupt):
        collect(Signalled(denoiser, nth), tmp_path, plan(denoiser), batch_size=5)
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith("partial")} == kept
    left = 36 - 6 * -(-nth // 6)  # six evaluations a batch, of which none is done twice
    collect(Stopping(denoiser, left), tmp_path, plan(denoiser), batch_size=5)
    assert contents(tmp_path) == contents(whole)


def test_a_crash_loses_what_was_solved_since_the_last_save(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsno.trajectories.collect.SAVE_EVERY", 0.0)
    denoiser = teacher(CosineSchedule())
    with pytest.raises(Stop):
        collect(Stopping(denoiser, 20), tmp_path, plan(denoiser), batch_size=5)
    collect(Stopping(denoiser, 36 - 18), tmp_path, plan(denoiser), batch_size=5)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x11"),
        lambda path: path.write_bytes(b"no tensors"),
        lambda path: save_file(load_file(path), path, {"tag": "b", "sha256": "0"}),
    ],
)
def test_a_damaged_part_of_a_shard_is_solved_again(
    whole: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    denoiser = teacher(CosineSchedule())
    with pytest.raises(KeyboardInterrupt):
        collect(Signalled(denoiser, 1), tmp_path, plan(denoiser), batch_size=5)
    change(tmp_path / "partial-00000.safetensors")
    collect(denoiser, tmp_path, plan(denoiser), batch_size=5)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize(
    ("batch_size", "batches"), [(2, 2 + 4 + 3), (4, 1 + 2 + 2), (7, 1 + 2 + 1)]
)
def test_a_solved_part_is_kept_with_any_batch_size(
    whole: Path, tmp_path: Path, batch_size: int, batches: int
) -> None:
    """Five of 22 are solved; what is left are 3 of their shard, and shards of 8 and 6."""
    denoiser = teacher(CosineSchedule())
    with pytest.raises(KeyboardInterrupt):
        collect(Signalled(denoiser, 1), tmp_path, plan(denoiser), batch_size=5)
    collect(Stopping(denoiser, 6 * batches), tmp_path, plan(denoiser), batch_size=batch_size)
    found, expected = (load_file(folder / shard_name(0)) for folder in (tmp_path, whole))
    assert torch.equal(found["states"][:5], expected["states"][:5])
    assert torch.equal(found["noise"], expected["noise"])
    assert torch.allclose(found["states"].float(), expected["states"].float(), atol=2e-3)


# -------------------------------------------------------------------------------- overlap


def test_a_shard_is_written_while_the_next_is_solved(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solving, seen = threading.Event(), []

    class Next(Stopping):
        def __call__(self, x: Tensor, t: Tensor, condition: Any = None, /) -> Tensor:
            self.left -= 1
            if self.left == 0:
                solving.set()
            return self.inner(x, t, condition)

    def waiting(*given: Any) -> Any:
        seen.append(solving.wait(30))
        return write_shard(*given)

    monkeypatch.setattr("dsno.trajectories.collect.write_shard", waiting)
    denoiser = teacher(CosineSchedule())
    collect(Next(denoiser, 13), tmp_path, plan(denoiser), batch_size=5)  # 12 evaluations a shard
    assert seen == [True] * 3
    assert contents(tmp_path) == contents(whole)


def test_an_error_of_the_writing_stops_the_solving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise WorkError("The disk is full.")

    monkeypatch.setattr("dsno.trajectories.collect.write_shard", full)
    denoiser = Stopping(teacher(CosineSchedule()), 24)  # not a third shard
    with pytest.raises(WorkError, match=r"^The disk is full\.$"):
        collect(denoiser, tmp_path, plan(denoiser.inner), batch_size=5)
    assert load_manifest(tmp_path).shards == ()


class Device:
    """Stands in for a GPU: what it is asked for is there once it was waited for."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.asked = 0

    def arrival(self, tensor: Tensor) -> Any:
        number, self.asked = self.asked, self.asked + 1
        self.done.append(f"ask {number}")
        hidden = torch.full_like(tensor, math.nan)

        class Arrival:
            def wait(_) -> Tensor:
                self.done.append(f"wait {number}")
                return hidden.copy_(tensor)

        return Arrival()


def test_a_device_is_asked_for_a_batch_before_the_last_is_waited_for(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device()
    monkeypatch.setattr("dsno.trajectories.collect.runs_ahead", lambda _: True)
    monkeypatch.setattr("dsno.trajectories.collect.Arrival", device.arrival)
    denoiser = teacher(CosineSchedule())
    collect(denoiser, tmp_path / "whole", plan(denoiser), batch_size=5)
    order = "ask 0, ask 1, wait 0, ask 2, wait 1, ask 3, wait 2, ask 4, wait 3, ask 5, wait 4"
    assert ", ".join(device.done) == f"{order}, wait 5"  # from shard to shard too
    assert contents(tmp_path / "whole") == contents(whole)
    with pytest.raises(KeyboardInterrupt):
        collect(Signalled(denoiser, 8), tmp_path / "two", plan(denoiser), batch_size=5)
    assert load_manifest(tmp_path / "two").missing == [1, 2]  # both batches asked for were kept
    collect(Stopping(denoiser, 24), tmp_path / "two", plan(denoiser), batch_size=5)
    assert contents(tmp_path / "two") == contents(whole)


def test_a_batch_crosses_to_the_device_and_back_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsno.support.distributed.device", lambda: DEVICE)
    denoiser = Denoiser(
        Labelled(), CosineSchedule(), prediction_type="sample", sample_shape=(1, 2, 2)
    )
    wanted = plan(denoiser, num_classes=3, count=10, shard_size=10)
    with Crossings() as crossings:
        collect(denoiser, tmp_path, wanted, batch_size=5, conditions=Conditions(FREQUENCIES))
    noise, labels = ((5, 1, 2, 2), torch.float16), ((5,), torch.int64)
    assert crossings.up == [noise, labels] * 2
    assert crossings.down == [((5, 3, 1, 2, 2), torch.float16)] * 2
    assert crossings.reads == 0


# ---------------------------------------------------------------------- many jobs and places


def test_jobs_that_make_a_part_each_leave_what_one_leaves(whole: Path, tmp_path: Path) -> None:
    denoiser = teacher(CosineSchedule())
    found = collect(denoiser, tmp_path, plan(denoiser), batch_size=5, shards=range(1, 3))
    assert found.missing == [0]
    assert shard_name(0) not in contents(tmp_path)
    assert collect(denoiser, tmp_path, plan(denoiser), batch_size=5, shards=range(1)).missing == []
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("shards", [range(3, 4), range(0, 4), range(2, 2)])
def test_a_range_of_shards_there_are_not_is_refused(tmp_path: Path, shards: range) -> None:
    denoiser = teacher(CosineSchedule())
    with pytest.raises(InputError, match=r"the collection has 3, so give a range within 0:3"):
        collect(denoiser, tmp_path, plan(denoiser), batch_size=5, shards=shards)
    assert list(tmp_path.iterdir()) == []


def test_trajectories_behind_a_url_are_the_same(whole: Path, tmp_path: Path) -> None:
    place = StorageDir("memory://test_collect/one")
    denoiser = teacher(CosineSchedule())
    with pytest.raises(KeyboardInterrupt):
        collect(Signalled(denoiser, 13), place, plan(denoiser), batch_size=5)
    assert "partial-00001.safetensors" in place.names()
    collect(Stopping(denoiser, 18), place, plan(denoiser), batch_size=5)
    for name in place.names():
        place.copy_to(name, tmp_path / name)
    assert contents(tmp_path) == contents(whole)


# ------------------------------------------------------------------------------- threads


class Together(Stopping):
    """Another teacher; two threads must be in their first evaluations at a time."""

    def __init__(
        self,
        inner: GaussianMixture,
        at: int,
        meet: threading.Barrier,
        act: Callable[[int], None] = lambda turn: None,
    ) -> None:
        super().__init__(inner, at)
        self.meet, self.act, self.is_first = meet, act, True

    def __deepcopy__(self, memo: dict[int, Any]) -> Together:
        return Together(self.inner, self.left, self.meet, self.act)  # a lock cannot be copied

    def __call__(self, x: Tensor, t: Tensor, condition: Any = None, /) -> Tensor:
        if self.is_first:
            self.is_first = False
            self.act(self.meet.wait(30))
        return super().__call__(x, t, condition)


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_cores")
def test_two_cores_make_two_shards_at_a_time_with_the_same_bytes(
    whole: Path, tmp_path: Path
) -> None:
    denoiser = teacher(CosineSchedule())
    both = Together(denoiser, 36, threading.Barrier(2))
    made = collect(both, tmp_path, plan(denoiser), batch_size=5)
    assert made == load_manifest(whole)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize(("shards", "threads"), [(range(1), 2), (range(2), 1)])
def test_where_shards_are_fewer_than_cores_each_is_solved_by_several(
    shards: range, threads: int, whole: Path, tmp_path: Path
) -> None:
    class Noting(Stopping):
        def __call__(self, x: Tensor, t: Tensor, condition: Any = None, /) -> Tensor:
            seen.add(torch.get_num_threads())
            return super().__call__(x, t, condition)

    seen: set[int] = set()
    denoiser = teacher(CosineSchedule())
    collect(Noting(denoiser, 36), tmp_path, plan(denoiser), batch_size=5, shards=shards)
    assert seen == {threads}
    for path in tmp_path.glob("shard-*.safetensors"):
        assert path.read_bytes() == (whole / path.name).read_bytes()


@pytest.mark.usefixtures("two_cores")
def test_an_error_in_one_thread_stops_the_other_with_what_it_has_solved(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(Workers):
        def __enter__(self) -> Seen:
            entered.append(self)
            return super().__enter__()

    def fail_once(turn: int) -> None:
        if turn == 0:
            raise Stop
        until(lambda: entered[0].has_failed)

    entered: list[Workers] = []
    monkeypatch.setattr("dsno.trajectories.collect.Workers", Seen)

    denoiser = teacher(CosineSchedule())
    both = Together(denoiser, 36, threading.Barrier(2), fail_once)
    with pytest.raises(Stop):
        collect(both, tmp_path, plan(denoiser), batch_size=5)
    assert [p.suffix for p in tmp_path.glob("partial-*")] == [".safetensors"]
    assert not list(tmp_path.glob("shard-*"))
    collect(Stopping(denoiser, 36), tmp_path, plan(denoiser), batch_size=5)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.usefixtures("two_cores")
def test_a_signal_keeps_what_both_threads_have_solved(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def seen() -> Iterator[Callable[[], bool]]:
        with interruption_delayed() as interrupted:
            asked.append(interrupted)
            yield interrupted

    def signal_once(turn: int) -> None:
        if turn == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        until(asked[0])

    asked: list[Callable[[], bool]] = []
    monkeypatch.setattr("dsno.trajectories.collect.interruption_delayed", seen)
    denoiser = teacher(CosineSchedule())
    both = Together(denoiser, 36, threading.Barrier(2), signal_once)
    with pytest.raises(KeyboardInterrupt):
        collect(both, tmp_path, plan(denoiser), batch_size=5)
    assert len(list(tmp_path.glob("partial-*"))) == 2
    collect(denoiser, tmp_path, plan(denoiser), batch_size=5)
    assert contents(tmp_path) == contents(whole)
