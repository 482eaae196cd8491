"""Work in batches: what is finished is kept, whoever did it; features of costly networks too."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from tests.evaluation.detector import write_detector
from tests.evaluation.mixture import nothing
from tests.pictures import random_levels
from torch import Tensor

from dsno.data.dataset import Dataset
from dsno.evaluation import batchwise, feature_cache
from dsno.evaluation.batchwise import Desk, Work
from dsno.evaluation.features import Wanted
from dsno.evaluation.reference import build_reference
from dsno.support.errors import InputError


class Killed(Exception):
    """In the middle of the work."""


def counting(seen: list[range], stop: int = 100) -> Work:
    def run(items: range) -> dict[str, Tensor]:
        if len(seen) == stop:
            raise Killed
        seen.append(items)
        return {"square": torch.tensor([float(i) ** 2 for i in items])}

    return Work("squares", "squares", 10, 3, run)


def test_a_kill_costs_the_batch_in_hand(tmp_path: Path) -> None:
    desk, before, after = Desk(tmp_path), [], []
    with pytest.raises(Killed):
        desk.compute(counting(before, stop=2), nothing)
    assert before == [range(0, 3), range(3, 6)]
    assert desk.done(counting([])) == 6
    done: list[int] = []
    desk.compute(counting(after), lambda n, note: done.append(n))
    assert after == [range(6, 9), range(9, 10)]
    assert done == [3, 1]
    expected = [float(i) ** 2 for i in range(10)]
    assert desk.results(counting([]), nothing)["square"].tolist() == expected
    desk.clear("squares")
    assert not list(tmp_path.iterdir())
    assert Desk().results(counting([]), nothing)["square"].tolist() == expected  # in memory


@pytest.mark.parametrize("is_kept", [True, False])
def test_two_cores_work_on_two_batches_at_a_time(tmp_path: Path, is_kept: bool) -> None:
    meet, before = threading.Barrier(2), torch.get_num_threads()

    def run(items: range) -> dict[str, Tensor]:
        meet.wait(30)
        assert not torch.is_grad_enabled()
        return {"square": torch.tensor([float(i) ** 2 for i in items])}

    work, desk = Work("squares", "squares", 10, 3, run), Desk(tmp_path if is_kept else None)
    torch.set_num_threads(2)
    try:
        desk.compute(work, nothing)
        found = desk.results(work, nothing)["square"]
    finally:
        torch.set_num_threads(before)
    assert found.tolist() == [float(i) ** 2 for i in range(10)]


def test_a_device_has_the_next_batch_before_the_host_keeps_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    monkeypatch.setattr(batchwise, "runs_ahead", lambda _: True)

    def run(items: range) -> dict[str, Tensor]:
        events.append(f"asked {items.start}")
        return {"item": torch.arange(items.start, items.stop)}

    work, desk = Work("items", "items", 7, 3, run, threads=1), Desk(tmp_path)
    desk.compute(work, lambda n, note: events.append(f"kept {n}"))
    assert events == ["asked 0", "asked 3", "kept 3", "asked 6", "kept 3", "kept 1"]
    assert desk.results(work, nothing)["item"].tolist() == list(range(7))


def test_a_damaged_batch_is_named(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.compute(counting([]), nothing)
    file = tmp_path / "squares" / "00000003-00000006.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(InputError, match=r"00000003-00000006\.safetensors, a finished part of an"):
        desk.results(counting([]), nothing)


def test_features_of_a_network_are_computed_once_for_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSNO_CACHE", str(tmp_path / "cache"))
    wanted = Wanted((3, 6, 4), torchscript=str(write_detector(tmp_path / "detector.pt")))
    levels = torch.from_numpy(random_levels(20, 6, 4, 3)).permute(0, 3, 1, 2)
    asked: list[int] = []
    rows = Dataset.rows

    def counted(self: Dataset, items: Tensor) -> Tensor:
        asked.append(len(items))
        return rows(self, items)

    monkeypatch.setattr(Dataset, "rows", counted)

    def distance(pixels: Tensor) -> float:
        data = Dataset("random", pixels)
        return build_reference(data, ["torchscript"], seed=0, wanted=wanted).floor["torchscript"]

    first = distance(levels)
    assert sum(asked) == 20
    assert distance(levels.clone()) == first
    assert sum(asked) == 20
    changed = levels.clone()
    changed[3, 0, 0, 0] ^= 1
    assert distance(changed) != first
    assert sum(asked) == 40
    (kept, other) = sorted((tmp_path / "cache" / "features").iterdir())
    assert {kept.name[:12], other.name[:12]} == {"torchscript-"}
    for path in (kept, other):
        path.write_bytes(b"x")
    with pytest.raises(InputError, match="cannot be read .* delete it and run again"):
        distance(levels)
    assert not feature_cache.is_kept(
        Dataset("x", levels[:5]),
        build_reference(Dataset("y", levels), ["pixels"], seed=0).spaces["pixels"],
    )


def test_a_digest_is_of_the_pixels() -> None:
    levels = torch.from_numpy(random_levels(5, 6, 4, 3)).permute(0, 3, 1, 2)
    one = Dataset("one", levels).digest
    assert one == Dataset("other", levels.clone(), torch.zeros(5, dtype=torch.int64), 1).digest
    others = [levels.flip(0), levels[:4], levels.float(), levels.reshape(5, 3, 4, 6)]
    assert len({one, *(Dataset("x", pixels).digest for pixels in others)}) == 5
