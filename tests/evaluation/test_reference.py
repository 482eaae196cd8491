"""The reference: distances that tell good samplers from bad, and their floor."""

from __future__ import annotations

import pytest
import torch
from tests.evaluation.mixture import SHAPE, draws, nothing

from dsno.data.dataset import Dataset
from dsno.diffusion.analytic import GaussianMixture
from dsno.evaluation.reference import Reference, build_reference, usual_spaces
from dsno.evaluation.samplers import (
    Sampler,
    draw,
    teacher_sampler,
)
from dsno.support.errors import InputError


def test_a_perfect_sampler_is_at_the_floor_and_noise_far_above(
    teacher: GaussianMixture, reference: Reference
) -> None:
    floor = reference.floor["pixels"]
    good = draw(teacher_sampler(teacher, "heun", 24, "uniform"), draws(), 1500, nothing)
    noise = draw(Sampler("x", "x", 1, None, lambda n, _: n), draws(), 1500, nothing)
    assert 0 < floor < 0.05
    assert reference.distances(good)["pixels"] < 3 * floor
    assert reference.distances(noise)["pixels"] > 30 * floor
    assert reference.distances(reference.data.images)["pixels"] < 1e-9


def test_more_steps_are_closer(teacher: GaussianMixture, reference: Reference) -> None:
    curve = [
        reference.distances(
            draw(teacher_sampler(teacher, "ddim", n, "uniform"), draws(), 1500, nothing)
        )["pixels"]
        for n in (1, 4, 16)
    ]
    assert curve[0] > 10 * curve[1] > 10 * curve[2]


def test_a_reference_describes_its_spaces(data: Dataset, reference: Reference) -> None:
    assert reference.records == {"pixels": {"dimension": 4}}
    assert reference.by_space["pixels"].moments.count == 3000
    other = build_reference(data, ["pixels"], seed=1)
    assert other.floor != reference.floor  # other halves
    assert build_reference(data, ["pixels"], seed=0).floor == reference.floor


def test_a_sampler_that_makes_nan_is_refused(reference: Reference) -> None:
    with pytest.raises(InputError, match="not finite"):
        reference.distances(torch.full((5, *SHAPE), torch.nan))


@pytest.mark.parametrize(("shape", "plain"), [((1, 32, 32), "pixels"), ((1, 25, 41), "thumbnail")])
def test_images_of_more_than_1024_numbers_are_compared_by_thumbnails(
    shape: tuple[int, ...], plain: str
) -> None:
    images, labels = torch.zeros(2, *shape), torch.tensor([0, 1])
    assert usual_spaces(Dataset("plain", images)) == (plain,)
    assert usual_spaces(Dataset("classes", images, labels, 2)) == (plain, "classifier")


def test_classifier_features_of_vectors_are_refused() -> None:
    flat = Dataset("flat", torch.randn(100, 2), torch.zeros(100, dtype=torch.int64), 1)
    with pytest.raises(InputError, match="use the features 'pixels'"):
        build_reference(flat, ["pixels", "classifier"], seed=0)
