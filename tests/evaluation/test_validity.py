"""Distances from too few samples are said to be so, for samples, reference and halves alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.evaluation.mixture import Student, draws
from tests.evaluation.test_report import example, text_of, without_drawing, write

from dsno.data.dataset import Dataset
from dsno.diffusion.analytic import GaussianMixture
from dsno.evaluation.evaluate import evaluate
from dsno.evaluation.frechet import frechet_distance, moments
from dsno.evaluation.reference import build_reference
from dsno.evaluation.report import write_report
from dsno.evaluation.validity import enough, shortages
from dsno.recipes.schema import Evaluate


def test_the_authors_of_the_distance_recommend_10_000_for_2_048_features() -> None:
    assert enough(2048) == pytest.approx(10_000, rel=0.05)
    assert enough(1) == 100


def test_published_distances_of_inception_features_are_of_50_000_samples() -> None:
    assert shortages({"inception": 2048}, samples=50_000, reference=50_000) == []
    found = shortages({"inception": 2048}, samples=49_999, reference=50_000)
    assert [s.of for s in found] == ["samples"]
    assert found[0].sentence == (
        "The Frechet distance in Inception features is not comparable with published ones: 49,999 "
        "samples in 2,048 dimensions bias it upwards; the protocol has 50,000."
    )
    few = shortages({"inception": 2048}, samples=9000, reference=9000)
    assert [s.enough for s in few] == [50_000, 10_240, 10_240]
    assert "9,000 samples in 2,048 dimensions are too few; use 50,000 or more." in few[0].sentence


def test_every_set_is_judged_in_every_space() -> None:
    dimensions = {"pixels": 768, "classifier": 64}
    assert shortages(dimensions, samples=10_000, reference=10_000) == []
    found = shortages(dimensions, samples=40, reference=1000)
    assert {(s.features, s.of, s.count) for s in found} == {
        ("pixels", "samples", 40),
        ("pixels", "reference", 1000),
        ("pixels", "half", 500),
        ("classifier", "samples", 40),
    }


@pytest.mark.parametrize(
    ("count", "is_few", "is_singular"),
    [(40, True, True), (64, True, True), (65, True, False), (319, True, False), (320, False, None)],
)
def test_a_covariance_of_n_samples_has_rank_n_minus_1(
    count: int, is_few: bool, is_singular: bool | None
) -> None:
    found = [s for s in shortages({"pixels": 64}, count, 10_000) if s.of == "samples"]
    assert len(found) == is_few
    if found:
        covariance = moments(torch.randn(count, 64)).covariance
        assert (int(torch.linalg.matrix_rank(covariance)) < 64) is is_singular
        assert ("is singular" in found[0].sentence) is is_singular
        assert "use 320 or more" in found[0].sentence


def test_what_is_called_enough_is_a_small_part_of_what_is_too_few() -> None:
    """Sets of one distribution: the distance is all bias, d (d + 5) / 4 (1/n + 1/n) for large n."""
    d = 20

    def bias(count: int) -> float:
        return frechet_distance(moments(torch.randn(count, d)), moments(torch.randn(count, d)))

    assert bias(enough(d)) / d < 0.2  # of the total variance
    assert bias(d) / d > 0.5


def test_a_run_says_and_records_what_is_too_few(
    teacher: GaussianMixture, capsys: pytest.CaptureFixture[str]
) -> None:
    few = Dataset("few", teacher.sample(60, torch.Generator().manual_seed(0)).float())
    reference = build_reference(few, ["pixels"], seed=0)
    spec = Evaluate(samples=4, features=("pixels",), reference_steps=2, baseline_steps=1)
    metrics, _ = evaluate(teacher, Student(lambda noise: noise), reference, draws(), spec)
    assert metrics["warnings"] == [
        {"features": "pixels", "of": "samples", "count": 4, "dimension": 4},
        {"features": "pixels", "of": "reference", "count": 60, "dimension": 4},
        {"features": "pixels", "of": "half", "count": 30, "dimension": 4},
    ]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning: ")]
    assert len(said) == 3
    assert "in pixel features is not meaningful: the covariance of 4 samples in 4" in said[0]
    assert "60 items of the reference in 4 dimensions are too few; use 100 or more." in said[1]
    assert "between halves of the reference in pixel features" in said[2]


def test_enough_samples_raise_no_warning(
    teacher: GaussianMixture, capsys: pytest.CaptureFixture[str]
) -> None:
    many = Dataset("many", teacher.sample(200, torch.Generator().manual_seed(0)).float())
    reference = build_reference(many, ["pixels"], seed=0)
    spec = Evaluate(samples=100, features=("pixels",), reference_steps=2, baseline_steps=1)
    metrics, _ = evaluate(teacher, Student(lambda noise: noise), reference, draws(), spec)
    assert metrics["warnings"] == []
    assert "Warning" not in capsys.readouterr().err


def test_the_report_shows_the_warnings_beside_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_drawing(monkeypatch)
    folder = write(tmp_path, example())
    assert "Warning:" not in text_of(write_report(folder).read_text())
    short = {"features": "pixels", "of": "samples", "count": 40, "dimension": 768}
    (folder / "metrics.json").write_text(json.dumps(example() | {"warnings": [short]}))
    html = write_report(folder).read_text()
    box = html[html.index('class="verdict"') : html.index("Key numbers")]
    assert "the covariance of 40 samples in 768 dimensions is singular" in text_of(box)
