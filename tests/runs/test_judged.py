"""`dsno evaluate` of anything against anything, on several processes, killed in the middle."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from tests.evaluation.detector import by_numpy, write_detector
from tests.launched.processes import Launch, launched_command, wait
from tests.pictures import random_levels, write

from dsno.cli import main

COUNT, SIZE = 120, (8, 10)


@pytest.fixture(scope="module")
def levels() -> np.ndarray:
    return random_levels(COUNT, *SIZE, 3)


@pytest.fixture(scope="module")
def images(levels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i, image in enumerate(levels):
        write(folder / f"{i:03d}.png", image)
    return folder


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detector(tmp_path_factory.mktemp("detector") / "detector.pt")


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics of other images, as EDM's script would have written them."""
    path = tmp_path_factory.mktemp("statistics") / "reference.npz"
    features = by_numpy(random_levels(300, *SIZE, 3, seed=1) // 2)
    np.savez(path, mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    return path


def by_scipy(levels: np.ndarray, statistics: Path) -> float:
    """The Frechet distance with SciPy's root of the product, as EDM computes it."""
    features = by_numpy(levels)
    mu, sigma = features.mean(0), np.cov(features, rowvar=False)
    with np.load(statistics) as other:
        root = scipy.linalg.sqrtm(sigma @ other["sigma"])
        gap = np.square(mu - other["mu"]).sum()
        return float(gap + np.trace(sigma + other["sigma"] - 2 * np.real(root)))


def words(images: Path, statistics: Path, detector: Path, *more: str) -> list[str]:
    options = ["evaluate.features=[torchscript]", f"evaluate.torchscript={detector}", *more]
    return ["evaluate", str(images), *options, "--reference", str(statistics)]


def printed(said: str) -> dict[str, Any]:
    """The JSON among what a command said."""
    found: dict[str, Any] = json.loads(said[said.index("{") :])
    return found


def evaluated(capsys: pytest.CaptureFixture[str], line: Sequence[object]) -> dict[str, Any]:
    capsys.readouterr()
    assert main([str(word) for word in line]) == 0
    return printed(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *line: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in line]) == 2
    return capsys.readouterr().err


def test_a_folder_is_judged_by_statistics_on_two_processes_after_a_kill(
    images: Path,
    levels: np.ndarray,
    statistics: Path,
    detector: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = words(images, statistics, detector, "evaluate.batch_size=2")
    log, cache = tmp_path / "log", tmp_path / "cache"

    def start() -> Launch:
        monkeypatch.setenv("DSNO_CACHE", str(cache))
        return launched_command(line, log, {"DSNO_CACHE": str(cache)})

    def finished() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in cache.glob("evaluations/*/0*.safetensors")}

    first = start()
    wait(lambda: len(finished()) > 4, first)
    first.send_signal(signal.SIGKILL)
    assert first.end() == [-signal.SIGKILL] * 2
    kept = finished()
    assert 4 < len(kept) < COUNT // 2
    second = start()
    seen: dict[str, int] = {}

    def is_nearly_done() -> bool:
        seen.update(finished())
        return len(seen) > len(kept)

    wait(is_nearly_done, second)
    assert {name: seen[name] for name in kept} == kept  # not made again
    assert second.end() == [0, 0], second.said()
    found = printed(second.said())
    alone = evaluated(capsys, line)
    assert found["frechet_distance"] == alone["frechet_distance"]  # to the last bit
    expected = by_scipy(levels, statistics)
    assert found["frechet_distance"]["torchscript"] == pytest.approx(expected, rel=1e-5)
    assert found["samples"] == COUNT
    assert not list((cache / "evaluations").iterdir())


def test_the_result_names_what_decides_it(
    images: Path, statistics: Path, detector: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(capsys, words(images, statistics, detector, "--samples", "50"))
    assert found["samples"] == 50
    assert found["images"] == str(images)
    assert found["features"]["torchscript"] == {
        "dimension": 5,
        "quantisation": "floor(127.5 x + 128) to 8 bits",
        "sha256": found["features"]["torchscript"]["sha256"],
        "file": "detector.pt",
        "distance": "Frechet distance",
    }
    assert found["reference"]["statistics"] == str(statistics)
    assert {len(found[k]) for k in ("sha256",)} == {64}
    assert len(found["reference"]["sha256"]) == 64
    assert {"dsno", "torch", "device"} <= found["environment"].keys()
    assert [w["of"] for w in found["warnings"]] == ["samples"]  # 50 of the 100 wanted


def test_arrays_are_judged_by_a_folder_and_by_its_saved_statistics(
    images: Path,
    levels: np.ndarray,
    detector: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    samples, saved = tmp_path / "samples.npz", tmp_path / "saved.npz"
    np.savez(samples, images=levels[:70] // 2)
    features = ["evaluate.features=[torchscript]", f"evaluate.torchscript={detector}"]
    against = ["--data", "folder", "--path", images]
    direct = evaluated(
        capsys, ["evaluate", samples, *features, *against, "--save-statistics", saved]
    )
    assert direct["reference"]["count"] == COUNT
    assert direct["reference"]["split"] == "train"
    assert direct["frechet_distance"]["torchscript"] == pytest.approx(
        by_scipy(levels[:70] // 2, saved), rel=1e-4
    )
    by_file = evaluated(capsys, ["evaluate", samples, *features, "--reference", saved])
    assert by_file["frechet_distance"] == direct["frechet_distance"]
    assert by_file["reference"]["count"] == COUNT
    # the reference alone, and one file of statistics by another
    alone = tmp_path / "alone.npz"
    line = ["evaluate", *features, *against, "--save-statistics", alone]
    assert "frechet_distance" not in evaluated(capsys, line)
    same = evaluated(capsys, ["evaluate", alone, "--reference", saved])
    assert same["frechet_distance"]["torchscript"] == pytest.approx(0, abs=1e-6)
    other = refused(capsys, "evaluate", alone, "--reference", saved, "evaluate.features=[pixels]")
    assert "are statistics of torchscript, not of pixels; leave out evaluate.features" in other


def test_what_cannot_be_judged_is_refused_in_one_sentence(
    images: Path, statistics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few.npz"
    np.savez(few, images=random_levels(1, *SIZE, 3))
    cases = [
        (["evaluate"], "There is nothing to evaluate"),
        (["evaluate", tmp_path / "no.npz"], "There is no file"),
        (["evaluate", images, "--reference", tmp_path / "no.npz"], "There is no file"),
        (["evaluate", images, "--reference", statistics], "does not say which features"),
        (["evaluate", images], "but the data digits have 1x8x8"),
        (["evaluate", images, "--full"], "--full go with a recipe"),
        (["evaluate", images, "--reference", statistics, "--data", "npz"], "leave out --data"),
        (["evaluate", statistics], "give --reference FILE.npz"),
        (["evaluate", "digits", "--reference", statistics], "go with a trained model or images"),
        (["evaluate", images, "--save-statistics", "x.npz"], "writes those of one feature space"),
        (
            ["evaluate", few, "--data", "folder", "--path", images],
            "needs at least 2 samples, not 1",
        ),
    ]
    for line, says in cases:
        err = refused(capsys, *line)
        assert says in err, (line, err)
        assert err.startswith("dsno: ") or "\ndsno: " in err
