"""All metrics together: what is measured where, and what is left out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsno.evaluation import measures
from dsno.evaluation.class_score import inception_score
from dsno.evaluation.frechet import moments
from dsno.evaluation.kernel import kernel_distance
from dsno.evaluation.manifold import manifold
from dsno.evaluation.measures import ReferenceSpace, by_metric
from dsno.support import seeds

FRECHET = ["frechet_distance", "frechet_error"]
FULL = [*FRECHET, "kernel_distance", "precision", "recall", "inception_score"]


def space(count: int = 300) -> ReferenceSpace:
    real = torch.randn(count, 4)
    return ReferenceSpace(moments(real), real)


def test_precision_and_recall_compare_equally_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "COMPARED", 120)
    judged, samples = space(), torch.randn(200, 4) * 1.2
    found = judged.measure(samples, 2 * samples)
    assert list(found) == FULL
    assert judged.features is not None
    order = torch.from_numpy(seeds.generator(0, seeds.SUBSET).permutation(200))
    real, made = judged.features[:120], samples[order[:120]]
    assert found["precision"] == manifold(real).share(made)
    assert found["recall"] == manifold(made).share(real)
    assert found["precision"] != found["recall"]
    distance = kernel_distance(samples, judged.features)
    assert found["kernel_distance"] == {
        "value": distance.value,
        "standard_error": distance.standard_error,
    }
    assert found["inception_score"]["value"] == inception_score(2 * samples[order]).value


def test_the_order_of_the_judged_samples_says_nothing() -> None:
    """A folder has its images class by class."""
    classes = torch.arange(10).repeat_interleave(200)
    samples = torch.nn.functional.one_hot(classes).float() * 20 + torch.randn(2000, 10)
    mixed = samples[torch.randperm(2000)]
    real = samples[torch.randperm(2000)][:300]
    judged = ReferenceSpace(moments(real), real)
    by_class, at_random = (judged.measure(x, x) for x in (samples, mixed))
    assert by_class["recall"] > 0.8
    assert by_class["recall"] == pytest.approx(at_random["recall"], abs=0.1)
    scores = [found["inception_score"]["value"] for found in (by_class, at_random)]
    assert scores == pytest.approx([10, 10], abs=0.5)


@pytest.mark.parametrize(
    ("count", "of_reference", "logits", "metrics"),
    [
        (50, None, False, FRECHET),  # a file of statistics
        (50, None, True, [*FRECHET, "inception_score"]),
        (50, 300, False, FULL[:-1]),
        (9, 300, True, FULL[:-1]),
        (3, 300, True, FRECHET),
        (50, 3, True, [*FRECHET, "inception_score"]),
    ],
)
def test_what_cannot_be_measured_is_left_out(
    count: int, of_reference: int | None, logits: bool, metrics: list[str]
) -> None:
    judged = space(of_reference or 300)
    if of_reference is None:
        judged = ReferenceSpace(judged.moments)
    samples = torch.randn(count, 4)
    assert list(judged.measure(samples, samples if logits else None)) == metrics


def test_values_are_listed_by_metric_and_then_by_space() -> None:
    found = {"pixels": {"recall": 0.5}, "classifier": {"recall": 0.25, "inception_score": 3}}
    assert by_metric(found) == {
        "recall": {"pixels": 0.5, "classifier": 0.25},
        "inception_score": {"classifier": 3},
    }


def test_the_supports_of_the_reference_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def counted(features: Tensor) -> object:
        sizes.append(len(features))
        return manifold(features)

    monkeypatch.setattr(measures, "manifold", counted)
    judged = space(50)
    for _ in range(3):
        judged.measure(torch.randn(60, 4))
    assert sizes == [50] * 4
